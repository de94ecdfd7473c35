"""pydantic's validation errors in our words: dotted path, expected, received, nearest key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ftune.errors import Problem, suggestion
from ftune.recipe import Recipe, Source
from ftune.yaml_file import KeyPath, dotted

MOVED = {
    "r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "lr": "learning_rate",
    "epochs": "duration", "num_train_epochs": "duration", "max_steps": "duration", "max_seq_len": "max_length",
    "gradient_accumulation_steps": "micro_batch_size", "bf16": "precision", "lr_scheduler": "schedule",
    "warmup_steps": "warmup", "warmup_ratio": "warmup",
}  # fmt: skip
"""What other tools call our keys."""
_BOUNDS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"),
           "less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}  # fmt: skip


def explain(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], prefix: KeyPath
) -> list[Problem]:
    """What `model` said about `values`, in our words: dotted path, expected, received, nearest key."""
    by_path: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        by_path.setdefault(_keys(item, values), []).append(item)
    problems = []
    for location, items in by_path.items():
        if any(len(other) > len(location) and other[: len(location)] == location for other in by_path):
            continue  # a branch of an either/or whose more specific failure is reported already
        if items[0]["type"] == "extra_forbidden":
            message = f"unknown key.{_near_key(str(location[-1]), _fields_at(model, location[:-1]), values)}"
        else:
            message = _message(items)
        problems.append(Problem(dotted((*prefix, *location)), message))
    return problems


def _keys(item: Any, values: Any) -> KeyPath:
    """The location of an error without the parts that name a branch of a union, which the value does not have."""
    keys: KeyPath = ()
    for part in item["loc"]:
        if values is item["input"]:
            break
        if (isinstance(values, Mapping) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            keys, values = (*keys, part), values[part]
    return (*keys, item["loc"][-1]) if item["type"] == "missing" else keys


def _message(items: list[Any]) -> str:
    if items[0]["type"] == "missing":
        return "is required."
    if any(
        item["type"] in (*_BOUNDS, "too_short", "string_too_short") for item in items
    ):  # its type fits one branch: forget the others'
        items = [item for item in items if not item["type"].endswith("_type")]
    expected = " or ".join(dict.fromkeys(_expectation(item) for item in items))
    return f"expected {expected}, received {_shown(items[0]['input'])}."


def _shown(value: Any) -> str:
    """A value as a recipe would hold it, cut to one line."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expectation(item: Any) -> str:
    context = item.get("ctx", {})
    kinds = {
        "string_type": "text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
        "list_type": "a list", "dict_type": "a block of keys", "model_type": "a block of keys",
        "model_attributes_type": "a block of keys", "finite_number": "a finite number",
        "string_too_short": "some text", "too_short": "at least one entry", "int_from_float": "a whole number",
    }  # fmt: skip
    if item["type"] in kinds:
        return kinds[item["type"]]
    if item["type"] in _BOUNDS:
        word, key = _BOUNDS[item["type"]]
        bound = context[key]
        return f"a number {word} {bound if isinstance(bound, int) else f'{bound:g}'}"
    if item["type"] == "literal_error":
        received = item["input"]
        words = re.findall(r"'([^']*)'", context["expected"])
        hint = suggestion(received, words) if isinstance(received, str) and len(words) > 1 else ""
        near = hint.strip().removeprefix("Did you mean ").removesuffix("?") if "Did you mean" in hint else ""
        return f"{context['expected']}" + (f" (did you mean {near}?)" if near else "")
    if item["type"] == "value_error":
        return str(context["error"]).partition(", received")[0].removeprefix("expected ")
    return str(item["msg"])


def _near_key(key: str, fields: list[str], values: Mapping[str, Any]) -> str:
    """The key that was meant: of the same block, else of another one."""
    if MOVED.get(key) in fields:
        return f" Did you mean '{MOVED[key]}'?"
    if key in Recipe.model_fields and key not in fields:
        return f" Did you mean '{key}' at the top level?"
    elsewhere = {f"{section}.{name}": name for section in Recipe.model_fields for name in _fields_of(section, values)}
    if key in elsewhere:
        return f" Write it as '{elsewhere[key]}' in the block '{key.partition('.')[0]}'."
    for path, name in elsewhere.items():
        if name in (key, MOVED.get(key)):
            return f" Did you mean '{path}'?"
    near = difflib.get_close_matches(key, elsewhere.values(), n=1, cutoff=0.8)
    if near and not difflib.get_close_matches(key, fields):
        return f" Did you mean '{next(path for path, name in elsewhere.items() if name == near[0])}'?"
    return suggestion(key, fields)


def _fields_of(section: str, values: Mapping[str, Any]) -> list[str]:
    """The keys of a section; those of a method or objective are its own."""
    if isinstance(values.get(section), BaseModel):
        return list(type(values[section]).model_fields)
    annotation = Recipe.model_fields[section].annotation
    return list(getattr(annotation, "model_fields", {})) if isinstance(annotation, type) else []


def _fields_at(model: type[BaseModel], location: KeyPath) -> list[str]:
    for part in location:
        info = model.model_fields.get(str(part))
        annotation = info.annotation if info else None
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in nested if issubclass(a, BaseModel)), Source)
    return list(model.model_fields)
