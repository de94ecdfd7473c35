"""Recipe in, everything decided out: base, tokenizer, data, facts, plan. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftune import methods, objectives
from ftune.base import family_of, limit_of, load_config, load_tokenizer
from ftune.data.build import Dataset, Tick, build_data
from ftune.data.order import Draw
from ftune.data.render import Renderer
from ftune.errors import Problem, RecipeError
from ftune.facts import Facts, facts_of_data, look_at_machine
from ftune.load import Loaded
from ftune.model import look_at_model
from ftune.plan import Plan, choose_max_length, make_plan
from ftune.recipe import Recipe
from ftune.start import Record, Start, start_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """All that a run needs besides weights; `draw` hides parts of examples where the objective does that."""

    start: Start
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    dataset: Dataset
    draw: Draw | None
    record: Record
    facts: Facts
    plan: Plan


def prepare(loaded: Loaded, tick: Tick) -> Prepared:
    """Look at machine, model and data, and make the plan.

    Raises:
        RecipeError, DataError, MachineError: what was asked cannot be done here.
    """
    recipe = loaded.recipe
    start = start_of(recipe.model, loaded.folder)
    tokenizer = load_tokenizer(start.tokenizer_base)
    recipe.learner.prepare_tokenizer(tokenizer)
    config = load_config(start.base)
    family = family_of(config)
    refuse_family(recipe, family)
    max_length, _ = choose_max_length(recipe, limit_of(config))
    renderer = Renderer(tokenizer, recipe.data.template)
    dataset = build_data(
        recipe.data,
        loaded.folder,
        renderer,
        recipe.objective,
        accepted=recipe.formats,
        guard=recipe.eval.guard,
        max_length=max_length,
        seed=recipe.seed,
        max_eval_rows=recipe.eval.max_rows,
        encoder_decoder=family == "encoder_decoder",
        tick=tick,
    )
    fingerprint = start.fingerprint()
    record = Record(recipe, loaded.folder, fingerprint, dataset.labels)
    draw = recipe.objective.drawer(tokenizer) if dataset.train.hides else None
    tick("counting parameters", 0, 0)
    method = recipe.learner.bound(recipe.objective)
    model = look_at_model(start.base, record.head(tokenizer), method, tokenizer, fingerprint)
    machine = look_at_machine(loaded.output_dir)
    facts = Facts(machine, model, facts_of_data(dataset))
    plan = make_plan(recipe, facts, loaded.source)
    if dataset.train.mix is not None:
        dataset.train.report.notes += dataset.train.mix.unseen_notes(plan.seed, plan.steps, plan.batch_size)
    return Prepared(start, tokenizer, renderer, dataset, draw, record, facts, plan)


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
