"""A chat that is too long loses what is oldest and stays a chat: whole turns go first, then words of what is left.

Nothing goes that is learned, and no system text. What a template writes around turns stays whole, so the model meets in
training what it meets in use when an application forgets the oldest turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ftune.data.chat import Turn
from ftune.data.conversation import Part, Rendered, learned_in
from ftune.data.encode import Spelled, Tokens
from ftune.data.render import Renderer
from ftune.data.shape import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding


def shorter(part: Part) -> list[tuple[Turn, ...]]:
    """The turns of a part without the oldest ones, from the longest to the shortest: each begins with a question."""
    turns = part.turns
    learned = learned_in(turns, part.train_on)
    if part.train_on == "all" or not learned:
        return []
    front = next(at for at, turn in enumerate(turns) if turn.role != "system")
    starts = [at for at in range(front + 1, learned[0]) if turns[at].role == "user"]
    return [(*turns[:front], *turns[start:]) for start in starts]


class Tried(NamedTuple):
    """A part of a row on its way to fewer turns, and its tokens."""

    part: Part
    encoding: Encoding
    tokens: Tokens


@dataclass(frozen=True)
class Shortener:
    """Makes chats shorter.

    Args:
        renderer: of chats.
        encode: tokens of a text without special ones around.
        marked: ids and targets of a rendered text and its tokens.
        limit: tokens that an example may have.
    """

    renderer: Renderer
    encode: Callable[[str], Encoding]
    marked: Callable[[Rendered, Encoding], Tokens]
    limit: int

    def shorten(self, sample: Sample, part: Part, encoding: Encoding) -> Tokens:
        """The tokens of a part that is too long, without its oldest turns where that helps.

        What is returned may be too long still. Then it says which tokens may go: words of questions and of tools. Where
        that does not help either, it is the whole again.
        """
        whole = Tried(part, encoding, self.marked(part.rendered, encoding))
        candidates = shorter(part)
        fits: Tokens | None = None
        low, high = 0, len(candidates)
        while low < high:  # as many turns stay as fit
            middle = (low + high) // 2
            tried = self._tried(sample, part, candidates[middle])
            if tried is not None and len(tried.tokens.ids) <= self.limit:
                fits, high = tried.tokens, middle
            else:
                low = middle + 1
        if fits is not None:
            return fits
        last = self._tried(sample, part, candidates[-1]) if candidates else whole
        return self._without_words(sample, last or whole) or whole.tokens._replace(removable=())

    def _without_words(self, sample: Sample, tried: Tried) -> Tokens | None:
        """Tokens that say which of them may go; None where that does not make room enough."""
        rendered, tokens = tried.part.rendered, tried.tokens
        spelled = Spelled(rendered.text, tried.encoding, None)
        places = self.renderer.words_before(sample, tried.part)
        ranges = tuple(spelled.inside(start, end) for start, end in places)
        room = sum(last - first for first, last in ranges)
        return tokens._replace(removable=ranges) if len(tokens.ids) - room <= self.limit else None

    def _tried(self, sample: Sample, part: Part, turns: tuple[Turn, ...]) -> Tried | None:
        try:
            rendered = self.renderer.render(replace(sample, turns=turns), part.train_on)
        except ValueError:  # the template wants the turns that are missing
            return None
        encoding = self.encode(rendered.text)
        return Tried(Part(turns, part.train_on, rendered), encoding, self.marked(rendered, encoding))
