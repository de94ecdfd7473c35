"""What is laid over a recipe: the recipe over the one it extends, and `--set` over both."""

from __future__ import annotations

import json

from ftune.errors import Problem, RecipeError, suggestion
from ftune.yaml_file import Node, dotted, parse_yaml

SHORT_FORMS = {"model": "name", "objective": "name", "method": "name"}
"""Blocks that may be written as one word."""


def write_out_short_forms(tree: Node) -> None:
    """`method: lora` as `method: {name: lora}`."""
    for key, inner in SHORT_FORMS.items():
        node = tree.value.get(key)
        if node is not None and isinstance(node.value, str):
            tree.value[key] = Node({inner: node}, node.where, {inner: tree.keys[key]})


def lay(tree: Node, other: Node) -> None:
    """Lay `other` over `tree`; naming another model, method or objective drops the keys of the old one."""
    for key, inner in SHORT_FORMS.items():
        blocks = [node.value[key].value for node in (tree, other) if key in node.value]
        names = [block[inner].value for block in blocks if isinstance(block, dict) and inner in block]
        if len(names) == 2 and names[0] != names[1]:
            tree.pop(key)
    tree.merge(other)


def apply(tree: Node, override: str) -> list[Problem]:
    """Lay one `section.key=value` over the tree, or take `~section.key` out of it, unless something is wrong."""
    if override.startswith("~"):
        return _take_out(tree, override[1:].strip())
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        return [Problem("", f"expected section.key=value, received {override!r}.", "--set")]
    try:
        value = parse_yaml(text, "--set")
    except RecipeError as error:
        return [Problem(key.strip(), problem.message, "--set") for problem in error.problems]
    for name in reversed(keys):
        value = Node({name: value}, "--set", {name: "--set"})
    if key.strip() in SHORT_FORMS and isinstance(value.value[keys[0]].value, str):
        tree.pop(keys[0])  # `method=full` replaces the whole block
    write_out_short_forms(value)
    lay(tree, value)
    return []


def literal(key: str, text: str) -> str:
    """The override that gives `key` this text, whatever it would mean in YAML."""
    return f"{key}={json.dumps(text, ensure_ascii=False)}"


def _take_out(tree: Node, key: str) -> list[Problem]:
    """Remove a key, as if it had not been written: its default holds."""
    *above, last = key.split(".")
    block: Node | None = tree
    for name in above:
        block = block.value.get(name) if block is not None and isinstance(block.value, dict) else None
    if block is None or not isinstance(block.value, dict) or block.pop(last) is None:
        written = [dotted(path) for path, _ in tree.walk()]
        message = f"is not written in the recipe, so ~{key} has nothing to take out.{suggestion(key, written)}"
        return [Problem(key, message, "--set")]
    return []
