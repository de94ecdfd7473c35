"""What token ids spell, and where in that text each token stands; and how such text is shown safely."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Range = tuple[int, int]
_BROKEN = "\ufffd"
"""What decoders write for bytes that are no whole character."""
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters but line ends, those that turn the direction of writing around, and halves of pairs."""


def spell(ids: Sequence[int], decode: Callable[[list[int]], str]) -> tuple[str, list[Range]]:
    """The text of all tokens, and the range of it that each token spells.

    Tokens are decoded behind those before them, since some tokenizers leave out the space of the first. Tokens that
    are parts of one character all have its range. A library's streaming decoder would do, but gives up with an error
    on some sequences of broken bytes.

    Args:
        ids: token ids, [T].
        decode: spells ids, special ones too.
    """
    text, before = "", ""
    ranges: list[Range] = []
    context = read = 0  # ids[context:read] are spelled already, by `before`
    for i in range(len(ids)):
        whole = decode(list(ids[context : i + 1]))
        if whole.endswith(_BROKEN) and i + 1 < len(ids):
            continue  # the next token may complete the character
        new = whole[len(before) :]
        waiting = decode(list(ids[context:i]))[len(before) :] if i > read else ""
        broken = len(waiting) if waiting and new.startswith(waiting) and new != waiting else 0
        start = len(text)
        if broken:  # what waited was never completed: this token spells the rest
            ranges += [(start, start + broken)] * (i - read)
            ranges.append((start + broken, start + len(new)))
        else:
            ranges += [(start, start + len(new))] * (i + 1 - read)
        text += new
        context, read = read, i + 1
        before = decode(list(ids[context:read]))
    return text, ranges


def visible(text: str) -> str:
    """The text with every control character but the line end as a picture or a number, so that it drives no terminal.

    `␛` stands for the escape character, `<U+202E>` for one that turns the direction of writing around.
    """
    return _UNSEEN.sub(lambda found: _picture(ord(found[0])), text)


def _picture(point: int) -> str:
    if point < 0x20:
        return chr(0x2400 + point)
    return "\u2421" if point == 0x7F else f"<U+{point:04X}>"
