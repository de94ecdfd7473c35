"""Where in a rendered conversation each answer stands, found by comparison and never by guess.

What an assistant writes begins where the prompt for it ends, and ends with the terminator of the turn. A template may
do anything in between, so its code is not read but its work compared: the conversation is rendered up to the turn,
with the turn, and with a mark in place of the turn's words. Only where these agree letter by letter is a place known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ftune.data.chat_template import MARK, ChatTemplate, Talk

Place = tuple[int, int, bool]
"""Where a turn begins and ends, and whether with a terminator."""
_CLOSED = re.compile(r".*(?:</\w+>|\[/\w+\])", re.DOTALL)
"""Thoughts before an answer, up to where they are closed."""
_SET = "Set data.template to one that"


class Places:
    """Finds answers in what a chat template writes.

    Args:
        template: of the conversations.
        special: any special token of the tokenizer.
    """

    def __init__(self, template: ChatTemplate, special: re.Pattern[str]) -> None:
        self.template = template
        self._special = special

    def find(self, text: str, talk: Talk, learned: Sequence[int]) -> tuple[list[Place], tuple[str, ...]] | None:
        """The place in `text` of each of the messages `learned`, and notes on them.

        None where the template rewrites an earlier one of them, or what stands before it, once more is said: in `text`
        it does not stand as the model writes it in use.

        Args:
            text: `talk` as the template writes it.
            talk: the conversation.
            learned: which of its messages, all of assistants, in order.

        Raises:
            ValueError: a place cannot be told, or a prompt would not be what it is in use.
        """
        blocks = self._blocks(text, talk) if self.template.marks_answers(talk.tools) else None
        places: list[Place] = []
        notes: dict[str, None] = {}
        for index in learned:
            if index == 0:
                raise ValueError("begins with an assistant message, so there is no prompt to answer")
            before = self.template.text(talk.messages[:index], ask=True, tools=talk.tools)
            upto = talk.upto(index + 1)
            after = text if len(upto) == len(talk) else self.template.text(upto.messages, ask=False, tools=talk.tools)
            if blocks is None and not after.startswith(before):
                raise ValueError(self._asks_otherwise(before, talk.upto(index)))
            if not text.startswith(after):
                return None
            if blocks is not None:
                places.append(self._in_block(text, upto, before, blocks[index]))
                continue
            end, ends, added = self._end(after, len(before), upto)
            places.append((len(before), end, ends))
            if "".join(added).strip():
                shown = " and ".join(repr(part) for part in added if part.strip())
                notes[f"the chat template writes {shown} around the words of an answer, which is learned too"] = None
        return places, tuple(notes)

    def words(self, text: str, talk: Talk, index: int) -> tuple[int, int] | None:
        """Where `text`, which is `talk`, has the words of message `index`; None where more depends on them."""
        mark = MARK
        while mark in text:
            mark += "x"
        changed = [*talk.messages]
        changed[index] = {**changed[index], "content": mark}
        pieces = self.template.text(changed, ask=False, tools=talk.tools).split(mark)
        start, end = len(pieces[0]), len(text) - len(pieces[-1])
        same = len(pieces) == 2 and text.startswith(pieces[0]) and text.endswith(pieces[1]) and start <= end
        return (start, end) if same else None

    def _asks_otherwise(self, before: str, asked: Talk) -> str:
        asks = before.removeprefix(self.template.text(asked.messages, ask=False, tools=asked.tools))
        return (
            f"the chat template asks for an answer with {asks[-60:]!r} but writes one otherwise, so the prompt in use "
            f"would not be the one that is trained. {_SET} does both alike"
        )

    def _end(self, after: str, start: int, upto: Talk) -> tuple[int, bool, tuple[str, ...]]:
        """Where the last turn of `upto` ends, whether with a terminator, and what is around the words of every turn."""
        message = upto.messages[-1]
        if "tool_calls" in message:
            return (*self._end_of_calls(after, start, len(after), message), ())

        def again(content: str) -> str:
            changed = [*upto.messages[:-1], {**message, "content": content}]
            return self.template.text(changed, ask=False, tools=upto.tools)[start:]

        words_end, head = self._end_of_words(after[start:], str(message["content"]), again)
        end = start + words_end
        terminator = self._special.search(after, end)
        between = "" if terminator is None else after[end : terminator.start()]
        added = () if head is None else (head, between)
        return (end, False, added) if terminator is None else (terminator.end(), True, added)

    def _end_of_words(self, region: str, words: str, again: Callable[[str], str]) -> tuple[int, str | None]:
        """Where `words` end in `region`, and what stands before them in every answer.

        Args:
            region: what the template writes for a turn, after its prompt.
            words: of the turn.
            again: the region with other words.

        Raises:
            ValueError: they are not there once, and unaltered but for white space around.
        """
        for head, tail in self._frames:
            end = _fit(region, head, tail, words)
            if end is not None:
                return end, head
        mark = MARK
        while mark in region:
            mark += "x"
        closed = _CLOSED.match(words)
        for kept in ("", *([] if closed is None else [closed.group()])):
            pieces = again(kept + mark).split(mark)
            if len(pieces) > 2:
                times = len(pieces) - 1
                raise ValueError(
                    f"the chat template writes an answer {times} times, so what to train on cannot be told. {_SET} "
                    "writes it once"
                )
            end = _fit(region, pieces[0], pieces[1], words[len(kept) :]) if len(pieces) == 2 else None
            if end is not None and "".join(kept.split()) in "".join(pieces[0].split()):
                return end, None
        raise ValueError(
            f"the chat template alters the assistant's words, so what to train on cannot be told. {_SET} writes "
            "message.content as it is"
        )

    def _end_of_calls(self, text: str, start: int, stop: int, message: dict[str, Any]) -> tuple[int, bool]:
        """Where a turn with tool calls ends in `text[start:stop]`. Each template has a form of its own for these."""
        region = text[start:stop]
        names = [str(call["function"]["name"]) for call in message["tool_calls"]]
        if any(name not in region for name in names) or str(message["content"]).strip() not in region:
            raise ValueError(f"the chat template leaves out a tool call. {_SET} writes message.tool_calls")
        found = list(self._special.finditer(region, max(region.rfind(name) + len(name) for name in names)))
        usual = [token for token in found if token.group() in self._terminators]
        if usual:
            return start + usual[-1].end(), True
        if not found:
            return start + len(region.rstrip()), False
        if region[found[-1].end() :].strip():
            raise ValueError(f"the end of a tool call cannot be told. {_SET} ends it with a special token")
        return start + found[-1].end(), True

    # templates that mark answers themselves

    def _blocks(self, text: str, talk: Talk) -> dict[int, tuple[int, int]] | None:
        """The `{% generation %}` block of each answer; None where they do not belong together one by one."""
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        opening, closing = next(unused), next(unused)
        written = self.template.text(talk.messages, ask=False, tools=talk.tools, marks=(opening, closing))
        blocks: list[tuple[int, int]] = []
        place, start = 0, -1
        for piece in re.split(f"([{opening}{closing}])", written):
            if piece == opening and start < 0:
                start = place
            elif piece == closing and start >= 0:
                blocks.append((start, place))
                start = -1
            elif piece in (opening, closing):
                return None  # one inside another
            place += len(piece) * (piece not in (opening, closing))
        answers = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
        same = written.replace(opening, "").replace(closing, "") == text
        if not same or start >= 0 or len(blocks) != len(answers):
            return None
        words = [str(talk.messages[index]["content"]).strip() for index in answers]
        if any(text.count(said, *block) != 1 for said, block in zip(words, blocks, strict=True) if said):
            return None
        return dict(zip(answers, blocks, strict=True))

    def _in_block(self, text: str, upto: Talk, before: str, block: tuple[int, int]) -> Place:
        """The place of the last turn of `upto`, which the template has put into `block`.

        Of the block, what the prompt brings already is not learned; a terminator that follows it is.
        """
        start, stop = block
        message = upto.messages[-1]
        content = str(message["content"])
        said = text.index(content.strip(), start, stop)
        end = said + len(content.strip())
        after_words = content[len(content.rstrip()) :]
        end += len(after_words) if text.startswith(after_words, end) else 0
        begin = len(before)
        if not text.startswith(before) or begin > said:
            raise ValueError(self._asks_otherwise(before, upto.upto(len(upto) - 1)))
        if "tool_calls" in message:
            end, ends = self._end_of_calls(text, begin, stop, message)
        else:
            terminator = self._special.search(text, end, stop)
            end = max(end, len(text[:stop].rstrip())) if terminator is None else terminator.end()
            ends = terminator is not None
        follows = None if ends else re.compile(rf"\s*(?:{self._special.pattern})").match(text, stop)
        return (begin, end, ends) if follows is None else (begin, follows.end(), True)

    # what a template does to every answer

    @functools.cached_property
    def _frames(self) -> tuple[tuple[str, str], ...]:
        """What the template writes before and after the words of an ordinary answer, first and later ones."""
        user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": MARK}
        system, earlier = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}
        frames: dict[tuple[str, str], None] = {}
        for front in ([user], [system, user], [user, earlier, user]):
            try:
                before = self.template.text(front, ask=True)
                after = self.template.text([*front, answer], ask=False)
            except ValueError:  # it refuses a system turn, or insists on one
                continue
            pieces = after.removeprefix(before).split(MARK)
            if after.startswith(before) and len(pieces) == 2:
                frames[pieces[0], pieces[1]] = None
        return tuple(frames)

    @functools.cached_property
    def _terminators(self) -> frozenset[str]:
        """Special tokens that end ordinary answers."""
        found = [self._special.search(tail) for _, tail in self._frames]
        return frozenset(token.group() for token in found if token is not None)


def _fit(region: str, head: str, tail: str, words: str) -> int | None:
    """Where `words` end, if `region` is `head`, these words with or without white space around, and `tail`."""
    end = len(region) - len(tail)
    if len(head) > end or not region.startswith(head) or not region.endswith(tail):
        return None
    found = region[len(head) : end]
    return end if found in words and found.strip() == words.strip() else None
