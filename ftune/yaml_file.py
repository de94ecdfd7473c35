"""YAML with positions and without surprises.

YAML 1.2 scalars: `2e-4` is a number, only `true` and `false` are booleans, `010` is ten, `12:30` is text. A repeated
key, a tag, an anchor, an alias, a second document or a tab in the indentation is an error with its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftune.errors import Problem, RecipeError

MAX_BYTES = 100_000
MAX_DEPTH = 20
MAX_DIGITS = 100
KeyPath = tuple[str | int, ...]
_REFUSED = {
    yaml.AnchorToken: "anchors (&) are not supported",
    yaml.AliasToken: "aliases (*) are not supported",
    yaml.TagToken: "tags (!) are not supported",
    yaml.DirectiveToken: "directives (%) are not supported",
}
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def dotted(path: KeyPath) -> str:
    """`("train", "batch_size")` as `train.batch_size`."""
    return ".".join(str(part) for part in path)


@dataclass
class Node:
    """A YAML value that knows where it was written.

    Args:
        value: a scalar, a list of nodes or a dict of nodes.
        where: `file:line:column` of the value.
        keys: for a dict, the place of each key.
    """

    value: Any
    where: str
    keys: dict[str, str] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def walk(self, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
        """Every value below this one, with its path."""
        items: Any = ()
        if isinstance(self.value, dict):
            items = self.value.items()
        elif isinstance(self.value, list):
            items = enumerate(self.value)
        for key, node in items:
            yield (*prefix, key), node
            yield from node.walk((*prefix, key))

    def pop(self, key: str) -> Node | None:
        """Take `key` out of a dict."""
        found: Node | None = self.value.pop(key, None)
        return found

    def merge(self, other: Node) -> None:
        """Lay `other` over this tree in place: blocks merge key by key, anything else is replaced."""
        for key, node in other.value.items():
            old = self.value.get(key)
            if old is not None and isinstance(old.value, dict) and isinstance(node.value, dict):
                old.merge(node)
            else:
                self.value[key] = node
            self.keys[key] = other.keys[key]

    def place(self, path: str) -> str:
        """Where the key or list entry at dotted `path` was written, or the nearest block above; empty if none was.

        Keys may hold dots themselves: the longest key that fits is taken.
        """
        node, best, parts = self, "", path.split(".")
        while parts:
            if isinstance(node.value, list) and parts[0].isdecimal() and int(parts[0]) < len(node.value):
                node, parts = node.value[int(parts[0])], parts[1:]
                best = node.where
                continue
            block = node.value if isinstance(node.value, dict) else {}
            lengths = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in block]
            if not lengths:
                break
            key, parts = ".".join(parts[: lengths[0]]), parts[lengths[0] :]
            node, best = block[key], node.keys[key]
        return best


def read_yaml(path: Path) -> tuple[Node, str]:
    """Read a file whose top level is a block of keys.

    Returns:
        The tree and the text as it was written.

    Raises:
        RecipeError: the file cannot be read or is not such YAML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([Problem("", f"cannot be read: {error.strerror or error}.", str(path))]) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem("", f"is larger than {MAX_BYTES:,} bytes; this is no recipe.", str(path))])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = raw[: error.start].count(b"\n"), error.start - raw.rfind(b"\n", 0, error.start)
        raise RecipeError([Problem("", "is not UTF-8 text.", f"{path}:{line + 1}:{column}")]) from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree.value, dict):
        kinds = {type(None): "an empty file", list: "a list"}
        kind = kinds.get(type(tree.value), "a single value")
        message = f"expected a block of keys (model, method, data, ...), received {kind}."
        raise RecipeError([Problem("", message, tree.where)])
    return tree, text


def parse_yaml(text: str, file: str) -> Node:
    """Parse one document.

    Raises:
        RecipeError: every refused construct and repeated key, or the first syntax error.
    """
    reading = _Reading(text, file)
    try:
        reading.scan()
        root = reading.compose() if not reading.problems else None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = reading.place(before.count("\n"), error.position - before.rfind("\n") - 1)
        raise RecipeError([Problem("", "holds a character that YAML does not allow.", where)]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or yaml.Mark(file, 0, 0, 0, None, 0)
        problem = Problem("", _syntax_error(error, text), reading.place(mark.line, mark.column))
        raise RecipeError([problem]) from error
    tree = Node(None, reading.place(0, 0)) if root is None else reading.convert(root, ())
    if reading.problems:
        raise RecipeError(reading.problems)
    return tree


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = str(error.problem or error.context)
    if "'\\t'" in problem and error.problem_mark is not None:
        before = text[: error.problem_mark.index].rpartition("\n")[2]
        return f"a tab {'in the indentation' if not before.strip() else 'outside quotes'}. Use spaces."
    if "found another document" in problem:
        return "a second document. Keep one."
    return f"is not valid YAML: {problem}."


class _Reading:
    """One text on its way to a tree of nodes, and what is wrong with it."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.problems: list[Problem] = []

    def place(self, line: int, column: int) -> str:
        """`file:line:column` of a position that counts from 0; the command line has no lines."""
        return self.file if self.file == "--set" else f"{self.file}:{line + 1}:{column + 1}"

    def add(self, path: KeyPath, message: str, mark: yaml.Mark) -> None:
        """Note a problem."""
        self.problems.append(Problem(dotted(path), message, self.place(mark.line, mark.column)))

    def scan(self) -> None:
        """Look for what is refused before anything recursive touches the text."""
        loader: Any = yaml.SafeLoader(self.text)
        depth = 0
        try:
            while loader.check_token():
                token = loader.get_token()
                if type(token) in _REFUSED:
                    self.add((), f"{_REFUSED[type(token)]}. Write the value out.", token.start_mark)
                depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
                if depth > MAX_DEPTH:
                    self.add((), f"nested deeper than {MAX_DEPTH} levels.", token.start_mark)
                    return
        except (ValueError, OverflowError):  # chr() of an escape such as "\UFFFFFFFF"
            self.add((), "an escape that is no character.", loader.get_mark())

    def compose(self) -> yaml.Node | None:
        """PyYAML's own tree, or None for an empty text."""
        root: yaml.Node | None = yaml.compose(self.text, Loader=yaml.SafeLoader)
        return root

    def convert(self, node: yaml.Node, path: KeyPath) -> Node:
        """PyYAML's tree as ours."""
        where = self.place(node.start_mark.line, node.start_mark.column)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(child, (*path, number)) for number, child in enumerate(node.value)], where)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, path), where)
        block: dict[str, Node] = {}
        keys: dict[str, str] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.add(path, "expected a plain word as key.", key_node.start_mark)
                continue
            key = self._text(key_node, path)
            if key in block:
                self.add((*path, key), f"is written twice, first at {keys[key]}. Remove one.", key_node.start_mark)
                continue
            keys[key] = self.place(key_node.start_mark.line, key_node.start_mark.column)
            block[key] = self.convert(value_node, (*path, key))
        return Node(block, where, keys)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = self._text(node, path)
        if node.style is not None:  # quoted or block text is text
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "false"):
            return text == "true"
        is_int = _INT.fullmatch(text) is not None
        if (is_int or _FLOAT.fullmatch(text)) and len(text) > MAX_DIGITS:
            self.add(path, f"a number of {len(text)} characters; {MAX_DIGITS} are enough.", node.start_mark)
            return None
        if is_int:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text

    def _text(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        """A scalar's text, the halves of JSON's escaped surrogate pairs put together."""
        text = str(node.value)
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.add(path, "half of a surrogate pair, which is no character.", node.start_mark)
            return ascii(text)
        if "\0" in text:
            self.add(path, "a NUL character. Remove it.", node.start_mark)
        return text
