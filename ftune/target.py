"""TARGET of a verb: a run folder, a checkpoint, a model folder that ftune wrote, any model folder, or a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftune.data.build import read_samples
from ftune.data.order import derived_seed
from ftune.data.render import Renderer
from ftune.errors import ArtifactError, MachineError, Problem, RecipeError
from ftune.load import Loaded, load_recipe, parse_recipe
from ftune.manifest import MANIFEST, sha256_of, verify
from ftune.model import (
    Base,
    cast_weights,
    family_of,
    find_base,
    load_config,
    load_model,
    load_tokenizer,
    load_trainable,
    reloaded,
)
from ftune.model import fingerprint_of as base_fingerprint
from ftune.objectives import Head
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.seq2seq_lm import Seq2SeqLM
from ftune.plan import Plan
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
        return self.recipe.objective.head(self.labels, pad_id_of(tokenizer))


@dataclass(frozen=True)
class Target:
    """A model that is ready to be scored or to generate.

    Args:
        path: as given.
        kind: what it turned out to be.
        model: in evaluation mode.
        tokenizer, renderer: as in training.
        record: its recipe, or None for a plain model folder.
        plan: of the run it belongs to, if any.
    """

    path: Path
    kind: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    record: Record | None
    plan: Plan | None

    @property
    def pad_id(self) -> int:
        """Id to fill short rows with; never told apart by its value."""
        return pad_id_of(self.tokenizer)


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad id, else EOS, else 0: the vocabulary never grows for a pad."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if found is not None:
            return int(cast("int", found))
    raise AssertionError("unreachable")


def start_of(model: Model, folder: Path) -> Start:
    """The start that `model:` of a recipe names; a finished run counts with its result.

    Raises:
        ArtifactError: the run is not finished or damaged.
    """
    run = folder / model.name
    if not (run / "run.json").is_file():
        base = find_base(model, folder)
        return Start(base, base)
    result = run / "model"
    verify(result)
    record = read_record(result / SIDECAR)
    own = Base(model.name, "folder", str(result.resolve()))
    if record.recipe.learner.standalone:
        return Start(own, own)
    below = start_of(record.recipe.model, record.folder)
    return Start(below.base, own, result, record, below)


def load_start(
    start: Start, head: Head, dtype: torch.dtype, seed: int, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Weights before the method is attached, in `dtype`; `options` are of the method."""
    if start.adapter is None or start.record is None or start.underneath is None:
        return load_model(start.base, head, dtype, seed, options=options)
    import torch

    method, own_head = start.record.recipe.learner, start.record.head(load_tokenizer(start.tokenizer_base))
    below = load_start(start.underneath, own_head, torch.float32, seed, method.load_options(torch.float32))
    merged = method.merge(method.load(below, start.adapter))
    merged.config._name_or_path = str(start.adapter)
    cast_weights(merged, dtype)
    if options or own_head != head:
        return reloaded(merged, head, dtype, seed, options)
    return merged.eval().requires_grad_(False)


def read_record(path: Path) -> Record:
    """Read a sidecar or the `resolved.json` of a run.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recipe, problems = parse_recipe(stored["recipe"])
        folder, fingerprint = Path(stored["folder"]), str(stored["base_fingerprint"])
        labels = tuple(map(str, stored["labels"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: cannot be read: {error}. The folder is no artefact of ftune, or damaged."
        raise ArtifactError(message) from error
    if recipe is None or problems:
        raise ArtifactError(f"{path}: holds a recipe this version cannot read: {problems[0]}")
    return Record(recipe, folder, fingerprint, labels)


def record_json(record: Record) -> dict[str, Any]:
    """What `read_record` reads."""
    return {
        "format": 1,
        "recipe": record.recipe.model_dump(mode="json"),
        "folder": str(record.folder.absolute()),
        "base_fingerprint": record.base_fingerprint,
        "labels": list(record.labels),
    }


def kind_of(path: Path) -> str:
    """`recipe`, `run`, `checkpoint`, `artefact` (written by ftune) or `model` (any other model folder).

    Raises:
        MachineError: there is nothing of the kind.
    """
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return "recipe"
    if (path / "run.json").is_file():
        return "run"
    if (path.parent.parent / "run.json").is_file() and path.parent.name == "checkpoints":
        return "checkpoint"
    if (path / SIDECAR).is_file():
        return "artefact"
    if (path / "config.json").is_file():
        return "model"
    what = "there is no such file or folder" if not path.exists() else "is no run, checkpoint, model folder or recipe"
    raise MachineError(f"{path}: {what}. Name a run such as runs/quickstart, a model folder, or a recipe.")


def open_target(path: Path, dtype: torch.dtype | None = None, overrides: tuple[str, ...] = ()) -> Target:
    """Load what `path` names.

    Args:
        path: TARGET.
        dtype: of the weights; None takes what the run used, or fp32.
        overrides: `--set` for a recipe.

    Raises:
        ArtifactError: it is damaged, unfinished, or its base has changed.
        MachineError: there is nothing there.
    """
    kind = kind_of(path)
    if overrides and kind != "recipe":
        message = f"has no effect on a {kind}, whose recipe is recorded. Name the recipe instead, or leave it out."
        raise RecipeError([Problem("", message, "--set")])
    if kind == "recipe":
        return _open_recipe(path, load_recipe(path, overrides), dtype)
    if kind == "run":
        if not (path / "model").is_dir():
            raise ArtifactError(f"{path}: the run is not finished. Go on with the command that started it.")
        return _open_artefact(path, kind, path / "model", _plan_of(path), dtype)
    if kind == "checkpoint":
        return _open_checkpoint(path, dtype)
    if kind == "artefact":
        return _open_artefact(path, kind, path, None, dtype)
    return _open_plain(path, dtype)


def _open_plain(path: Path, dtype: torch.dtype | None) -> Target:
    import torch

    base = find_base(Model(name=str(path.absolute())), Path())
    head = Seq2SeqLM().head((), 0) if family_of(load_config(base)) == "encoder_decoder" else CausalLM().head((), 0)
    model = load_model(base, head, dtype or torch.float32, seed=0)
    return _assembled(path, "model", model, load_tokenizer(base), None, None)


def _open_recipe(path: Path, loaded: Loaded, dtype: torch.dtype | None) -> Target:
    import torch

    recipe = loaded.recipe
    start = start_of(recipe.model, loaded.folder)
    record = Record(recipe, loaded.folder, start.fingerprint(), _labels_of(loaded))
    tokenizer = load_tokenizer(start.tokenizer_base)
    model = load_start(start, record.head(tokenizer), dtype or torch.float32, recipe.seed)
    return _assembled(path, "recipe", model, tokenizer, record, None)


def _labels_of(loaded: Loaded) -> tuple[str, ...]:
    """Labels of the recipe's training rows, where its objective has any."""
    recipe = loaded.recipe
    if recipe.objective.encoding not in ("row_labels", "token_labels"):
        return ()
    samples = read_samples(
        recipe.data, loaded.folder, accepted=recipe.formats, seed=recipe.seed, max_eval_rows=1, tick=lambda *_: None
    )
    return samples.labels


def _open_artefact(path: Path, kind: str, folder: Path, plan: Plan | None, dtype: torch.dtype | None) -> Target:
    import torch

    from ftune.device import torch_dtype

    verify(folder)
    record = read_record(folder / SIDECAR)
    recipe = record.recipe
    own = Base(str(path), "folder", str(folder.resolve()))
    tokenizer = load_tokenizer(own)
    head = record.head(tokenizer)
    plain = (folder / "config.json").is_file()
    chosen = dtype or (torch.float32 if plan is None else torch_dtype(plan.frozen_dtype))
    if plain:
        model: torch.nn.Module = load_model(own, head, chosen, recipe.seed, whole=True)
    else:
        start = checked_start(record, path)
        base = load_start(start, head, chosen, recipe.seed, recipe.learner.load_options(chosen))
        model = recipe.learner.load(base, folder)
    return _assembled(path, kind, model, tokenizer, record, plan)


def _open_checkpoint(path: Path, dtype: torch.dtype | None) -> Target:
    from safetensors.torch import load_file

    from ftune.device import torch_dtype

    verify(path)
    run = path.parent.parent
    plan, record = _plan_of(run), read_record(run / "resolved.json")
    start = checked_start(record, run)
    tokenizer = load_tokenizer(start.tokenizer_base)
    record.recipe.learner.prepare_tokenizer(tokenizer)
    model = attached(start, record, tokenizer, dtype or torch_dtype(plan.frozen_dtype))
    load_trainable(model, load_file(path / "weights.safetensors"))
    return _assembled(path, "checkpoint", model.eval(), tokenizer, record, plan)


def attached(start: Start, record: Record, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> torch.nn.Module:
    """The model as training begins: base weights, the method attached under the seed, fp32 for what learns."""
    import torch

    recipe = record.recipe
    model = load_start(start, record.head(tokenizer), dtype, recipe.seed, recipe.learner.load_options(dtype))
    torch.manual_seed(derived_seed("attach", recipe.seed))
    module = recipe.learner.attach(model, tokenizer)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return module


def checked_start(record: Record, path: Path) -> Start:
    """The base an artefact was trained on.

    Raises:
        ArtifactError: the weights there are not the ones it was trained on.
    """
    start = start_of(record.recipe.model, record.folder)
    found = start.fingerprint()
    if found != record.base_fingerprint:
        raise ArtifactError(
            f"{path}: was trained on base weights {record.base_fingerprint}, but {record.recipe.model.name} now has "
            f"{found}. Put the original model back, or train again."
        )
    return start


def _plan_of(run: Path) -> Plan:
    try:
        return Plan.from_json(json.loads((run / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{run / 'plan.json'}: cannot be read: {error}.") from error


def _assembled(
    path: Path,
    kind: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    record: Record | None,
    plan: Plan | None,
) -> Target:
    template = None if record is None else record.recipe.data.template
    return Target(path, kind, model.eval(), tokenizer, Renderer(tokenizer, template), record, plan)
