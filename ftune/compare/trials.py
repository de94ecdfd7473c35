"""What a comparison trains: each method at each point of a grid under each seed, from one recipe."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ftune import methods
from ftune.consistency import NO_EFFECT
from ftune.errors import Problem, RecipeError, suggestion
from ftune.load import Loaded, load_recipe
from ftune.overlay import literal
from ftune.quantities import Duration

TRIALS = "trials"
"""Folder of the runs, in that of the comparison."""


@dataclass(frozen=True)
class Setting:
    """A row of the table: a method at a point of the grid.

    Args:
        name: `lora`, or `lora method.rank=8`.
        method: its name.
        overrides: `--set` of its recipe, without seed and folder.
        refusal: why it cannot be trained on this recipe, or nothing.
        left_out: keys of the recipe and of the grid that have no effect on this method.
    """

    name: str
    method: str
    overrides: tuple[str, ...]
    refusal: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return re.sub(r"[^A-Za-z0-9.=_-]+", "_", self.name)


@dataclass(frozen=True)
class Trial:
    """One run of a setting.

    Args:
        setting: what is trained.
        seed: of weights and order.
        loaded: its recipe; `output_dir` is its run folder.
        overrides: all that its command sets.
    """

    setting: Setting
    seed: int
    loaded: Loaded
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.setting.name}, seed {self.seed}"


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read `method.rank=2,8,32` into values by key.

    Raises:
        RecipeError: with every text that says something else.
    """
    grid: dict[str, list[str]] = {}
    problems = []
    for text in texts:
        key, _, values = text.partition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not key.strip() or not found:
            problems.append(
                Problem("", f"expected key=value,value, such as method.rank=2,8,32, received {text!r}.", "--grid")
            )
        elif key.strip() in ("seed", "output_dir", "train.duration", "method", "method.name") or key in grid:
            hint = "--seeds, --budget and --methods say that." if key not in grid else "Name each key once."
            problems.append(Problem("", f"{key.strip()} cannot be varied here. {hint}", "--grid"))
        else:
            grid[key.strip()] = found
    if problems:
        raise RecipeError(problems)
    return grid


def check_names(names: Sequence[str]) -> None:
    """Refuse methods that do not exist, all at once.

    Raises:
        RecipeError: naming them.
    """
    known = methods.names()
    unknown = [name for name in names if name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [Problem("", f"{name!r} is no method.{suggestion(name, known)}", "--methods") for name in unknown]
    problems += [Problem("", f"{name!r} is named twice.", "--methods") for name in twice]
    if problems:
        raise RecipeError(problems)


def settings_of(
    own: Loaded, names: Sequence[str], grid: Mapping[str, Sequence[str]], budget: str | None, overrides: Sequence[str]
) -> list[Setting]:
    """Every row, in the order of `names`.

    A method that is not the recipe's own has its defaults, its learning rate included: a rate that was chosen for one
    method says nothing about another. A grid key below `method.` varies the methods that have it. Keys that have no
    effect on a method are left out of its recipe, and do not vary it.

    Args:
        own: the recipe.
        names: of methods.
        grid: values by dotted key.
        budget: of each trial; None takes the recipe's duration.
        overrides: `--set` of the user, for all.

    Raises:
        RecipeError: a key of the grid is none of any method's, or the budget is no duration.
    """
    if budget is not None:
        try:
            Duration.parse(budget)
        except ValueError as error:
            raise RecipeError([Problem("", f"{error}.", "--budget")]) from None
    found: list[Setting] = []
    for name in names:
        keys = [key for key in grid if _has(name, key)]
        common = [*overrides, *_method(own, name, keys), *([] if budget is None else [f"train.duration={budget}"])]
        dead = _without_effect(own.path, [*common, *(f"{key}={grid[key][0]}" for key in keys)])
        keys = [key for key in keys if key not in dead]
        common += [f"~{key}" for key in _without_effect(own.path, common)]
        for point in itertools.product(*(grid[key] for key in keys)):
            chosen = [f"{key}={value}" for key, value in zip(keys, point, strict=True)]
            setting = Setting(" ".join([name, *chosen]), name, (*common, *chosen), left_out=tuple(dead))
            found.append(_checked(setting, own.path))
    unused = [key for key in grid if not any(_has(name, key) for name in names)]
    if unused:
        raise RecipeError([Problem("", f"no method of {', '.join(names)} has {key}.", "--grid") for key in unused])
    return found


def _has(name: str, key: str) -> bool:
    if not key.startswith("method."):
        return True
    return key.split(".")[1] in methods.load(name).model_fields


def _method(own: Loaded, name: str, keys: Sequence[str]) -> list[str]:
    if name == own.recipe.method.name:
        return []
    rate = [] if own.source("train.learning_rate") == "default" or "train.learning_rate" in keys else ["auto"]
    return [f"method={{name: {name}}}", *(f"train.learning_rate={value}" for value in rate)]


def _without_effect(path: Path, overrides: Sequence[str]) -> list[str]:
    """Written keys that nothing would obey."""
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return sorted({problem.path for problem in error.problems if problem.message.startswith(NO_EFFECT)})
    return []


def _checked(setting: Setting, path: Path) -> Setting:
    try:
        load_recipe(path, setting.overrides)
    except RecipeError as error:
        return replace(setting, refusal=" ".join(problem.message for problem in error.problems))
    return setting


def trials_of(own: Loaded, settings: Sequence[Setting], seeds: Sequence[int], folder: Path) -> list[Trial]:
    """The runs of all settings that can be trained: all settings under the first seed, then under the next.

    Held-out rows are drawn by the recipe's own seed in all of them, so that they are scored on the same rows.
    """
    found = []
    for seed in seeds:
        for setting in settings:
            if setting.refusal:
                continue
            overrides = [*setting.overrides, f"seed={seed}"]
            overrides += [literal("output_dir", str(folder / TRIALS / f"{setting.folder}_seed={seed}"))]
            if own.recipe.eval.shots:  # the comparison has rows for that
                overrides.append("eval.shots=[]")
            if own.recipe.data.eval is not None or own.recipe.eval.guard:
                overrides.append(f"data.seed={own.recipe.data_seed}")
            found.append(Trial(setting, seed, load_recipe(own.path, overrides), tuple(overrides)))
    return found
