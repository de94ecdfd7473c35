"""How much disk a run needs at its peak: an estimate from shapes, within a tenth of what is measured in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftune.facts import ModelFacts
from ftune.memory import OPTIMIZER_STATES
from ftune.methods import Method
from ftune.recipe import Recipe

_BYTES = {"bfloat16": 2, "float16": 2}
_REPORT = 400_000
"""Pictures, pages and small files of a finished run; measured, most of it is there whatever the run is."""
_STEP = 540
"""A step in `metrics.jsonl` and `report.html`; measured."""


def checkpoint_bytes(recipe: Recipe, model: ModelFacts) -> int:
    """Weights that learn and their optimizer's state, which is none where a method fits at once."""
    states = 0.0 if recipe.learner.bound(recipe.objective).fits_at_once else OPTIMIZER_STATES[recipe.train.optimizer]
    return int(model.trainable_parameters * 4 * (1 + states))


def artefact_bytes(learner: Method, model: ModelFacts) -> int:
    """`model/`: what learned in fp32, with the body beside it where that is saved; whole models in the base's type."""
    if learner.standalone:
        weights = model.total_parameters * _BYTES.get(model.stored_dtype, 4)
    else:
        weights = 4 * (model.trainable_parameters if learner.own_base is None else model.total_parameters)
    return weights + model.tokenizer_bytes


def disk_need(recipe: Recipe, model: ModelFacts, plan: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes of the run folder when it is largest, and why.

    That is while a checkpoint is written beside those that are kept, or at the end, when `model/` and the report join
    them. The best checkpoint counts as one more than the newest; where it is among them the run needs less.

    Args:
        recipe: what was asked.
        model: its counts.
        plan: the fields of a plan that are decided already.
    """
    state, saves = checkpoint_bytes(recipe, model), _saves(plan)
    kept = plan["keep"] + (plan["best"] is not None)
    writing, ending = min(saves, kept + 1), min(saves, kept)
    log = plan["steps"] * _STEP
    at_end = ending * state + artefact_bytes(recipe.learner, model) + log + _REPORT
    if writing * state + log > at_end:
        return writing * state + log, f"{writing} checkpoints at most at one time"
    return at_end, f"{ending} checkpoint{'s' * (ending != 1)}, model/ and the report at the end"


def _saves(plan: Mapping[str, Any]) -> int:
    """Checkpoints that a whole run makes at most: when they are due, at its end, and with each new best evaluation."""
    steps: int = plan["steps"]
    cadences = [plan["checkpoint_every"]] if plan["best"] is None else [plan["checkpoint_every"], plan["eval_every"]]
    return len({steps}.union(*(range(cadence, steps, cadence) for cadence in cadences)))
