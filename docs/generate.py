"""Write the pages that can be read off the code: `recipe_keys.md` from the models, `cli.md` from the commands.

    python docs/generate.py            write both pages
    python docs/generate.py --check    exit 1, naming the pages that are stale

Imports neither torch nor any other heavy package.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import typer.main
import typer.models
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from ftune import errors, methods, objectives
from ftune.cli import app
from ftune.methods import Method
from ftune.objectives import Objective
from ftune.recipe import Recipe

FOLDER = Path(__file__).parent
PLUGINS: dict[type[BaseModel], types.ModuleType] = {Method: methods, Objective: objectives}
"""Sections that are another block for each name, and the packages that know the names."""
TEXTS = {
    "parse_share": "share (`5%`)",
    "Duration.parse": "duration (`3 epochs`)",
    "Slice.parse": "split and range (`train[:400]`)",
    "parse_hook": "`module:function`",
}
"""What a text must look like, by the function that checks it."""
KINDS: dict[object, str] = {int: "whole number", float: "number", str: "text", Path: "path"}
SIGNS: dict[type, tuple[str, str]] = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
NOTE = "<!-- Written by docs/generate.py from the code. Do not edit: run `make docs`. -->"


def pages() -> dict[str, str]:
    """Contents of every generated page, by file name."""
    return {"cli.md": cli_page(), "recipe_keys.md": recipe_page()}


def stale_pages() -> list[str]:
    """Names of the generated pages that are missing or differ from what the code says."""
    return [name for name, text in pages().items() if _read(FOLDER / name) != text]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


# The recipe


def recipe_page() -> str:
    """Every recipe key: section by section, with type, default and meaning."""
    lines = [
        NOTE,
        "# Recipe keys",
        "",
        "Every key a recipe may hold, in the order of the file. Only `model` and `data.train` are required.",
        "An unknown key is an error. So is a key that is written in the recipe and has no effect there.",
        "`model`, `objective` and `method` have a short form: `model: NAME` is `model: {name: NAME}`.",
        "[concepts.md](concepts.md) says where defaults come from, and how `extends` and `--set` work.",
        "",
        "## Top level",
        "",
        *_key_table(Recipe, ""),
        "",
        "`extends: other.yaml` may stand beside them. It names a recipe, relative to this one, whose keys come first.",
    ]
    for name, info in Recipe.model_fields.items():
        kind = _class_in(info.annotation)
        if kind in PLUGINS:
            lines += _plugin_section(name, info, PLUGINS[kind])
        elif kind is not None:
            lines += _section(name, kind)
    return "\n".join(lines) + "\n"


def _section(name: str, kind: type[BaseModel]) -> list[str]:
    """One section and the blocks that its keys may hold."""
    lines = ["", f"## {name}", "", _summary(kind), "", *_key_table(kind, name)]
    for block, keys in _inner_blocks(name, kind).items():
        prefix = keys[0] if len(keys) == 1 else ""
        lines += ["", f"### {_title(keys)}", "", _summary(block), "", *_key_table(block, prefix)]
    return lines


def _inner_blocks(name: str, kind: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Blocks inside a section, with the dotted keys that may hold them."""
    found: dict[type[BaseModel], list[str]] = {}
    for key, info in kind.model_fields.items():
        block = _class_in(info.annotation)
        if block is not None:
            found.setdefault(block, []).append(f"{name}.{key}")
    return found


def _title(keys: Sequence[str]) -> str:
    return f"A block of {_joined(keys)}"


def _plugin_section(section: str, info: FieldInfo, package: types.ModuleType) -> list[str]:
    """A section that is another block for each method or objective."""
    lines = ["", f"## {section}", "", f"{info.description} `{section}.name` selects one of these blocks."]
    for name in package.names():
        kind = package.load(name)
        lines += ["", f"### {section}: {name}", "", _summary(kind), "", *_key_table(kind, section)]
    return lines


def _key_table(kind: type[BaseModel], prefix: str) -> list[str]:
    rows = [
        (
            f"`{prefix}.{name}`" if prefix else f"`{name}`",
            _words(info.annotation, info.metadata),
            _default(info),
            _meaning(kind, name, info),
        )
        for name, info in kind.model_fields.items()
    ]
    return _table(("key", "value", "default", "meaning"), rows)


def _meaning(kind: type[BaseModel], name: str, info: FieldInfo) -> str:
    """The field's docstring, or that of the class that first declared it."""
    declared = [parent.model_fields.get(name) for parent in kind.__mro__ if issubclass(parent, BaseModel)]
    texts = [field.description for field in (info, *declared) if field is not None and field.description]
    return _one_line(texts[0]) if texts else ""


def _default(info: FieldInfo) -> str:
    """The default as a recipe would write it."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{value.name}`" if isinstance(value, (Method, Objective)) else "its defaults"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type for people: `a`, `b` or whole number >= 1."""
    return _joined(list(dict.fromkeys(_members(annotation, metadata))))


def _members(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    """The alternatives of a type, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _members(arguments[0], annotation.__metadata__)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _members(argument, ())
    elif origin is Literal:
        yield from (f"`{argument}`" for argument in arguments)
    elif origin is list:
        inner = _words(arguments[0])
        yield f"list of ({inner})" if " or " in inner else f"list of {inner}"
    elif origin is dict:
        yield f"block of `name: value`, each value a {_words(arguments[1])}"
    elif annotation is type(None):
        yield "`null`"
    elif annotation is bool:
        yield from ("`true`", "`false`")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"[block](#{_anchor_of(annotation)})"
    else:
        checks = [_checked_text(item) for item in metadata if isinstance(item, AfterValidator)]
        yield " ".join([*(checks or [KINDS[annotation]]), *_bounds(metadata)])


def _anchor_of(kind: type[BaseModel]) -> str:
    """The anchor of the table that holds the keys of a block."""
    for name, info in Recipe.model_fields.items():
        section = _class_in(info.annotation)
        if section is kind:
            return name
        keys = [] if section is None else _inner_blocks(name, section).get(kind, [])
        if keys:
            return _anchor(_title(keys))
    raise LookupError(f"no table holds the keys of {kind.__name__}")


def _checked_text(validator: AfterValidator) -> str:
    parse = inspect.getclosurevars(validator.func).nonlocals["parse"]
    return TEXTS[parse.__qualname__]


def _bounds(metadata: Sequence[Any]) -> list[str]:
    """`>= 1, <= 8` from what pydantic keeps of a `Field`."""
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else (item,))]
    limits = [(SIGNS[type(item)][0], getattr(item, SIGNS[type(item)][1])) for item in flat if type(item) in SIGNS]
    found = [f"{sign} {'2**63' if limit == 2**63 else limit}" for sign, limit in limits]
    return [", ".join(found)] if found else []


def _class_in(annotation: Any) -> type[BaseModel] | None:
    """The model class somewhere in a type, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_class_in(argument) for argument in typing.get_args(annotation))
    return next((kind for kind in found if kind is not None), None)


# The command line


def cli_page() -> str:
    """Every command with its arguments and options, and the exit codes."""
    root = typer.main.get_command(app)
    commands = list(_commands(root, "ftune"))
    lines = [
        NOTE,
        "# Command line",
        "",
        _one_line(root.help or ""),
        "Tables and results go to stdout, progress and errors to stderr. Every command has `-h` and `--help`.",
        "`ftune --version` prints the version. `ftune --install-completion` teaches your shell the names.",
        "",
        *_table(("command", "what it does"), [(_command_link(name), _first(c.help)) for name, c in commands]),
    ]
    for name, command in commands:
        lines += _command_section(name, command)
    return "\n".join([*lines, *_exit_code_section()]) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    for key, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _commands(inner, f"{name} {key}")
        else:
            yield f"{name} {key}", inner


def _command_link(name: str) -> str:
    return f"[`{name}`](#{_anchor(name)})"


def _command_section(name: str, command: Any) -> list[str]:
    verb = inspect.unwrap(command.callback)
    parameters = [(p, *_declared(verb, p.name)) for p in command.params]
    arguments = [row for row in parameters if isinstance(row[1], typer.models.ArgumentInfo)]
    options = [row for row in parameters if isinstance(row[1], typer.models.OptionInfo)]
    metavars = [p.metavar if p.required else f"[{p.metavar}]" for p, *_ in arguments]
    lines = ["", f"## {name}", "", f"`{' '.join([name, '[OPTIONS]', *metavars])}`", "", _one_line(command.help or "")]
    if arguments:
        rows = [(f"`{p.metavar}`", _one_line(info.help or "")) for p, info, _ in arguments]
        lines += ["", *_table(("argument", "meaning"), rows)]
    if options:
        rows4 = [_option_row(p, info, kind, verb) for p, info, kind in options]
        lines += ["", *_table(("option", "value", "default", "meaning"), rows4)]
    return lines


def _declared(verb: Callable[..., None], name: str) -> tuple[Any, Any]:
    """What the verb's signature says of a parameter: typer's description, and the type."""
    hint = typing.get_type_hints(verb, include_extras=True)[name]
    described = next(item for item in hint.__metadata__ if isinstance(item, typer.models.ParameterInfo))
    return described, typing.get_args(hint)[0]


def _option_row(parameter: Any, info: Any, annotation: Any, verb: Callable[..., None]) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = inspect.signature(verb).parameters[parameter.name].default
    return names, _option_value(info, annotation), _option_default(default), _one_line(info.help or "")


def _option_value(info: Any, annotation: Any) -> str:
    """What follows the option; nothing after a flag."""
    if annotation is bool:
        return ""
    if info.metavar:
        return f"`{info.metavar}`"
    kind = next((kind for kind in (annotation, *typing.get_args(annotation)) if kind in KINDS), str)
    limits = [sign(limit) for sign, limit in ((Ge, info.min), (Le, info.max)) if limit is not None]
    return " ".join([KINDS[kind], *_bounds(limits)])


def _option_default(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default is None else f"`{default}`"


def _exit_code_section() -> list[str]:
    said = dict(re.findall(r"(\w+) +[0-9/]+  +(.+)", errors.__doc__ or ""))
    rows = [("0", "", "done, or already complete")]
    for kind in sorted(_error_kinds(), key=lambda kind: (_codes(kind), kind.__name__)):
        meaning = said.get(kind.__name__) or (kind.__doc__ or "").splitlines()[0]
        meaning = re.sub(r" \(.*\)$", "", meaning).rstrip(".")
        rows.append(
            (
                " or ".join(map(str, _codes(kind))),
                f"`{kind.__name__}`",
                meaning[:1].lower() + meaning[1:] if meaning[1:2].islower() else meaning,
            )
        )
    return ["", "## Exit codes", "", *_table(("code", "error", "meaning"), rows)]


def _error_kinds() -> list[type[errors.FtuneError]]:
    return [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.FtuneError)]


def _codes(kind: type[errors.FtuneError]) -> tuple[int, ...]:
    if kind is errors.Interrupted:
        return tuple(errors.exit_code_of(errors.Interrupted(number, "")) for number in (2, 15))
    return (kind.exit_code,)


# Text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (header, ["---"] * len(header), *cells)]


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first(text: str | None) -> str:
    """The first sentence."""
    return _one_line(text or "").partition(". ")[0].rstrip(".")


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _summary(kind: type) -> str:
    """The first paragraph of a class's docstring."""
    return _one_line((inspect.getdoc(kind) or "").partition("\n\n")[0])


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or say which are stale; the exit code."""
    if list(arguments) == ["--check"]:
        stale = stale_pages()
        for name in stale:
            sys.stderr.write(f"docs/{name} is stale. Run: python docs/generate.py\n")
        return 1 if stale else 0
    if arguments:
        sys.stderr.write("expected nothing or --check\n")
        return 2
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
