"""Recipe in, everything decided out: base, tokenizer, data, facts, plan. Loads no weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftune import methods, objectives
from ftune.attention import packing_refusal
from ftune.base import family_of, limit_of, load_config, load_tokenizer
from ftune.data.build import Dataset, build_data
from ftune.data.cache import Cache, cache_root
from ftune.data.order import Draw
from ftune.data.render import Renderer
from ftune.data.samples import Tick
from ftune.decide import choose_max_length, make_plan
from ftune.errors import Problem, RecipeError
from ftune.facts import Facts, facts_of_data, look_at_machine
from ftune.load import Loaded
from ftune.loss_trial import chunking_refusal
from ftune.metrics.custom import RowScores, load_metrics
from ftune.model import auto_class, look_at_model, with_head
from ftune.objectives import Head
from ftune.optim import check_packages
from ftune.plan import Plan
from ftune.recipe import Recipe
from ftune.start import Record, Start, read_record, start_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """Rows as they enter the model, and what made them so; no weights were looked at."""

    start: Start
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    max_length: int
    renderer: Renderer
    dataset: Dataset
    draw: Draw | None

    @property
    def family(self) -> str:
        """Of the model."""
        return family_of(self.config)


@dataclass(frozen=True)
class Prepared:
    """All that a run needs besides weights.

    `draw` hides parts of examples where the objective does that; `functions` are the metrics of the user's own.
    """

    start: Start
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    dataset: Dataset
    draw: Draw | None
    record: Record
    facts: Facts
    plan: Plan
    functions: dict[str, RowScores]


def prepare(loaded: Loaded, tick: Tick, run: Path | None = None) -> Prepared:
    """Look at machine, model and data, and make the plan.

    Args:
        loaded: the recipe.
        tick: hears of progress; may raise to stop.
        run: a folder that may hold a run to go on with: a hub model is then taken at the commit that the run has.

    Raises:
        RecipeError, DataError, MachineError, MetricError: what was asked cannot be done here.
    """
    recipe = loaded.recipe
    functions = load_metrics([] if recipe.eval.metrics == "auto" else recipe.eval.metrics, loaded.folder)
    rows = prepare_data(loaded, tick, run)
    start, tokenizer = rows.start, rows.tokenizer
    fingerprint = start.fingerprint()
    record = Record(recipe, loaded.folder, fingerprint, rows.dataset.labels)
    tick("counting parameters", 0, 0)
    method = recipe.learner.bound(recipe.objective)
    head = record.head(tokenizer)
    model = look_at_model(start.base, head, method, tokenizer, fingerprint)
    model = replace(
        model,
        packing_refusal=_packing_refusal(recipe, rows.config, head),
        chunking_refusal=loss_refusal(recipe, rows.config, head, tokenizer),
    )
    machine = look_at_machine(loaded.output_dir)
    facts = Facts(machine, model, facts_of_data(rows.dataset))
    plan = make_plan(recipe, facts, loaded.source)
    check_packages(plan.optimizer)
    train = rows.dataset.train
    if train.mix is not None:
        train.report.notes += train.mix.unseen_notes(plan.seed, plan.steps, plan.batch_size)
    return Prepared(start, tokenizer, rows.renderer, rows.dataset, rows.draw, record, facts, plan, functions)


def prepare_data(loaded: Loaded, tick: Tick, run: Path | None = None) -> PreparedData:
    """Read, render and encode the rows of a recipe; of the model, configuration and tokenizer are enough.

    Raises:
        RecipeError, DataError, MachineError: what was asked cannot be done here.
    """
    recipe = loaded.recipe
    start = start_of(recipe.model, loaded.folder, _recorded_base(recipe, run))
    tokenizer = load_tokenizer(start.tokenizer_base)
    recipe.learner.prepare_tokenizer(tokenizer)
    config = load_config(start.base)
    family = family_of(config)
    refuse_family(recipe, family)
    max_length, _ = choose_max_length(recipe, limit_of(config))
    renderer = Renderer(tokenizer, recipe.data.template, system=recipe.data.system)
    dataset = build_data(
        recipe.data,
        loaded.folder,
        renderer,
        recipe.objective,
        accepted=recipe.formats,
        guard=recipe.eval.guard,
        max_length=max_length,
        seed=recipe.data_seed,
        max_eval_rows=recipe.eval.max_rows,
        encoder_decoder=family == "encoder_decoder",
        tick=tick,
        cache=Cache(cache_root(os.environ, Path.home())),
    )
    draw = recipe.objective.drawer(tokenizer) if dataset.train.hides else None
    return PreparedData(start, tokenizer, config, max_length, renderer, dataset, draw)


def _recorded_base(recipe: Recipe, run: Path | None) -> str:
    """The fingerprint of the base of a run that names the same model; empty where there is none."""
    if run is None or not (run / "resolved.json").is_file():
        return ""
    record = read_record(run / "resolved.json")
    return record.base_fingerprint if record.recipe.model == recipe.model else ""


def _packing_refusal(recipe: Recipe, config: PreTrainedConfig, head: Head) -> str | None:
    """Why rows cannot be laid end to end, or None. Nothing is tried where the recipe does not want it."""
    if recipe.data.packing is False:
        return "data.packing is false"
    if not recipe.objective.packs:
        return f"objective {recipe.objective.name} reads rows side by side"
    if (reason := recipe.learner.packing_constraint()) is not None:
        return reason
    config = with_head(config, head)
    return packing_refusal(config, auto_class(head, config))


def loss_refusal(
    recipe: Recipe, config: PreTrainedConfig, head: Head, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Why losses cannot be had from the logits of a few targets at a time, or None."""
    if not recipe.objective.predicts_tokens:
        return f"objective {recipe.objective.name} has no outputs over the vocabulary"
    method = recipe.learner.bound(recipe.objective)
    return chunking_refusal(config, auto_class(head, config), recipe.objective, method, tokenizer)


def refuse_family(recipe: Recipe, family: str) -> None:
    """Check that the model is of a kind that method and objective work on.

    Raises:
        RecipeError: it is not; names what would work.
    """
    objective, method, name = recipe.objective, recipe.learner, recipe.model.name
    kind = family.replace("_", "-")
    if family not in objective.families:
        fitting = [o for o in objectives.names() if family in objectives.load(o).families and o in method.objectives]
        message = f"{objective.name} is not for {kind}s, and {name} is one. It works with: {', '.join(fitting)}."
        raise RecipeError([Problem("objective.name", message)])
    reason = method.refusal(objective.name, family)
    if reason is not None:
        fitting = [
            m for m in methods.names()
            if objective.name in methods.load(m).objectives and methods.load(m).refusal(objective.name, family) is None
        ]  # fmt: skip
        message = f"{method.name} does not do {objective.name} on {kind}s: {reason}. These do: {', '.join(fitting)}."
        raise RecipeError([Problem("method.name", message)])


def output_dir_of(loaded: Loaded) -> Path:
    """The run folder, absolute."""
    return loaded.output_dir.absolute()
