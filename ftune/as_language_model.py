"""Any target that `ftune eval --shots` can score, as a language model with the prompts that were asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ftune.base import family_of, find_base, load_config
from ftune.data.render import Renderer
from ftune.decide import choose_frozen_dtype, choose_precision
from ftune.device import torch_dtype
from ftune.errors import Problem, RecipeError
from ftune.facts import look_at_machine
from ftune.load import Loaded, load_recipe
from ftune.objectives.causal_lm import CausalLM
from ftune.options import DEFAULT_TEMPLATE, LABEL, OptionTexts
from ftune.recipe import Recipe
from ftune.scoring import open_scorable
from ftune.shots import Demonstrations
from ftune.target import Target, kind_of, open_recipe


@dataclass(frozen=True)
class Asked:
    """What the command line says about prompts.

    Args:
        shots: numbers of demonstrations, each scored by itself.
        demonstrations: how they are chosen.
        calibrate: subtract what the model says of options without content.
        template: of prompts, in place of the recipe's.
        options: what the options of a question are; None takes what suits the prompt.
    """

    shots: tuple[int, ...] = (0,)
    demonstrations: Demonstrations = "random"
    calibrate: bool = False
    template: str | None = None
    options: OptionTexts | None = None


def open_language_model(path: Path, overrides: tuple[str, ...], asked: Asked) -> tuple[Target, frozenset[str]]:
    """A language model that renders as was asked, and the formats of its rows.

    Raises:
        RecipeError: the target is none, and cannot be had as one.
    """
    if kind_of(path) != "recipe":
        target, record, _ = open_scorable(path, overrides)
        formats, recipe = record.recipe.formats, _as_language_model(record.recipe, path, asked, trained=True)
        if asked.template is None:
            return target, formats
        renderer = Renderer(target.tokenizer, recipe.data.template, system=recipe.data.system)
        return replace(target, record=replace(record, recipe=recipe), renderer=renderer), formats
    return open_base(load_recipe(path, overrides), asked)


def open_base(loaded: Loaded, asked: Asked) -> tuple[Target, frozenset[str]]:
    """The base model of a recipe, and the formats of its rows.

    Raises:
        RecipeError: it is no language model.
    """
    path, formats = loaded.path, loaded.recipe.formats
    if loaded.recipe.objective.name == "sequence_classification":
        _refuse_other_families(loaded.recipe, loaded.folder)
    loaded = replace(loaded, recipe=_as_language_model(loaded.recipe, path, asked, trained=False))
    precision, _ = choose_precision(loaded.recipe, look_at_machine(Path()))
    dtype, _ = choose_frozen_dtype(loaded.recipe, precision)
    return open_recipe(path, loaded, torch_dtype(dtype)), formats


def _as_language_model(recipe: Recipe, path: Path, asked: Asked, *, trained: bool) -> Recipe:
    """The recipe with the prompts that were asked for; of rows with a label, as a language model reads them."""
    objective, template = recipe.objective, asked.template or recipe.data.template
    if objective.name == "sequence_classification":
        if getattr(objective, "problem", "") != "single_label":
            raise _refused(path, "options are for rows with one label, and this recipe has another problem.")
        if trained:
            hint = f"Name its recipe, whose base model is a language model: ftune eval RECIPE --shots {_joined(asked)}"
            raise _refused(path, f"learned a head, which reads no prompt. {hint}")
        objective = CausalLM()
        template = asked.template or f"{recipe.data.template or DEFAULT_TEMPLATE}{LABEL}"
    elif not objective.generation_metrics:
        hint = "Few-shot prompts are for causal_lm, seq2seq_lm, and sequence_classification on a decoder."
        raise _refused(path, f"objective {objective.name} continues no prompt. {hint}")
    # the place of a system turn is a question of chats
    system = recipe.data.system if template == recipe.data.template else "template"
    data = recipe.data.model_copy(update={"template": template, "system": system})
    return recipe.model_copy(update={"objective": objective, "data": data})


def _refuse_other_families(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError unless the base model of a recipe with labels is a decoder."""
    if (folder / recipe.model.name / "run.json").is_file():
        return
    family = family_of(load_config(find_base(recipe.model, folder)))
    if family != "decoder":
        why = {
            "encoder": "an encoder guesses words from both sides and continues no prompt, so its labels have no "
            "likelihood after one",
            "encoder_decoder": "its decoder was not made to go on with a prompt of demonstrations and labels",
        }[family]
        message = f"{recipe.model.name}: {why}. Name a decoder: --set model=HuggingFaceTB/SmolLM2-135M"
        raise RecipeError([Problem("model.name", message, "--shots")])


def _refused(path: Path, message: str) -> RecipeError:
    return RecipeError([Problem("", f"{path}: {message}", "--shots")])


def _joined(asked: Asked) -> str:
    return ",".join(map(str, asked.shots))
