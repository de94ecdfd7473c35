"""Jinja in a sandbox, for prompts and for whole conversations: nothing in it knows the clock, chance or the machine.

A chat template sees here what it sees in transformers, which a test compares. Two things differ, so that the same
recipe gives the same tokens on any day: the date is fixed, and there is no random choice.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

from jinja2 import StrictUndefined
from jinja2.environment import Environment
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, ContextReference, Node
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.utils import Namespace

from ftune.data.bounded import BoundedEnvironment

TODAY = datetime(2024, 7, 26)
"""What a template that prints the date prints: the day that Llama 3's own template falls back to. A real date would
change the tokens overnight, so that a run could not go on the next day, nor be repeated."""
MARKS = "_ftune_marks"
"""Variable with the two letters to write around each `{% generation %}` block."""


@functools.cache
def prompt_environment() -> BoundedEnvironment:
    """For a prompt rendered from the columns of a row."""
    return _without_chance(
        BoundedEnvironment(
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,
            finalize=lambda value: "" if value is None else value,  # an empty cell is not the word "None"
        )
    )


@functools.cache
def chat_environment() -> BoundedEnvironment:
    """For a conversation, with the tags, filters and functions that chat templates are written for."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=TODAY.strftime, namespace=_Names, dict=_NewDict())
    return _without_chance(environment)


def _without_chance(environment: BoundedEnvironment) -> BoundedEnvironment:
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


class _Generation(Extension):
    """The block `{% generation %}`, around what an assistant said."""

    tags = {"generation"}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("marked", [ContextReference()]), [], [], body).set_lineno(line)

    def marked(self, context: Context, caller: Macro) -> str:
        opening, closing = context.get(MARKS) or ("", "")
        return f"{opening}{caller()}{closing}"


class _Names(Namespace):
    """A namespace whose names cannot reach into Python."""

    def __init__(*args: Any, **names: Any) -> None:
        Namespace.__init__(*args, **names)
        for name in [*dict(*args[1:]), *names]:
            _refuse_hidden(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


class _NewDict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse_hidden(name: object) -> None:
    if str(name).startswith("_"):
        raise ValueError(f"a namespace has no name {name!r}: names begin with a letter")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise ValueError(str(message))
