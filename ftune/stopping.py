"""Rules that end a run before its last step, and the step that they leave as the model.

    early_stopping   the evaluation loss has not fallen for `patience` evaluations
    forgetting       the loss of a guard set has risen by more than `max_forgetting` over its value before training

Pure functions of plan and state. All that they look back on is in `TrainState`, so that a resumed run decides as the
uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ftune.errors import ArtifactError
from ftune.plan import Plan
from ftune.state import TrainState

EARLY_STOPPING, FORGETTING = "early_stopping", "forgetting"


def note_evaluation(state: TrainState, loss: float | None, plan: Plan) -> bool:
    """Take in an evaluation of this step, whose guard losses are in `state` already.

    Args:
        state: where the run stands; updated.
        loss: on held-out rows; None without any.
        plan: of the run.

    Returns:
        Whether this step is what `model/` would now be made of, so that it must be saved.
    """
    allowed = not beyond(state, plan)
    better = loss is not None and _note_best(state, loss, plan, allowed)
    if plan.best is None and plan.max_forgetting is not None:
        state.within_step = state.step if allowed else state.within_step
        return allowed
    state.within_step = None
    return better


def _note_best(state: TrainState, loss: float, plan: Plan, allowed: bool) -> bool:
    """Update the best and the early-stopping counter; no loss that is not finite counts. True for a new best."""
    if math.isfinite(loss) and (state.watched_loss is None or loss < state.watched_loss - plan.min_delta):
        state.watched_loss, state.evaluations_without_gain = loss, 0
    else:
        state.evaluations_without_gain += 1
    if plan.best is None:
        state.best_loss = state.best_step = None  # its checkpoint is not protected, and may be gone later
        return False
    better = allowed and math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
    if better:
        state.best_loss, state.best_step = loss, state.step
    return better


def reason_to_stop(state: TrainState, plan: Plan) -> str | None:
    """The rule that ends the run after the last evaluation, or None."""
    if beyond(state, plan):
        return FORGETTING
    if plan.patience is not None and state.evaluations_without_gain >= plan.patience:
        return EARLY_STOPPING
    return None


def goes_on(state: TrainState, plan: Plan) -> bool:
    """Whether steps are left to make, also after the recipe was extended."""
    if state.finished in (EARLY_STOPPING, FORGETTING) and reason_to_stop(state, plan) is not None:
        return False
    return state.finished is None or state.step < plan.steps


def model_step(state: TrainState, plan: Plan) -> int:
    """The step that `model/` is made of: the best, else the last; within the limit of forgetting, if one was."""
    chosen = state.within_step if plan.best is None else state.best_step
    return state.step if chosen is None else chosen


def rises(state: TrainState) -> dict[str, float]:
    """By how much the loss of each guard set is above its value before training, as a share; below 0 it fell."""
    return {name: _rise(state.guard_baseline[name]["loss"], loss) for name, loss in state.guard_losses.items()}


def _rise(before: float, now: float) -> float:
    if before == 0:
        return 0.0 if now == 0 else math.inf
    return now / before - 1


def beyond(state: TrainState, plan: Plan) -> list[str]:
    """Guard sets whose loss has risen by more than the limit, the worst first."""
    if plan.max_forgetting is None:
        return []
    above = 1 + plan.max_forgetting
    found = [name for name, loss in state.guard_losses.items() if loss > above * state.guard_baseline[name]["loss"]]
    rise = rises(state)
    return sorted(found, key=lambda name: -rise[name])


def refuse_without_baseline(state: TrainState, plan: Plan, guards: Collection[str]) -> None:
    """Check that every guard set was scored before training.

    Raises:
        ArtifactError: the rule was switched on, or a set added, when the run had begun already.
    """
    unknown = [name for name in guards if "loss" not in state.guard_baseline.get(name, {})]
    if state.step > 0 and plan.max_forgetting is not None and unknown:
        raise ArtifactError(
            f"train.early_stopping.max_forgetting: guard set {unknown[0]} was not scored before training, for the run "
            "began without it. Nothing was touched. Take it out of eval.guard, or start anew with --overwrite."
        )


def forgetting(state: TrainState, plan: Plan) -> dict[str, Any] | None:
    """For the report: the limit, what rose by how much at the last evaluation, and which sets are beyond the limit.

    None where the rule is off.
    """
    if plan.max_forgetting is None:
        return None
    kept = state.within_step if plan.best is None else state.best_step
    return {"limit": plan.max_forgetting, "rise": rises(state), "beyond": beyond(state, plan), "kept": kept is not None}
