"""Which checkpoint a run goes on with, and whether its best one is still there. Reads only."""

from __future__ import annotations

from pathlib import Path

from ftune import stopping
from ftune.checkpoints import newest_good
from ftune.errors import ArtifactError, Problem, RecipeError
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.manifest import verify
from ftune.plan import Plan
from ftune.run_files import read_lines
from ftune.state import TrainState


def newest_checkpoint(loaded: Loaded, plan: Plan, folder: Path, listener: Listener) -> tuple[int, Path] | None:
    """The newest checkpoint of the run in `folder` that verifies; None when there is none yet.

    Raises:
        ArtifactError: there are or were checkpoints, and none is good.
        RecipeError: the run has made more steps than the recipe now asks for.
    """
    found, skipped = newest_good(folder)
    if found is None and skipped:
        message = f"{folder}: every checkpoint is damaged. Start anew with --overwrite."
        raise ArtifactError("\n".join([message, *skipped]))
    for message in skipped:
        listener.warn(message)
    if found is None:
        _refuse_lost_checkpoints(folder)
    elif found[0] > plan.steps:
        message = f"the run has made {found[0]} steps already, more than the {plan.steps} asked for now. Raise it."
        raise RecipeError([Problem("train.duration", message, loaded.source("train.duration"))])
    return found


def _refuse_lost_checkpoints(folder: Path) -> None:
    """A run that was killed before its first checkpoint begins anew; one whose checkpoints somebody removed does not.

    Raises:
        ArtifactError: the log tells of a checkpoint, though none is there.
    """
    steps = [event["step"] for event in read_lines(folder / "metrics.jsonl") if event.get("event") == "checkpoint"]
    if steps:
        what = f"the checkpoint of step {steps[-1]}, of which metrics.jsonl tells, is gone"
        raise ArtifactError(f"{folder / 'checkpoints'}: {what}. Put it back, or start anew with --overwrite.")


def state_of(checkpoint: Path, plan: Plan, listener: Listener) -> TrainState:
    """The state in a good checkpoint. It forgets a best step whose checkpoint is no longer there.

    That is so where a later step had been the best, and its checkpoint was damaged: it will be the best again.

    Raises:
        ArtifactError: it is no state; or the best checkpoint is damaged, so that the run could make its steps but not
            its artefact.
    """
    path = checkpoint / "state.json"
    try:
        state = TrainState.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: is no state of a run: {str(error).splitlines()[0]}. It is damaged.") from error
    step = stopping.model_step(state, plan)
    best = checkpoint.parent / f"step_{step:06d}"
    if step == state.step:
        return state
    if not best.exists():
        listener.warn(f"the best so far, step {step}, is no longer there: the best from step {state.step} on is kept")
        return state.model_copy(update={"best_loss": None, "best_step": None, "within_step": None})
    try:
        verify(best)
    except ArtifactError as error:
        advice = "Delete its folder to take the best of the steps that follow, or start anew with --overwrite"
        raise ArtifactError(f"{error}\n{best} is the best so far, what model/ is made of. {advice}.") from error
    return state
