"""`TrainState`: the few numbers that survive a restart besides tensors. Randomness has no state (see `data.order`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TrainState(BaseModel):
    """Where a run stands.

    Args:
        step: optimizer updates done.
        rows_seen, tokens_seen, targets_seen: totals over the run, without pads.
        flops: floating-point operations that the steps needed.
        train_seconds: time spent in steps, over all starts.
        best_loss, best_step: smallest loss on held-out rows so far and the step that had it; None without a best.
        watched_loss: for early stopping, what a later loss must beat by `min_delta`.
        evaluated_step: last step whose due evaluation was made.
        evaluations_without_gain: for early stopping.
        baseline: metrics before the first step.
        guard_baseline: the same of each guard set, by its name.
        guard_losses: of each guard set at the last evaluation, where the rule of forgetting is on.
        within_step: without a best, the last evaluated step within the limit of forgetting.
        skipped_steps: steps without an update, since loss or gradient were not finite.
        finished: why no step follows, once that is so.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    rows_seen: int = 0
    tokens_seen: int = 0
    targets_seen: int = 0
    flops: float = 0.0
    train_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    watched_loss: float | None = None
    evaluated_step: int = 0
    evaluations_without_gain: int = 0
    baseline: dict[str, float] = {}
    guard_baseline: dict[str, dict[str, float]] = {}
    guard_losses: dict[str, float] = {}
    within_step: int | None = None
    skipped_steps: int = 0
    finished: str | None = None
