"""How much disk a run needs: the estimate on facts made by hand. tests/crash/test_disk_estimate.py measures it."""

from __future__ import annotations

from typing import Any

from facts import facts, plan_of

from ftune.disk_need import _REPORT, _STEP
from ftune.facts import Facts

MANY = 10_000_000


def disk_of(method: str = "lora", steps: int = 100, known: Facts | None = None, **sections: Any) -> tuple[int, int]:
    """Planned bytes of the run folder and of a checkpoint, without the log of the steps."""
    known = known or facts(trainable_parameters=MANY, total_parameters=MANY, stored_dtype="float32")
    train = {"duration": f"{steps} steps", **sections.pop("train", {})}
    plan = plan_of(known, method=method, train=train, **sections)
    return plan.disk_bytes - steps * _STEP, plan.checkpoint_bytes


def test_disk_is_full_at_most_while_a_checkpoint_is_written() -> None:
    keep = {"keep": 2}
    assert disk_of(checkpoint={**keep, "best": None}) == (3 * 12 * MANY, 12 * MANY), "weights and two moments"
    assert disk_of(checkpoint=keep)[0] == 4 * 12 * MANY, "the best may be an old one"
    assert disk_of(train={"optimizer": "sgd"}, checkpoint=keep) == (4 * 8 * MANY, 8 * MANY)


def test_disk_of_a_run_that_saves_seldom() -> None:
    once = {"keep": 2, "best": None, "every": 100}
    assert disk_of(checkpoint=once)[0] == 12 * MANY + 4 * MANY + _REPORT, "a checkpoint, and model/ beside it"
    assert disk_of(checkpoint={**once, "every": 60})[0] == 2 * 12 * MANY + 4 * MANY + _REPORT, "the last step too"
    best = {"keep": 9, "every": 50}
    assert disk_of(checkpoint=best, eval={"every": 25})[0] == 4 * 12 * MANY + 4 * MANY + _REPORT, "4 evaluations"


def test_disk_of_what_is_saved_besides_checkpoints() -> None:
    once = {"checkpoint": {"keep": 1, "best": None, "every": 100}}
    half = facts(trainable_parameters=MANY, total_parameters=MANY, stored_dtype="bfloat16", tokenizer_bytes=7)
    assert disk_of("full", known=half, **once)[0] == 12 * MANY + 2 * MANY + 7 + _REPORT, "in the base's type"
    assert disk_of("lora", known=half, **once)[0] == 12 * MANY + 4 * MANY + 7 + _REPORT, "adapters stay fp32"
