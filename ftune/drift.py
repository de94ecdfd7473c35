"""May this recipe go on in this run folder? Every difference is named with its place, old and new value.

What shapes the weights must be the same; what only decides how long, how often measured, or where shown may change.
Paths are judged by what is in the files: tokens and base weights have fingerprints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftune.data.read import files_of, fingerprint
from ftune.disk import as_disk_error
from ftune.errors import ArtifactError, Problem, RecipeError
from ftune.hook import is_hook, module_file
from ftune.load import Loaded
from ftune.quantities import is_share
from ftune.recipe import Recipe, sources

FREE = (
    "train.duration", "train.max_minutes", "train.early_stopping", "train.max_skipped_steps", "train.micro_batch_size",
    "train.activation_checkpointing", "train.compile", "data.packing", "data.max_dropped", "eval.every", "eval.metrics",
    "eval.generate_every", "eval.max_new_tokens", "eval.shots", "eval.guard", "checkpoint", "tracking", "output_dir",
    "distributed",
)  # fmt: skip
"""Keys that may change between starts of one run."""
BY_CONTENT = (
    "model.name", "model.revision", "data.train", "data.eval", "data.test", "data.near_duplicates", "data.leakage",
)  # fmt: skip
"""Keys whose content is compared by fingerprint, not by spelling."""
OURS = {
    "recipe.yaml", "resolved.json", "plan.json", "run.json", "metrics.jsonl", "log.txt", "checkpoints", "model",
    "merged", "report.md", "report.json", "report.html", "loss.png", "training.png", "data.png", "confusion_eval.png",
    "confusion_test.png", "predictions_eval.jsonl", "predictions_test.jsonl", "resamples.json", "prompted.json",
    "tracking", "profile", ".lock", ".lock.json",
}  # fmt: skip
"""Everything that a run writes into its folder."""
_HEAD = {"recipe.yaml", "resolved.json", "plan.json", ".lock", ".lock.json"}
"""What of it may be there without `run.json`, after a kill at the very start."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        path = f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{path}.")
        elif before != after:
            yield path, before, after


def is_free(path: str) -> bool:
    """Whether `path` may change between starts of one run."""
    return any(path == key or path.startswith(f"{key}.") for key in FREE)


def refuse_foreign_folder(folder: Path, text: str) -> None:
    """A folder with files that no run wrote is not ours to fill.

    Args:
        folder: where a run would be.
        text: of the recipe. Another `recipe.yaml` that lies there alone is somebody's own.

    Raises:
        RecipeError: it is not empty and not a run.
        DiskError: it cannot be looked at.
    """
    with as_disk_error(folder):
        if folder.exists() and not folder.is_dir():
            raise RecipeError([Problem("output_dir", f"{folder} is a file. Choose another name.")])
        if not folder.is_dir():
            return
        if links := sorted(path.name for path in folder.iterdir() if path.name in OURS and path.is_symlink()):
            message = (
                f"{folder / links[0]} is a link. A run writes no links, and through none: put the true file there."
            )
            raise RecipeError([Problem("output_dir", message)])
        if (folder / "run.json").is_file():
            return
        names = {path.name for path in folder.iterdir()}
        foreign = {name for name in names - _HEAD if not name.startswith((".tmp-", ".trash-"))}
        if names == {"recipe.yaml"} and (folder / "recipe.yaml").read_bytes() != text.encode():
            foreign = names
    if foreign:
        message = (
            f"{folder} holds files that are no run ({', '.join(sorted(foreign)[:3])}). Choose an empty or new folder."
        )
        raise RecipeError([Problem("output_dir", message)])


def refuse_drift(folder: Path, loaded: Loaded, fingerprints: dict[str, str]) -> None:
    """Compare a new start with the run that is in `folder`.

    Args:
        folder: the run.
        loaded: the recipe as it is now.
        fingerprints: of train and eval tokens and of the base, now.

    Raises:
        ArtifactError: naming each key with its place, old and new value, and each content that changed.
    """
    stored = _read(folder / "resolved.json")
    run = _read(folder / "run.json")
    lines = [
        f"{key} ({loaded.source(key)}): the run has {before!r}, the recipe now says {after!r}."
        for key, before, after in differences(stored["recipe"], loaded.recipe.model_dump(mode="json"))
        if not is_free(key) and key not in BY_CONTENT
    ]
    if not lines:
        lines = [
            f"{what}: what the run {'learned' if what == 'data.train' else 'was measured'} from has changed "
            f"(was {run['fingerprints'].get(what, 'none')[:23]}, is {now[:23]})."
            for what, now in fingerprints.items()
            if run["fingerprints"].get(what, "none") != now
        ]
    if lines:
        raise ArtifactError(
            "\n".join(
                [
                    f"{folder}: belongs to a run that differs from this recipe:",
                    *(f"  {line}" for line in lines),
                    "Nothing was touched. Undo the change, choose another output_dir, or start anew with --overwrite.",
                ]
            )
        )


def is_complete(folder: Path, loaded: Loaded) -> bool:
    """Whether the run in `folder` is finished and exactly what the recipe asks for. Imports nothing heavy."""
    needed = ("report.json", "resolved.json", "run.json", "model/MANIFEST.json")
    if not all((folder / name).is_file() for name in needed):
        return False
    stored, run = _read(folder / "resolved.json"), _read(folder / "run.json")
    if stored["recipe"] != loaded.recipe.model_dump(mode="json") or stored["folder"] != str(loaded.folder.absolute()):
        return False
    if _read(folder / "report.json").get("finished") == "max_minutes":
        return False
    return bool(run["files"] == data_files(loaded.recipe, loaded.folder))


def data_files(recipe: Recipe, folder: Path) -> dict[str, str]:
    """SHA-256 of every local data file of a recipe and of its own metrics' modules, by path."""
    found: dict[str, str] = {}
    parts = [recipe.data.train, recipe.data.test, *([recipe.eval.guard] if recipe.eval.guard else [])]
    parts += [] if is_share(recipe.data.eval) else [recipe.data.eval]
    for part in parts:
        for source in sources(part):
            found.update(fingerprint([file.resolve() for file in files_of(source, folder)]))
    own = [] if recipe.eval.metrics == "auto" else [name for name in recipe.eval.metrics if is_hook(name)]
    modules = [file.resolve() for name in own if (file := module_file(name, folder)) is not None]
    return {**found, **fingerprint(modules)}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}. Start anew with --overwrite.") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: expected an object. Start anew with --overwrite.")
    return values
