"""Out of memory in a step: make it again, cut into smaller forwards. The step's rows and their order stay the same.

Nothing of a step that failed is kept: its gradient is thrown away, and no update was made. The steps before it are
saved, and `plan.json` has the smaller size, so that a resumed run goes on as this one does.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

from ftune.errors import MemoryExhausted
from ftune.plan import Plan, accumulation
from ftune.session import Run


def cut_smaller(run: Run, error: MemoryExhausted, save: Callable[[], None]) -> None:
    """Halve what goes into one forward, in the plan and on disk.

    Args:
        run: its step did not fit.
        error: what the step raised.
        save: publishes a checkpoint of the steps that were made.

    Raises:
        MemoryExhausted: `error`, where the recipe names the size, where one example does not fit, or where several
            processes share the step: one of them alone cannot make it again.
    """
    plan = run.plan
    smaller = halved(plan, run.prepared.facts.data.longest, run.state.step)
    if run.loaded.recipe.train.micro_batch_size != "auto" or plan.num_processes > 1 or smaller is None:
        raise error
    run.optimizer.zero_grad(set_to_none=True)
    for one in (error, error.__cause__):
        if one is not None:
            one.__traceback__ = None  # whose frames hold the activations
    gc.collect()
    if plan.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    if run.state.step > 0:
        save()
    run.plan = smaller
    run.store.write_json("plan.json", smaller.to_json())
    run.log("out_of_memory", **_size(smaller))
    now = f"goes on with {_said(smaller)} and the same batch"
    run.listener.note(f"out of memory after step {run.state.step} with {_said(plan)}; {now}")


def halved(plan: Plan, longest: int, step: int) -> Plan | None:
    """The plan with half as much in one forward; None where one example is all there is in it.

    Args:
        plan: of the run.
        longest: tokens of the longest example.
        step: updates done, for the plan's source.
    """
    tokens, rows = plan.micro_batch_tokens, plan.micro_batch_size
    if tokens is None:
        if rows == 1:
            return None
        changed: dict[str, Any] = {"micro_batch_size": rows // 2}
        changed["accumulation"] = accumulation(plan.batch_size, rows // 2, plan.num_processes)
    else:
        if tokens <= longest:
            return None
        fewer = max(longest, tokens // 2)
        of_step = math.ceil(plan.batch_size * plan.tokens_per_epoch / plan.examples)
        changed = {"micro_batch_tokens": fewer, "micro_batch_size": max(1, rows // 2)}
        changed["accumulation"] = accumulation(of_step, fewer, plan.num_processes)
    changed["eval_batch_size"] = max(1, plan.eval_batch_size // 2)
    why = f"halved: out of memory after step {step} with {_said(plan)}"
    return plan.model_copy(update={**changed, "sources": {**plan.sources, **dict.fromkeys(changed, why)}})


def _size(plan: Plan) -> dict[str, int | None]:
    return {"micro_batch_size": plan.micro_batch_size, "micro_batch_tokens": plan.micro_batch_tokens}


def _said(plan: Plan) -> str:
    if plan.micro_batch_tokens is None:
        return f"{plan.micro_batch_size} examples a forward"
    return f"{plan.micro_batch_tokens} tokens a forward"
