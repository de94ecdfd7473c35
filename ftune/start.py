"""Where weights come from before a method is attached, and what an artefact says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftune.base import Base, at_commit, find_base, load_config, load_tokenizer
from ftune.base import fingerprint_of as base_fingerprint
from ftune.errors import ArtifactError, NotMergeable
from ftune.hook import hooks_in, module_file, source_of
from ftune.load import parse_recipe
from ftune.manifest import MANIFEST, sha256_of, verify
from ftune.methods import Method
from ftune.model import cast_weights, load_model, with_new_head
from ftune.objectives import Head
from ftune.recipe import Model, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SIDECAR = "ftune.json"
"""Beside the weights of every artefact: the recipe, the base and its fingerprint."""


@dataclass(frozen=True)
class Start:
    """Where weights come from before a method is attached.

    Args:
        base: the model that is loaded.
        tokenizer_base: where the tokenizer is.
        adapter: an adapter to merge into the base, of a run that is continued from.
        record: what that adapter says of itself.
        underneath: the start of that run.
    """

    base: Base
    tokenizer_base: Base
    adapter: Path | None = None
    record: Record | None = None
    underneath: Start | None = None

    def fingerprint(self) -> str:
        """Identity of the weights, adapter included."""
        if self.adapter is None or self.underneath is None:
            return base_fingerprint(self.base, load_config(self.base))
        return f"{self.underneath.fingerprint()}+{sha256_of(self.adapter / MANIFEST)}"


@dataclass(frozen=True)
class Record:
    """What an artefact or a run says of itself.

    Args:
        recipe: all of it.
        folder: where its paths start from.
        base_fingerprint: identity of the base.
        labels: of its classification head.
    """

    recipe: Recipe
    folder: Path
    base_fingerprint: str
    labels: tuple[str, ...] = ()

    def head(self, tokenizer: PreTrainedTokenizerBase) -> Head:
        """What its model ends in."""
        return self.recipe.learner.base_head(self.recipe.objective.head(self.labels, pad_id_of(tokenizer)))


def is_artefact(folder: Path) -> bool:
    """Whether ftune wrote this model folder; one file of the two is enough, as the other may have been lost."""
    return (folder / SIDECAR).is_file() or (folder / MANIFEST).is_file()


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad id, else EOS, else 0: the vocabulary never grows for a pad."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if found is not None:
            return int(cast("int", found))
    raise AssertionError("unreachable")


def start_of(model: Model, folder: Path, fingerprint: str = "") -> Start:
    """The start that `model:` of a recipe names; a finished run counts with its result.

    Args:
        model: the block.
        folder: the recipe's.
        fingerprint: of the base as it was recorded; a hub model is then taken at the commit it names.

    Raises:
        ArtifactError: the run is not finished, or what ftune wrote there is damaged.
        NotMergeable: it is of a method whose result is no plain model.
    """
    run = folder / model.name
    if not (run / "run.json").is_file():
        base = at_commit(find_base(model, folder), fingerprint)
        if is_artefact(run):
            verify(run)
        return Start(base, base)
    result = run / "model"
    verify(result)
    record = read_record(result / SIDECAR)
    own = Base(model.name, "folder", str(result.resolve()))
    if record.recipe.learner.standalone:
        return Start(own, own)
    if not record.recipe.learner.mergeable:
        raise NotMergeable(
            f"{run}: method {record.recipe.learner.name} cannot be merged into its base, so its result cannot be the "
            "start of another run. Name its base model, or a run of a method that merges (`ftune methods`)."
        )
    below = start_of(record.recipe.model, record.folder, record.base_fingerprint)
    return Start(below.base, own, result, record, below)


def load_start(
    start: Start, head: Head, dtype: torch.dtype, seed: int, method: Method | None = None
) -> PreTrainedModel:
    """Weights before `method` is attached, in `dtype`."""
    if start.adapter is None or start.record is None or start.underneath is None:
        return load_model(start.base, head, dtype, seed, method=method)
    import torch

    before, own_head = start.record.recipe.learner, start.record.head(load_tokenizer(start.tokenizer_base))
    below = load_start(start.underneath, own_head, torch.float32, seed, before)
    merged = before.merge(before.load(below, start.adapter))
    merged.config._name_or_path = str(start.adapter)
    if own_head != head:
        merged = with_new_head(merged, head, seed)
    if method is not None:
        method.quantise(merged, dtype)
    cast_weights(merged, dtype)
    return merged.eval().requires_grad_(False)


def read_record(path: Path) -> Record:
    """Read a sidecar or the `resolved.json` of a run.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        folder = Path(stored["folder"])
        _refuse_own_code(stored["recipe"], folder, path)
        recipe, problems = parse_recipe(stored["recipe"])
        folder, fingerprint = Path(stored["folder"]), str(stored["base_fingerprint"])
        labels = tuple(map(str, stored["labels"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"{path}: cannot be read: {error}. The folder is no artefact of ftune, or damaged."
        raise ArtifactError(message) from error
    if recipe is None or problems:
        raise ArtifactError(f"{path}: holds a recipe this version cannot read: {problems[0]}")
    return Record(recipe, folder, fingerprint, labels)


def _refuse_own_code(recipe: dict[str, Any], folder: Path, path: Path) -> None:
    """An artefact names code, but brings none along: what it names must have been on this machine without it.

    Raises:
        ArtifactError: a module that it names is in the artefact, or would be looked for wherever we happen to be.
    """
    root = path.resolve().parent
    root = root.parent if (root.parent / "run.json").is_file() else root
    if not folder.is_absolute():
        raise ArtifactError(f"{path}: names the folder {str(folder)!r}, which is not absolute. It is damaged.")
    plugins = [recipe.get(key) for key in ("method", "objective")]
    named = [block.get("name") if isinstance(block, dict) else block for block in plugins]
    files = [source_of(name) for name in named if isinstance(name, str) and "." in name]
    files += [module_file(hook, folder) for hook in hooks_in(recipe)]
    for file in files:
        if file is not None and file.resolve().is_relative_to(root):
            message = f"asks for code that came with it, {file}, which does not run. Name it in a recipe of yours."
            raise ArtifactError(f"{path}: {message}")


def record_json(record: Record) -> dict[str, Any]:
    """What `read_record` reads."""
    return {
        "format": 1,
        "recipe": record.recipe.model_dump(mode="json"),
        "folder": str(record.folder.absolute()),
        "base_fingerprint": record.base_fingerprint,
        "labels": list(record.labels),
    }


def checked_start(record: Record, path: Path) -> Start:
    """The base an artefact was trained on.

    Raises:
        ArtifactError: the weights there are not the ones it was trained on.
    """
    start = start_of(record.recipe.model, record.folder, record.base_fingerprint)
    found = start.fingerprint()
    if found != record.base_fingerprint:
        raise ArtifactError(
            f"{path}: was trained on base weights {record.base_fingerprint}, but {record.recipe.model.name} now has "
            f"{found}. Put the original model back, or train again."
        )
    return start
