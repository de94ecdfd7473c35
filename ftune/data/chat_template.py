"""A tokenizer's chat template: messages in, text out, and what kinds of message it has words for."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftune.data.chat import Turn

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a template may raise besides Jinja's own errors, such as OverflowError for a range beyond the sandbox's."""
MARK = "Qx7ftunemark7xQ"
"""A word that no template writes by itself, and that every change of letters changes."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Talk:
    """A conversation as a template takes it.

    Args:
        turns: who said what.
        messages: the same, in the words of chat templates.
        tools: descriptions of the tools, or None.
    """

    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    tools: Any

    def __len__(self) -> int:
        return len(self.messages)

    def upto(self, stop: int) -> Talk:
        """The messages before number `stop`."""
        return Talk(self.turns[:stop], self.messages[:stop], self.tools)


class ChatTemplate:
    """The chat template of a tokenizer, or one of several where those for tools are apart.

    Args:
        tokenizer: read at the first use, for its template and special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._compiled: dict[bool, Template] = {}
        self._shown: dict[tuple[str, bool], bool] = {}

    def text(
        self, messages: Sequence[Message], *, ask: bool, tools: Any = None, marks: tuple[str, str] | None = None
    ) -> str:
        """The conversation as text.

        Args:
            messages: at least one.
            ask: whether to end with the beginning of an answer.
            tools: descriptions of tools, as the row has them.
            marks: what to write before and after each `{% generation %}` block.

        Raises:
            ValueError: the template refuses the conversation, or is none.
        """
        from jinja2 import TemplateError

        from ftune.data.bounded import render
        from ftune.data.sandbox import MARKS

        template = self._template(tools is not None)
        try:
            return render(
                template,
                {
                    **self._special_tokens,
                    "messages": list(messages),
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": ask,
                    MARKS: marks,
                },
            )
        except (TemplateError, *FAULTS) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ValueError(f"the chat template refuses the roles {roles}: {error}") from error

    def marks_answers(self, tools: Any) -> bool:
        """Whether the template says itself what an assistant wrote, with `{% generation %}`."""
        return bool(_GENERATION.search(self._source(tools is not None)))

    def shows(self, what: str, *, with_tools: bool) -> bool:
        """Whether the template has words for `tools`, or for the `tool_calls` or `reasoning_content` of an answer."""
        if (what, with_tools) not in self._shown:
            self._shown[what, with_tools] = self._writes_mark(*_probe(what, with_tools))
        return self._shown[what, with_tools]

    def _writes_mark(self, answer: Message, tools: Any) -> bool:
        for front in ((), ({"role": "system", "content": "s"},)):
            try:
                return MARK in self.text([*front, {"role": "user", "content": "q"}, answer], ask=False, tools=tools)
            except ValueError:  # it insists on a system turn, or has no words for this at all
                continue
        return False

    def _template(self, with_tools: bool) -> Template:
        from jinja2 import TemplateSyntaxError

        from ftune.data.sandbox import chat_environment

        if with_tools not in self._compiled:
            try:
                self._compiled[with_tools] = chat_environment().from_string(self._source(with_tools))
            except TemplateSyntaxError as error:
                where = f"{error.message} (its line {error.lineno})"
                raise ValueError(
                    f"the tokenizer's chat template is no valid Jinja: {where}. Set data.template"
                ) from error
        return self._compiled[with_tools]

    def _source(self, with_tools: bool) -> str:
        return str(self._tokenizer.get_chat_template(tools=[] if with_tools else None))

    @functools.cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self._tokenizer.special_tokens_map)


def _probe(what: str, with_tools: bool) -> tuple[Message, Any]:
    """An answer and a list of tools with the mark in what is asked about, and only there."""
    called, described = (MARK if what == kind else "look" for kind in ("tool_calls", "tools"))
    answer: Message = {"role": "assistant", "content": "yes"}
    if what == "tool_calls":
        call = {"type": "function", "id": "call00001", "function": {"name": called, "arguments": {"at": "it"}}}
        answer |= {"content": "", "tool_calls": [call]}
    elif what == "reasoning_content":
        answer |= dict.fromkeys(("reasoning_content", "thinking"), MARK)
    tool = {"type": "function", "function": {"name": described, "description": "", "parameters": {}}}
    return answer, [tool] if with_tools else None


def message_of(turn: Turn, *, calls: bool) -> Message:
    """A turn as chat templates expect it, without the keys that it does not use.

    Args:
        turn: one of a conversation.
        calls: whether the template has a form for tool calls; those that are spelled out in words stay words if not.

    Raises:
        ValueError: the turn has calls, and there are neither words nor a form for them.
    """
    message: Message = {"role": turn.role, "content": turn.content}
    if turn.tool_calls and (calls or not turn.spelled):
        if not calls:
            raise ValueError(
                "calls tools, and the chat template has no form for that. Set data.template to one that writes "
                "message.tool_calls"
            )
        message["tool_calls"] = json.loads(turn.tool_calls)
        message["content"] = "" if turn.spelled else turn.content
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.reasoning:  # gpt-oss reads the second name
        message |= dict.fromkeys(("reasoning_content", "thinking"), turn.reasoning)
    return message
