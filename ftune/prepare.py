"""Recipe in, everything decided out: base, tokenizer, data, facts, plan. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftune.data.build import Dataset, Tick, build_data
from ftune.data.render import Renderer
from ftune.facts import Facts, facts_of_data, look_at_machine
from ftune.load import Loaded
from ftune.model import limit_of, load_config, load_tokenizer, look_at_model
from ftune.plan import Plan, choose_max_length, make_plan
from ftune.target import Start, start_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """All that a run needs besides weights."""

    start: Start
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    dataset: Dataset
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
    recipe.method.prepare_tokenizer(tokenizer)
    config = load_config(start.base)
    max_length, _ = choose_max_length(recipe, limit_of(config))
    renderer = Renderer(tokenizer, recipe.data.template)
    dataset = build_data(
        recipe.data,
        loaded.folder,
        renderer,
        max_length=max_length,
        seed=recipe.seed,
        max_eval_rows=recipe.eval.max_rows,
        tick=tick,
    )
    tick("counting parameters", 0, 0)
    model = look_at_model(start.base, recipe.objective.auto_class, recipe.method, tokenizer, start.fingerprint())
    machine = look_at_machine(loaded.output_dir)
    facts = Facts(machine, model, facts_of_data(dataset))
    return Prepared(start, tokenizer, renderer, dataset, facts, make_plan(recipe, facts, loaded.source))


def output_dir_of(loaded: Loaded) -> Path:
    """The run folder, absolute."""
    return loaded.output_dir.absolute()
