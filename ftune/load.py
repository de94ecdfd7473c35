"""A recipe file and `--set` overrides become a `Recipe`, or one error that names every problem and its place.

    loaded = load_recipe(Path("recipes/quickstart.yaml"), ["train.batch_size=8"])

`ftune.yaml_file` reads text with positions; this module merges, validates and explains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ftune import methods, objectives
from ftune.consistency import NO_EFFECT, consistency_problems, hook_problems
from ftune.errors import Problem, RecipeError, without_passwords
from ftune.explain import explain
from ftune.overlay import SHORT_FORMS, apply, lay, write_out_short_forms
from ftune.recipe import Recipe
from ftune.yaml_file import KeyPath, Node, dotted, read_yaml

M = TypeVar("M", bound=BaseModel)
PLACEHOLDERS = {"model": {"name": "?"}, "data": {"train": "?"}}
"""What stands for missing required keys while contradictions between the others are looked for."""
MAX_BASES = 20
PLUGINS: Mapping[str, ModuleType] = {"method": methods, "objective": objectives}
CAUSES: Mapping[str, tuple[str, ...]] = {
    "method.name": ("objective",),
    "method.weights": ("objective",),
    "model.dtype": ("method",),
    "model.trust_remote_code": ("model.revision",),
    "train.micro_batch_size": ("train.batch_size",),
    "distributed.devices": ("train.batch_size",),
    "data.format": ("objective", "method.name"),
    "data.group_by": ("data.eval",),
    "data.stratify": ("data.eval", "objective"),
    "data.seed": ("data.eval", "eval.guard"),
    "data.near_duplicates": ("data.eval", "data.test"),
    "data.leakage": ("data.eval", "data.test"),
    "eval.every": ("data.eval",),
    "eval.max_rows": ("data.eval",),
    "eval.metrics": ("data.eval", "objective"),
    "eval.generate_every": ("data.eval", "eval.metrics", "method.name", "objective"),
    "eval.max_new_tokens": ("data.eval", "eval.metrics", "method.name", "objective"),
    "eval.shots": ("data.eval", "objective"),
    "checkpoint.best": ("data.eval",),
    "train.early_stopping": ("data.eval",),
    "train.early_stopping.patience": ("data.eval",),
    "train.early_stopping.min_delta": ("data.eval", "train.early_stopping.patience"),
    "train.early_stopping.max_forgetting": ("eval.guard",),
}
"""Keys whose contradiction with another is not reported while that other key is itself invalid."""


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where each of its values came from.

    Args:
        recipe: what was asked.
        path: the recipe file; relative paths in it start from its folder.
        text: the file as it was written.
        origins: dotted key -> `file:line:column` or `--set` of every value that was written.
        notes: inherited keys that have no effect here.
    """

    recipe: Recipe
    path: Path
    text: str
    origins: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir.replace("{recipe}", self.path.stem))

    def source(self, key: str) -> str:
        """Where the value of dotted `key` came from: a place, or `default`."""
        return self.origins.get(key, "default")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, merge and validate.

    Args:
        path: the recipe file.
        overrides: `section.key=value` or, to take a key out, `~section.key`; each after the file, later ones win.

    Raises:
        RecipeError: with all problems found, each with its place.
    """
    tree, text = _with_bases(path, ())
    problems = [problem for override in overrides for problem in apply(tree, override)]
    problems += _passwords(tree)
    recipe, errors, dead = _examine(tree.plain())
    errors += [] if recipe is None else hook_problems(recipe, path.parent)
    notes = []
    for problem in (*errors, *dead):
        where = tree.place(problem.path) or f"{path}:1:1"
        if problem in dead and _split_place(where)[0] not in (str(path), "--set"):
            notes.append(f"{problem.path} ({where}): {problem.message}")
        else:
            problems.append(Problem(problem.path, problem.message, where))
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=lambda p: _split_place(p.where)))
    return Loaded(recipe, path, text, {dotted(key): node.where for key, node in tree.walk()}, tuple(notes))


def _passwords(tree: Node) -> list[Problem]:
    """URLs that bring a password along: a recipe is written into the run folder as it is."""
    message = "holds a URL with a password, which would be recorded in the run folder. Take the password out."
    return [
        Problem(dotted(path), message, node.where)
        for path, node in tree.walk()
        if isinstance(node.value, str) and without_passwords(node.value) != node.value
    ]


def parse_recipe(values: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Validate the plain values of a stored recipe.

    Keys without effect are no problem here: nobody wrote them, a stored recipe holds defaults and inherited keys too.

    Returns:
        The recipe, or None and every problem, each with a dotted path and no place.
    """
    recipe, errors, _ = _examine(values)
    return None if errors else recipe, errors


def _examine(values: dict[str, Any]) -> tuple[Recipe | None, list[Problem], list[Problem]]:
    """Validate plain values.

    Returns:
        The recipe (with errors, what is valid of it), the errors, and the keys that have no effect.
    """
    values = {
        key: {SHORT_FORMS[key]: value} if key in SHORT_FORMS and isinstance(value, str) else value
        for key, value in values.items()
    }
    problems: list[Problem] = []
    invalid: set[str] = set()
    for key, package in PLUGINS.items():
        if key in values:
            plugin, found = _parse_plugin((key,), package, values.pop(key))
            problems += found
            if plugin is not None:
                values[key] = plugin
            else:
                invalid.add(key)
    recipe, found = _validate(Recipe, values, (), PLACEHOLDERS)
    problems += found
    invalid |= {key for problem in problems for key in (problem.path, _meant(problem))}
    contradictions = [] if recipe is None else consistency_problems(recipe)
    contradictions = [problem for problem in contradictions if not _follows(problem, invalid)]
    dead = [problem for problem in contradictions if problem.message.startswith(NO_EFFECT)]
    return recipe, problems + [problem for problem in contradictions if problem not in dead], dead


def _meant(problem: Problem) -> str:
    """The dotted key that a misspelt one stands for, else the key itself."""
    hint = re.fullmatch(r"unknown key\. Did you mean '(.+)'( at the top level)?\?", problem.message)
    if hint is None or "." in hint[1] or hint[2]:
        return hint[1] if hint else problem.path
    return ".".join([*problem.path.split(".")[:-1], hint[1]])


def _follows(problem: Problem, invalid: set[str]) -> bool:
    """Whether a contradiction may be there only because the invalid key on its other side was left out."""
    causes = CAUSES.get(problem.path, ())
    return any(f"{cause}.".startswith(f"{key}.") or key.startswith(f"{cause}.") for cause in causes for key in invalid)


def _parse_plugin(path: KeyPath, package: ModuleType, block: Any) -> tuple[BaseModel | None, list[Problem]]:
    """The method or objective that a block asks for, with any that it holds, such as a preset's `weights`."""
    try:
        kind = _plugin_class(str(path[0]), package, block)
    except LookupError as error:
        return None, [Problem(dotted((*path, "name") if isinstance(block, dict) else path), str(error))]
    block = {"name": block} if isinstance(block, str) else dict(block)
    problems: list[Problem] = []
    for name, field in kind.model_fields.items():
        if field.annotation is methods.Method and name in block:
            inner, found = _parse_plugin((*path, name), package, block.pop(name))
            problems += found
            block |= {} if inner is None else {name: inner}
    plugin, found = _validate(kind, block, path)
    problems += found
    if isinstance(plugin, (methods.Method, objectives.Objective)):
        invalid = {key.rpartition(".")[2] for problem in found for key in (problem.path, _meant(problem))}
        own = [(field, said) for field, said in plugin.problems() if not invalid & {field, *re.findall(r"\w+", said)}]
        problems += [Problem(dotted((*path, field)), message) for field, message in own]
    return plugin, problems


def _plugin_class(key: str, package: ModuleType, block: Any) -> type[BaseModel]:
    """The class that a block names.

    Raises:
        LookupError: there is none, or its module fails or is incomplete.
    """
    try:
        kind: type[BaseModel] = package.parse(block)
    except (Exception, SystemExit) as error:  # importing a module runs its code, which may fail in any way
        if type(error) is LookupError:
            raise
        raise LookupError(f"{key} '{_name_of(block)}' cannot be imported: {type(error).__name__}: {error}.") from error
    missing = sorted(name for name in kind.__class_vars__ if not hasattr(kind, name))
    if missing:
        raise LookupError(f"{key} '{_name_of(block)}' does not define {', '.join(missing)}.")
    return kind


def _name_of(block: Any) -> Any:
    return block["name"] if isinstance(block, dict) else block


def _validate(
    kind: type[M], values: dict[str, Any], prefix: KeyPath, required: Mapping[str, dict[str, str]] | None = None
) -> tuple[M | None, list[Problem]]:
    """An instance of `kind`, and what is wrong with `values`.

    Invalid keys are left out and missing ones come from `required`; None when that does not help.
    """
    try:
        return kind.model_validate(values), []
    except ValidationError as error:
        problems = explain(error, kind, values, prefix)
        locations = [item["loc"] for item in error.errors(include_url=False)]
    remaining = _without(values, locations)
    for key, block in (required or {}).items():
        given = remaining.get(key)
        remaining[key] = {**block, **given} if isinstance(given, dict) else block
    try:
        return kind.model_validate(remaining), problems
    except ValidationError:
        return None, problems


def _without(values: dict[str, Any], locations: Sequence[KeyPath]) -> dict[str, Any]:
    """A copy of `values` that lacks the value at, or nearest above, each location."""
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for location in locations:
        block: Any = copy
        if not location:
            continue  # a plug-in's own check of all its fields
        if len(location) > 1 and isinstance(copy.get(str(location[0])), dict):
            block, location = copy[str(location[0])], location[1:]
        block.pop(location[0], None)
    return copy


def _with_bases(path: Path, extending: tuple[Path, ...]) -> tuple[Node, str]:
    """The file's tree laid over those it extends."""
    tree, text = read_yaml(path)
    write_out_short_forms(tree)
    base = tree.pop("extends")
    if base is None:
        return tree, text
    if not isinstance(base.value, str):
        raise RecipeError([Problem("extends", "expected the path of another recipe.", base.where)])
    other, extending = path.parent / base.value, (*extending, path.resolve())
    if not _is_file(other):
        raise RecipeError([Problem("extends", f"no such file: {other}.", base.where)])
    if other.resolve() in extending:
        raise RecipeError([Problem("extends", "goes round in a circle.", base.where)])
    if len(extending) > MAX_BASES:
        raise RecipeError([Problem("extends", f"a chain of more than {MAX_BASES} recipes.", base.where)])
    under, _ = _with_bases(other, extending)
    lay(under, tree)
    return under, text


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a path, or in a folder that may not be read
        return False


def _split_place(where: str) -> tuple[str, int, int]:
    """`file:line:column` in three; 0 for what is not there."""
    match = re.fullmatch(r"(.*?):([0-9]+):([0-9]+)", where, re.DOTALL)
    return (match[1], int(match[2]), int(match[3])) if match else (where, 0, 0)
