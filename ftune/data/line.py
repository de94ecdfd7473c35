"""A sample as a line of JSON and back, whatever fields it has."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ftune.data.read import Row
from ftune.data.shape import Sample


def to_json(sample: Sample) -> bytes:
    """A sample without its row, as JSON. What JSON has no word for becomes the text Python shows.

    Of `fields`, those are kept that the template shows: nothing else reads them.
    """
    values = _unusual(sample)
    if sample.fields is not None:
        values["fields"] = {name: sample.fields[name] for name in sample.shown if name in sample.fields}
    return _ENCODER.encode(values).encode("utf-8", "surrogatepass")


def from_json(line: bytes, row: Row) -> Sample:
    """The sample again; the row's own values are not kept, as `fields` and `text` say the same."""
    sample: Sample = _rebuilt(Sample, json.loads(line.decode("utf-8", "surrogatepass")), row=row)
    return sample


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _unusual(value)
    return dict(value) if isinstance(value, Mapping) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain, separators=(",", ":"))


def _unusual(value: Any) -> dict[str, Any]:
    """What of a dataclass is written: the fields that do not have their default, and not its row."""
    kind: type = type(value)
    usual = _defaults(kind)
    return {name: one for name, one in vars(value).items() if one != usual[name] and name != "row"}


@functools.cache
def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind)}


def _rebuilt(kind: type, values: dict[str, Any], **more: Any) -> Any:
    makers = _makers(kind)
    return kind(**{name: makers[name](value) for name, value in values.items()}, **more)


@functools.cache
def _makers(kind: type) -> dict[str, Callable[[Any], Any]]:
    """How each field of a dataclass is made of what JSON holds: a list is a tuple, perhaps of other dataclasses."""
    hints = typing.get_type_hints(kind)
    return {field.name: _maker(hints[field.name]) for field in fields(kind)}


def _maker(hint: Any) -> Callable[[Any], Any]:
    inner = next((one for one in typing.get_args(hint) if isinstance(one, type) and is_dataclass(one)), None)
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value: _rebuilt(hint, value)
    if inner is not None:
        return lambda value: (
            tuple(_rebuilt(inner, one) for one in value)
            if isinstance(value, list)
            else value and _rebuilt(inner, value)
        )
    if typing.get_origin(hint) is list:
        return lambda value: value
    return lambda value: tuple(value) if isinstance(value, list) else value
