"""`eval.shots`: what the untrained base model says of held-out rows with training rows in its prompt, beside a run.

It is scored once, before training, so that prompts that do not fit are known before any time is spent. What is found
stays in `prompted.json` of the run folder.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.as_language_model import Asked, open_base
from ftune.drift import data_files
from ftune.errors import Problem, RecipeError
from ftune.few_shot import score_shots
from ftune.load import Loaded
from ftune.plan import Plan
from ftune.run_files import PROMPTED
from ftune.scoring import SplitName

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ftune.data.samples import Tick
    from ftune.store import Store

Scores = dict[str, dict[str, dict[str, Any]]]
"""By split, then by number of shots as text, then by metric: value and interval."""


def score_base(loaded: Loaded, plan: Plan, fingerprint: str, disk: Store, accelerator: Accelerator, tick: Tick) -> None:
    """Score the base model, unless the same scores are there. Every process does; the first one writes.

    Args:
        loaded: names numbers of shots; without any, what an earlier start left is removed.
        plan: of the run.
        fingerprint: of the base weights.
        disk: the run folder.
        accelerator: device and precision.
        tick: hears of progress; may raise to stop.

    Raises:
        RecipeError: the base model continues no prompt.
        DataError: prompts do not fit into it, or there are too few rows to show.
    """
    shots = tuple(loaded.recipe.eval.shots)
    identity = _identity(loaded, fingerprint)
    known = _known(disk.root, identity)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if not shots:
        if accelerator.is_main_process:
            disk.remove(PROMPTED)
        return
    if known:
        return
    scores = _scored(loaded, plan, Asked(shots), accelerator, tick)
    if accelerator.is_main_process:
        disk.write_json(PROMPTED, {"of": identity, "scores": scores})


def _splits(loaded: Loaded) -> list[SplitName]:
    data = loaded.recipe.data
    splits: list[SplitName] = ["eval"] if data.eval is not None else []
    return [*splits, "test"] if data.test is not None else splits


def _scored(loaded: Loaded, plan: Plan, asked: Asked, accelerator: Accelerator, tick: Tick) -> Scores:
    def of_split(split: SplitName) -> dict[str, dict[str, Any]]:
        found = score_shots(
            target, formats, asked, path=loaded.path, split=split, data_file=None, metrics=None, max_rows=None,
            batch_size=plan.eval_batch_size, accelerator=accelerator, tick=tick,
        )  # fmt: skip
        return {str(one.shots): {name: score.to_json() for name, score in one.metrics.items()} for one in found}

    try:
        tick("loading the base model", 0, 0)
        target, formats = open_base(loaded, asked)
        return {split: of_split(split) for split in _splits(loaded)}
    except RecipeError as error:  # which speaks of the command line
        where = loaded.source("eval.shots")
        raise RecipeError([Problem("eval.shots", problem.message, where) for problem in error.problems]) from error


def _known(folder: Path, identity: str) -> bool:
    """Whether scores of this model, these rows and these numbers of shots are there."""
    try:
        found = json.loads((folder / PROMPTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("of") == identity


def _identity(loaded: Loaded, fingerprint: str) -> str:
    """Digest of all that the scores depend on."""
    recipe = loaded.recipe
    evaluation = recipe.eval.model_dump(mode="json", include={"shots", "metrics", "max_rows", "max_new_tokens"})
    rest = recipe.model_dump(mode="json", include={"objective", "data", "seed"})
    known = [fingerprint, evaluation, rest, data_files(recipe, loaded.folder)]
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
