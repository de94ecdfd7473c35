"""Conversations become text with supervised spans, and the prompts of generation, by the tokenizer's chat template."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ftune.data.chat import Turn
from ftune.data.chat_template import ChatTemplate, Talk, message_of
from ftune.data.places import Places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "last", "all"]
System = Literal["template", "merge_into_user"]
REWRITTEN = "the chat template rewrites earlier turns"
"""Note on rows whose answers are examples of their own."""


@dataclass(frozen=True)
class Rendered:
    """Text as it enters the tokenizer.

    Args:
        text: the whole row.
        spans: supervised character ranges, in order; none where every weight is 0.
        special: whether the tokenizer puts its own special tokens around the text.
        ends: whether no EOS is to follow: a supervised terminator ends the text, or nothing of its end is supervised.
        notes: what the data report should say of such rows.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    special: bool
    ends: bool
    notes: tuple[str, ...] = ()


class Part(NamedTuple):
    """What becomes one example of a row: all of it, or one answer with what stands before it.

    Args:
        turns: of the row, as many as are shown.
        train_on: which of their answers are learned.
        rendered: what they are rendered to.
    """

    turns: tuple[Turn, ...]
    train_on: TrainOn
    rendered: Rendered


class Conversations:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: with a chat template.
        system: what becomes of system turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: System) -> None:
        self._tokenizer = tokenizer
        self._system = system
        self.template = ChatTemplate(tokenizer)

    def prompt(self, turns: Sequence[Turn], tools: str) -> str:
        """What a model is given to go on after `turns`.

        Raises:
            ValueError: the template refuses them.
        """
        if not turns:
            raise ValueError("begins with an assistant message, so there is no prompt to answer")
        return self._text(self._talk(turns, tools), ask=True)

    def render(self, turns: Sequence[Turn], tools: str, train_on: TrainOn) -> Rendered:
        """All turns up to the last supervised one, with the places of what is supervised.

        Raises:
            ValueError: the template refuses the conversation, or its turns cannot be told apart.
        """
        rendered = self._rendered(turns, tools, train_on)
        if rendered is None:
            raise ValueError(
                f"{REWRITTEN}, so where each stands cannot be told. Set data.template to one that renders each turn "
                "the same wherever it stands, or data.train_on to completion"
            )
        return rendered

    def parts(self, turns: tuple[Turn, ...], tools: str, train_on: TrainOn) -> tuple[Part, ...]:
        """The whole conversation; or, where the template rewrites earlier answers in it, one part for each answer.

        Each of these ends with its answer and shows what the model sees in use when it writes that one.

        Raises:
            ValueError: the template refuses the conversation, or its turns cannot be told apart.
        """
        rendered = self._rendered(turns, tools, train_on)
        if rendered is not None or train_on != "completion":
            return (Part(turns, train_on, rendered or self.render(turns, tools, train_on)),)
        ends = [index + 1 for index, turn in enumerate(turns) if turn.role == "assistant" and turn.weight]
        rendered_each = [self.render(turns[:end], tools, "last") for end in ends]
        return tuple(
            Part(turns[:end], "last", replace(one, notes=(*one.notes, REWRITTEN)))
            for end, one in zip(ends, rendered_each, strict=True)
        )

    def _rendered(self, turns: Sequence[Turn], tools: str, train_on: TrainOn) -> Rendered | None:
        """As `render`; None where the template rewrites what is to be found."""
        talk = self._talk(turns, tools)
        if train_on == "all":
            return self._whole(talk)
        learned = learned_in(talk.turns, train_on)
        if not learned:
            return self._nothing(talk)
        talk = talk.upto(learned[-1] + 1)  # a template that looks ahead sees what it sees in use
        text = self._text(talk, ask=False)
        found = self.places.find(text, talk, learned)
        if found is None:
            return None
        places, notes = found
        spans = tuple((start, end) for start, end, _ in places)
        _, end, ends = places[-1]
        return Rendered(text[:end], spans, special=False, ends=ends, notes=(*self._notes(talk), *notes))

    def words_before(self, part: Part, tools: str) -> tuple[tuple[int, int], ...]:
        """Where the words of questions and tools stand in what is rendered, before the first answer that is learned.

        They are found like answers, with a mark in their place; those that cannot be found so are left out. Of words
        with system text before them, only the words count.
        """
        talk = self._talk(part.turns, tools)
        learned = learned_in(talk.turns, part.train_on)
        if part.train_on == "all" or not learned:
            return ()
        talk = talk.upto(learned[-1] + 1)
        text = self._text(talk, ask=False)
        said = [turn.content.strip() for turn in part.turns if turn.role != "system"]
        indices = [index for index, turn in enumerate(talk.turns) if turn.role != "system"]
        found = []
        for index, words in zip(indices, said, strict=False):
            if index < learned[0] and words and talk.turns[index].role != "assistant":
                place = self.places.words(text, talk, index)
                at = -1 if place is None else text.rfind(words, *place)
                found += [] if at < 0 else [(at, at + len(words))]
        return tuple(found)

    @functools.cached_property
    def places(self) -> Places:
        """Where answers are."""
        return Places(self.template, self.special)

    @functools.cached_property
    def special(self) -> re.Pattern[str]:
        """Any special token; one that begins like a longer one comes after it."""
        added = self._tokenizer.added_tokens_decoder.values()
        tokens = sorted((str(token.content) for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def _nothing(self, talk: Talk) -> Rendered:
        """A row of which nothing is to be learned."""
        return Rendered(self._text(talk, ask=False), (), special=False, ends=True, notes=self._notes(talk))

    def _whole(self, talk: Talk) -> Rendered | None:
        """Everything is supervised, but not the turns of weight 0; None where these cannot be found."""
        hidden = [index for index, turn in enumerate(talk.turns) if not turn.weight]
        if len(hidden) == len(talk.turns):
            return self._nothing(talk)
        for role in (talk.turns[index].role for index in hidden):
            if role != "assistant":
                raise ValueError(f"has weight 0 on a {role} message, which data.train_on all does not obey")
        text = self._text(talk, ask=False)
        found = self.places.find(text, talk, hidden) if hidden else ([], ())
        if found is None:
            return None
        places, _ = found
        edges = [0, *(edge for start, end, _ in places for edge in (start, end)), len(text)]
        spans = tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if text[a:b].strip())
        text = text[: spans[-1][1]]
        ended = re.search(rf"(?:{self.special.pattern})\s*$", text)
        cut = len(text) < edges[-1]
        return Rendered(text, spans, special=False, ends=cut or ended is not None, notes=self._notes(talk))

    def _talk(self, turns: Sequence[Turn], tools: str) -> Talk:
        """A conversation as the template takes it."""
        turns = _merged(turns) if self._system == "merge_into_user" else tuple(turns)
        calls = any(turn.tool_calls for turn in turns) and self.template.shows("tool_calls", with_tools=bool(tools))
        messages = tuple(message_of(turn, calls=calls) for turn in turns)
        return Talk(turns, messages, json.loads(tools) if tools else None)

    def _text(self, talk: Talk, *, ask: bool) -> str:
        """The whole conversation, with advice where the template refuses it."""
        try:
            return self.template.text(talk.messages, ask=ask, tools=talk.tools)
        except ValueError as error:
            if not any(turn.role == "system" for turn in talk.turns):
                raise
            try:
                messages = [message_of(turn, calls=True) for turn in _merged(talk.turns)]
                self.template.text(messages, ask=ask, tools=talk.tools)
            except ValueError:
                raise error from None
            stop = "" if str(error).endswith(("!", "?", ".")) else "."
            raise ValueError(f"{error}{stop} Set data.system to merge_into_user") from error

    def _notes(self, talk: Talk) -> tuple[str, ...]:
        """What a row holds that the template does not show, or that the tokenizer takes for its own."""
        notes = []
        with_tools = bool(talk.tools)
        if with_tools and not self.template.shows("tools", with_tools=True):
            notes.append("tools are described, which the chat template does not show to the model")
        if any(turn.reasoning for turn in talk.turns) and not self.template.shows(
            "reasoning_content", with_tools=with_tools
        ):
            notes.append("thoughts are apart from answers, where the chat template does not show them to the model")
        if any(self.special.search(turn.content) for turn in talk.turns):
            notes.append("words of a message spell a special token of the tokenizer, and are read as that token")
        return tuple(notes)


def learned_in(turns: Sequence[Turn], train_on: TrainOn) -> list[int]:
    """Numbers of the answers that are learned, unless all is."""
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    chosen = answers if train_on == "completion" else answers[-1:]
    return [index for index in chosen if turns[index].weight]


def _merged(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns without system turns: their words stand before those of the user turn that follows.

    Raises:
        ValueError: none follows.
    """
    kept: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "system":
            waiting += [turn.content] if turn.content.strip() else []
        elif turn.role == "user" and waiting:
            kept.append(replace(turn, content="\n\n".join([*waiting, turn.content])))
            waiting = []
        else:
            kept.append(turn)
    if waiting:
        raise ValueError("has a system message without a user message after it, so it cannot be merged into one")
    return tuple(kept)
