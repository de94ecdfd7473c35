"""Recipes that are spoilt by a grammar: each mutation says which key must be reported, where, and in what words.

A recipe is a tree whose short forms are written out. Mutations of one recipe touch keys that do not hide each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

import yaml

from ftune import methods, objectives

Path = tuple[str | int, ...]
NAMES = {*methods.names(), *objectives.names()}
THEIRS = {"columns", "roles", "values", "rank_pattern", "alpha_pattern"}
"""Blocks whose keys are the user's own."""
WORDS = {"format", "overlong", "train_on", "schedule", "optimizer", "precision", "init", "variant", "system", "leakage"}
"""Keys whose value is one of a few words."""
UNKNOWN = r"unknown key\. (Did you mean '.+'( at the top level)?\?|Known: .+\.|Write it as '.+' in the block '.+'\.)"
EXPECTED = r"expected .+, received .+\."
NAMED = r"(unknown (method|objective) '.+'\. (Did you mean '.+'\?|Known: .+\.)|no (method|objective) is named\. .+)"


@dataclass
class Spoilt:
    """A tree that is being spoilt.

    Args:
        tree: the recipe.
        expected: (key to be reported, key of whose place, what must be said) of each problem.
        taken: paths that are spoilt; nothing above or below one is spoilt again.
    """

    tree: dict[str, Any]
    expected: list[tuple[str, Path, str]] = field(default_factory=list)
    taken: list[Path] = field(default_factory=list)

    def free(self, path: Path) -> bool:
        """Whether `path` can be spoilt without hiding, or being hidden by, another fault."""
        return all(path[: len(other)] != other and other[: len(path)] != path for other in self.taken)

    def at(self, path: Path) -> Any:
        """The value at `path`."""
        value: Any = self.tree
        for part in path:
            value = value[part]
        return value

    def say(self, path: Path, words: str, where: Path | None = None, *, hides: Path | None = None) -> None:
        """Expect `words` at `path`."""
        self.expected.append((".".join(map(str, path)), path if where is None else where, words))
        self.taken.append(path if hides is None else hides)


def paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    """Every key and list entry."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


def misspelt(word: str, random: Random) -> str:
    """A letter left out, doubled, replaced, added, or two swapped."""
    at = random.randrange(len(word) - 1)
    return random.choice([
        word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + "x" + word[at + 1 :], word + "s",
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ])  # fmt: skip


def _ours(path: Path) -> bool:
    return isinstance(path[-1], str) and not THEIRS & {*path[:-1]}


def _hidden_by(path: Path) -> Path:
    """What is not looked at when the value at `path` is wrong: all keys of a method that has no name."""
    return path[:-1] if path[-1] == "name" and path[0] in ("method", "objective") else path


def _pick(spoilt: Spoilt, random: Random, fits: Callable[[Path], bool]) -> Path | None:
    found = [path for path in paths(spoilt.tree) if spoilt.free(path) and fits(path)]
    return random.choice(found) if found else None


def typo(spoilt: Spoilt, random: Random) -> bool:
    """A key that is spelt wrongly. What it holds is not looked at."""
    path = _pick(spoilt, random, lambda path: _ours(path) and path[-1] not in ("name", "extends"))
    if path is None:
        return False
    block, key = spoilt.at(path[:-1]), str(path[-1])
    wrong = misspelt(key, random)
    if wrong in block or wrong == key:
        return False
    items = [(wrong if name == key else name, value) for name, value in block.items()]
    block.clear()
    block.update(items)
    spoilt.say((*path[:-1], wrong), UNKNOWN)
    spoilt.taken.append(path)
    if path in (("model",), ("data",), ("data", "train")) or key == "path":
        spoilt.expected.append((".".join(map(str, path)), path[:-1], "is required."))
    return True


def wrong_type(spoilt: Spoilt, random: Random) -> bool:
    """A list in a list where a value stands, or a number where a block stands."""
    path = _pick(spoilt, random, _ours)
    if path is None:
        return False
    block, hides = isinstance(spoilt.at(path), dict), _hidden_by(path)
    if not spoilt.free(hides):
        return False
    spoilt.at(path[:-1])[path[-1]] = random.choice([3, [1], True]) if block else random.choice([[["zz"]], {"zz": [1]}])
    spoilt.say(path, f"{NAMED}|{EXPECTED}|{UNKNOWN}|is required.", hides=hides)
    return True


def out_of_range(spoilt: Spoilt, random: Random) -> bool:
    """A number below what any key takes, or a word that is none of the few."""

    def fits(path: Path) -> bool:
        value = spoilt.at(path)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        word = isinstance(value, str) and (path[-1] in WORDS or _hidden_by(path) != path)
        return _ours(path) and (number or word)

    path = _pick(spoilt, random, fits)
    if path is None:
        return False
    value, hides = spoilt.at(path), _hidden_by(path)
    new = misspelt(value, random) if isinstance(value, str) else random.choice([-5, -0.5, -(2**70)])
    if new in (value, *NAMES) or not spoilt.free(hides):
        return False
    spoilt.at(path[:-1])[path[-1]] = new
    spoilt.say(path, EXPECTED if hides == path else NAMED, hides=hides)
    return True


def swapped(spoilt: Spoilt, random: Random) -> bool:
    """A key in a section that is not its own, or at the top level, or a whole section in another one."""
    sections = [name for name, value in spoilt.tree.items() if isinstance(value, dict)]
    path = _pick(spoilt, random, lambda path: path[0] in sections and path[-1] not in ("name", "train") and _ours(path)
                 and len(path) <= 2)  # fmt: skip
    if path is None:
        return False
    target: Path = (random.choice([name for name in [*sections, ""] if name != path[0]]),)
    target = () if target == ("",) else target
    moved = (*target, path[-1])
    block = spoilt.at(target)
    if path in (("model",), ("data",)) or not spoilt.free(moved) or path[-1] in block or _belongs(moved):
        return False
    block[path[-1]] = spoilt.at(path[:-1]).pop(path[-1])
    spoilt.say(moved, UNKNOWN)
    spoilt.taken.append(path)
    return True


def _belongs(path: Path) -> bool:
    """Whether another section has a key of this name too, or the method may."""
    both = {"every", "seed", "format", "init", "max_length", "test", "eval", "metrics", "split", "weights"}
    return path[0] in ("method", "objective") or path[-1] in both


def missing(spoilt: Spoilt, random: Random) -> bool:
    """A key that must be there and is not."""
    required = (("model",), ("data",), ("data", "train"), ("model", "name"))
    path = _pick(spoilt, random, lambda path: path in required or path[-1] == "path" and _ours(path))
    if path is None:
        return False
    del spoilt.at(path[:-1])[path[-1]]
    spoilt.say(path, "is required.", path[:-1])
    return True


MUTATIONS: Mapping[str, Callable[[Spoilt, Random], bool]] = {
    "typo": typo, "type": wrong_type, "range": out_of_range, "swapped": swapped, "missing": missing,
}  # fmt: skip


def spoil(tree: dict[str, Any], random: Random, most: int = 4) -> tuple[Spoilt, list[str]]:
    """A copy of `tree` with up to `most` faults, at least one, and the names of what was done."""
    spoilt, done = Spoilt(deepcopy(tree)), []
    wanted = random.randint(1, most)
    while len(done) < wanted:
        name = random.choice(list(MUTATIONS))
        if MUTATIONS[name](spoilt, random):
            done.append(name)
        elif done and random.random() < 0.2:
            break
    return spoilt, done


def places(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and entry, by PyYAML and not by ftune."""
    found: dict[Path, tuple[int, int]] = {(): (1, 1)}

    def look(node: yaml.Node, prefix: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*prefix, key.value)] = (key.start_mark.line + 1, key.start_mark.column + 1)
                look(value, (*prefix, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                found[(*prefix, number)] = (value.start_mark.line + 1, value.start_mark.column + 1)
                look(value, (*prefix, number))

    look(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


PIECES = (b":", b": ", b"\n", b"\t", b"  ", b"- ", b"[", b"}", b'"', b"'", b"#", b"&a ", b"*a", b"---\n", b"\0", b"%",
          b"|", b"0x", b"\r", b"!!python/name:os.system ")  # fmt: skip


def damaged(text: str, random: Random) -> bytes:
    """The text with up to five bytes or short runs of them replaced, left out, doubled or moved."""
    raw = text.encode()
    for _ in range(random.randint(1, 5)):
        start = random.randrange(len(raw) + 1)
        end = min(len(raw), start + random.randint(0, 8))
        piece = random.choice([b"", raw[start:end] * 2, random.randbytes(random.randint(1, 3)), *PIECES])
        raw = raw[:start] + piece + raw[end:]
    return raw


def dumped(tree: dict[str, Any], random: Random) -> str:
    """A tree as YAML in blocks, partly in flows, or as JSON; ftune and PyYAML read its keys at the same places."""
    if random.random() < 0.1:
        return json.dumps(tree, indent=random.choice([1, 2, 4]))
    flow = random.choice([False, False, None])
    return str(yaml.safe_dump(tree, sort_keys=False, default_flow_style=flow, width=10**6))
