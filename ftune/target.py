"""TARGET of a verb: a run folder, a checkpoint, a model folder that ftune wrote, any model folder, or a recipe."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftune.base import Base, family_of, find_base, load_config, load_tokenizer
from ftune.data.cache import Cache, cache_root
from ftune.data.order import derived_seed
from ftune.data.render import Renderer
from ftune.data.samples import read_samples
from ftune.errors import ArtifactError, MachineError, Problem, RecipeError
from ftune.load import Loaded, load_recipe
from ftune.manifest import verify
from ftune.model import load_model, load_trainable, read_weights
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.seq2seq_lm import Seq2SeqLM
from ftune.plan import Plan
from ftune.recipe import Model
from ftune.start import (
    SIDECAR,
    Record,
    Start,
    checked_start,
    is_artefact,
    load_start,
    pad_id_of,
    read_record,
    start_of,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SETTLED = "settled.json"
"""In a checkpoint: what the method settled on before the first step, where it does that."""


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
    if is_artefact(path):
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
        return open_recipe(path, load_recipe(path, overrides), dtype)
    if kind == "run":
        if not (path / "model").is_dir():
            raise ArtifactError(f"{path}: the run is not finished. Go on with the command that started it.")
        return _open_artefact(path, kind, path / "model", Plan.of_run(path), dtype)
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


def open_recipe(path: Path, loaded: Loaded, dtype: torch.dtype | None) -> Target:
    """The base model of a recipe, ending in the head of its objective; `dtype` None is fp32."""
    import torch

    recipe = loaded.recipe
    start = start_of(recipe.model, loaded.folder)
    record = Record(recipe, loaded.folder, start.fingerprint(), _labels_of(loaded))
    tokenizer = load_tokenizer(start.tokenizer_base)
    head = recipe.objective.head(record.labels, pad_id_of(tokenizer))
    model = load_start(start, head, dtype or torch.float32, recipe.seed)
    return _assembled(path, "recipe", model, tokenizer, record, None)


def _labels_of(loaded: Loaded) -> tuple[str, ...]:
    """Labels of the recipe's training rows, where its objective has any."""
    recipe = loaded.recipe
    if recipe.objective.encoding not in ("row_labels", "token_labels"):
        return ()
    samples = read_samples(
        recipe.data,
        loaded.folder,
        accepted=recipe.formats,
        seed=recipe.data_seed,
        max_eval_rows=1,
        tick=lambda *_: None,
        cache=Cache(cache_root(os.environ, Path.home())),
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
    elif (inside := recipe.learner.own_base) is not None:
        below = Base(str(path), "folder", str((folder / inside).resolve()))
        model = recipe.learner.load(load_model(below, head, chosen, recipe.seed, whole=True), folder)
    else:
        start = checked_start(record, path)
        base = load_start(start, head, chosen, recipe.seed, recipe.learner)
        model = recipe.learner.load(base, folder)
    return _assembled(path, kind, model, tokenizer, record, plan)


def _open_checkpoint(path: Path, dtype: torch.dtype | None) -> Target:
    from ftune.device import torch_dtype

    verify(path)
    run = path.parent.parent
    plan, record = Plan.of_run(run), read_record(run / "resolved.json")
    start = checked_start(record, run)
    tokenizer = load_tokenizer(start.tokenizer_base)
    record.recipe.learner.prepare_tokenizer(tokenizer)
    model = attached(start, record, tokenizer, dtype or torch_dtype(plan.frozen_dtype))
    load_trainable(model, read_weights(path / "weights.safetensors"))
    if (path / SETTLED).is_file():
        record.recipe.learner.put_back(model, json.loads((path / SETTLED).read_text(encoding="utf-8")))
    return _assembled(path, "checkpoint", model.eval(), tokenizer, record, plan)


def attached(start: Start, record: Record, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> torch.nn.Module:
    """The model as training begins: base weights, the method attached under the seed, fp32 for what learns."""
    import torch

    recipe = record.recipe
    model = load_start(start, record.head(tokenizer), dtype, recipe.seed, recipe.learner)
    torch.manual_seed(derived_seed("attach", recipe.seed))
    module = recipe.learner.bound(recipe.objective).attach(model, tokenizer)
    for parameter in module.parameters():
        if parameter.requires_grad:
            # laid out plainly: fused optimizers read weights and their state side by side in memory
            parameter.data = parameter.data.float().contiguous()
    return module


def _assembled(
    path: Path,
    kind: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    record: Record | None,
    plan: Plan | None,
) -> Target:
    if record is None:
        renderer = Renderer(tokenizer, None)
    else:
        renderer = Renderer(tokenizer, record.recipe.data.template, system=record.recipe.data.system)
    return Target(path, kind, model.eval(), tokenizer, renderer, record, plan)
