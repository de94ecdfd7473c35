"""The same recipe in other clothing: keys in another order, quotes, comments, blank lines, blocks, flows, line ends."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./@-]*( [A-Za-z0-9_./-]+)*|[1-9][0-9]*(%| epochs?| steps)")
RESERVED = {"true", "false", "null", "Null", "NULL"}
COMMENTS = ("note: [a, {b", "'", '"quoted', "train: {lr: 1}", "---", "\tx", "é 漢 🙂", "%YAML", "*a &b !c", "")


def restyled(tree: dict[str, Any], random: Random) -> bytes:
    """`tree` as a recipe file in a style of its own, which says the same."""
    if random.random() < 0.08:
        text = json.dumps(
            _shuffled(tree, random), indent=random.choice([None, 1, 3]), ensure_ascii=random.random() < 0.5
        )
    else:
        lines = [*_noise(random), *_block(tree, 0, random), *_noise(random)]
        text = "\n".join(lines) + random.choice(["", "\n", "\n\n  \n"])
        text = random.choice(["", "---\n"]) + text + random.choice(["", "", "\n...\n"])
    if random.random() < 0.3:
        text = text.replace("\n", "\r\n")
    return (b"\xef\xbb\xbf" if random.random() < 0.2 else b"") + text.encode()


def _shuffled(value: Any, random: Random) -> Any:
    if isinstance(value, dict):
        return {key: _shuffled(value[key], random) for key in random.sample(list(value), len(value))}
    return [_shuffled(entry, random) for entry in value] if isinstance(value, list) else value


def _noise(random: Random) -> list[str]:
    """Now and then a comment at any column, or lines of nothing."""
    lines = [" " * random.randrange(9) + "#" + random.choice(COMMENTS)] if random.random() < 0.15 else []
    return lines + [" " * random.choice([0, 3])] * random.choice([0, 0, 0, 0, 1, 2])


def _tail(random: Random) -> str:
    return " " * random.randint(1, 5) + f"# {random.choice(COMMENTS)}" if random.random() < 0.2 else ""


def _block(value: Any, indent: int, random: Random) -> list[str]:
    """A block of keys, or of entries."""
    lines: list[str] = []
    pad, items = " " * indent, _shuffled(value, random)
    for item in items:
        lines += _noise(random)
        inner = items[item] if isinstance(items, dict) else item
        head = f"{pad}{_word(item, random)}{random.choice(['', '', ' '])}:" if isinstance(items, dict) else f"{pad}-"
        deeper = indent + random.randint(1, 6)
        if isinstance(inner, (dict, list)) and inner and random.random() < 0.7:
            lines += [head + _tail(random), *_block(inner, deeper, random)]
        elif isinstance(inner, str) and "\n" in inner and _fits_a_block(inner) and random.random() < 0.7:
            lines += [f"{head} |{'' if inner.endswith(chr(10)) else '-'}"]
            lines += [" " * deeper + line if line else "" for line in inner.removesuffix("\n").split("\n")]
            lines.append("#")  # in the first column, so that the text ends here, whatever follows
        else:
            lines.append(f"{head} {_flow(inner, random)}{_tail(random)}")
    return lines


def _fits_a_block(text: str) -> bool:
    """No blank at either end, which a block of text would need a sign for."""
    return text[:1] not in (" ", "\n") and not text.endswith("\n\n") and text.strip() != ""


def _flow(value: Any, random: Random) -> str:
    """A value within a line."""
    gap = random.choice(["", " "])
    if isinstance(value, dict):
        return "{" + gap + ", ".join(f"{_word(k, random)}: {_flow(v, random)}" for k, v in value.items()) + gap + "}"
    if isinstance(value, list):
        return f"[{gap}{', '.join(_flow(entry, random) for entry in value)}{gap}]"
    if isinstance(value, str):
        return _word(value, random)
    if value is None:
        return random.choice(["null", "~"])
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return random.choice([repr(value), f"{value:e}", f"{value:.17g}", f"{value:E}"])
    return random.choice([str(value), str(value), f"0x{value:x}"]) if value >= 0 else str(value)


def _word(text: str, random: Random) -> str:
    """Plain where it can be, else in either kind of quotes."""
    ways = [json.dumps(text, ensure_ascii=False), json.dumps(text)]
    if "\n" not in text and text.isprintable():
        ways.append("'" + text.replace("'", "''") + "'")
    if PLAIN.fullmatch(text) and text not in RESERVED:
        ways += [text] * 4
    return random.choice(ways)
