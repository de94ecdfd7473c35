"""`ftune recipes ls | show NAME | copy NAME`: the recipes that come with ftune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftune.cli.common import Json, guarded, print_json

app = typer.Typer(
    help="List, show and copy the recipes that come with ftune.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe, without .yaml.", show_default=False)]


def shipped_folder() -> Path:
    """Where the recipes are: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent.parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "recipes"


def _find(name: str) -> Path:
    from ftune.errors import Problem, RecipeError, suggestion

    path = shipped_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        names = [p.stem for p in shipped_folder().glob("*.yaml")]
        raise RecipeError([Problem("", f"there is no recipe '{name}'.{suggestion(name, names)}", "NAME")])
    return path


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip()


@app.command("ls")
@guarded
def ls_cli(json: Json = False) -> None:
    """List the recipes."""
    found = [{"name": path.stem, "about": _headline(path)} for path in sorted(shipped_folder().glob("*.yaml"))]
    if json:
        print_json({"recipes": found})
        return
    width = max(len(recipe["name"]) for recipe in found)
    for recipe in found:
        print(f"{recipe['name']:<{width}}  {recipe['about']}")


@app.command("show")
@guarded
def show_cli(name: Name) -> None:
    """Print a recipe."""
    print(_find(name).read_text(encoding="utf-8"), end="")


@app.command("copy")
@guarded
def copy_cli(
    name: Name,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; default: the current folder.")] = Path(),
) -> None:
    """Copy a recipe and the data it needs, to make it your own."""
    import shutil

    from ftune.errors import Problem, RecipeError
    from ftune.load import load_recipe

    source = _find(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise RecipeError([Problem("", f"{target} exists already. Choose another name.", "FILE")])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(target)
    data = load_recipe(source).recipe.data
    for part in (data.train, data.eval, data.test):
        if isinstance(part, str) and (source.parent / part).is_file() and not (target.parent / part).exists():
            (target.parent / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.parent / part, target.parent / part)
            print(target.parent / part)
