"""The one renderer: a sample becomes text with supervised spans, in training, evaluation and generation alike.

Spans are character ranges of the rendered text, found by construction and never by comparing token ids. A span ends
with the turn's terminator, so that a model learns to stop.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ftune.data.chat import Turn
from ftune.data.chat_template import FAULTS
from ftune.data.conversation import Conversations, Part, Rendered, System, TrainOn
from ftune.data.shape import Sample
from ftune.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template, TemplateSyntaxError
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "System", "TrainOn", "template_columns"]

Mode = Literal["chat", "prompt", "plain"]
_OF_MESSAGES = re.compile(r"\{[{%](?:(?![%}]\}).)*?\bmessages\b", re.DOTALL)
"""A template of whole conversations: its code, not its words, speaks of `messages`."""
_NO_TOOLS = "tools are described, which no template shows to the model"


class Renderer:
    """Renders samples for one tokenizer.

    A recipe template that uses `messages` becomes the tokenizer's chat template; any other renders the prompt from
    the row's columns. Without one, the tokenizer's chat template is used when it has one, else the text as it is.

    Args:
        tokenizer: its chat template is replaced when the recipe brings one.
        template: `data.template`.
        system: `data.system`.

    Raises:
        DataError: the template is no valid Jinja, or leaves `system` without effect.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None, *, system: System = "template"
    ) -> None:
        self.tokenizer = tokenizer
        self.template: Template | None = None
        self.mode: Mode = "plain"
        self._ours = template is not None
        self._conversations = Conversations(tokenizer, system)
        if template is not None and not _OF_MESSAGES.search(template):
            self.template, self.mode = _compiled(template), "prompt"
            if system != "template":
                raise DataError(
                    f"data.system: {system} has no effect with a template of prompts, which shows the columns that it "
                    "names. Remove it."
                )
            return
        if template is not None:
            _check_chat(template)
            tokenizer.chat_template = template
        if tokenizer.chat_template:
            self.mode = "chat"

    @property
    def description(self) -> str:
        """How prompts are rendered, for the plan."""
        return {
            "chat": f"chat template of the {'recipe' if self._ours else 'tokenizer'}",
            "prompt": "prompt template of the recipe",
            "plain": "text as it is",
        }[self.mode]

    def render(self, sample: Sample, train_on: TrainOn) -> Rendered:
        """The whole sample with its supervised spans, as one text.

        Raises:
            ValueError: the template refuses the conversation, or its turns cannot be told apart.
        """
        if not sample.turns:
            return Rendered(sample.text, ((0, len(sample.text)),), special=True, ends=False)
        if self.mode == "chat":
            return self._conversations.render(sample.turns, sample.tools, train_on)
        prompt, answer = self.prompt(sample), sample.turns[-1]
        if answer.tool_calls and not answer.spelled:
            raise ValueError("calls tools, and there is no chat template with a form for that. Set data.template")
        text = prompt + answer.content
        start = len(sample.before) if train_on == "all" else len(prompt)
        stop = len(text) if answer.weight else len(prompt)
        notes = (_NO_TOOLS,) if sample.tools and "tools" not in sample.shown else ()
        spans = ((start, stop),) if start < stop else ()
        return Rendered(text[:stop], spans, special=True, ends=not answer.weight, notes=notes)

    def parts(self, sample: Sample, train_on: TrainOn) -> tuple[Part, ...]:
        """What becomes the examples of a sample: one, unless its chat template rewrites earlier answers.

        Raises:
            ValueError: as `render`.
        """
        if sample.turns and self.mode == "chat":
            return self._conversations.parts(sample.turns, sample.tools, train_on)
        return (Part(sample.turns, train_on, self.render(sample, train_on)),)

    def words_before(self, sample: Sample, part: Part) -> tuple[tuple[int, int], ...]:
        """Where the words of questions and tools stand in a chat, before the first answer that is learned."""
        return self._conversations.words_before(part, sample.tools)

    def answer(self, sample: Sample) -> str:
        """What a model is to write after `prompt`, as it reads once special tokens are left out.

        The words of the last turn, and where the template writes more, such as a tool call or thoughts, that as well.
        """
        words = sample.turns[-1].content
        if self.mode != "chat":
            return words
        learned = (*sample.turns[:-1], replace(sample.turns[-1], weight=1))
        try:
            rendered = self._conversations.render(learned, sample.tools, "last")
        except ValueError:  # with train_on all, where answers are need not be known
            return words
        (start, stop) = rendered.spans[-1]
        written = self._conversations.special.sub("", rendered.text[start:stop])
        return words if written.strip() == words.strip() else written

    def text(self, sample: Sample) -> str:
        """The text of a row with labels.

        Raises:
            ValueError: the template cannot be rendered.
        """
        return sample.text if self.template is None else _run(self.template, sample.fields or {})

    def prompt(self, sample: Sample) -> str:
        """What a model is given to answer the last assistant turn of `sample`.

        Raises:
            ValueError: the template refuses the conversation, or there is no template for one of several turns.
        """
        before = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
        if self.mode == "chat":
            return self._conversations.prompt(before, sample.tools)
        if any(turn.role == "assistant" for turn in before):
            raise ValueError("several turns need a chat template: the tokenizer has none. Set data.template")
        if self.template is not None:
            return sample.before + _run(self.template, sample.fields or {})
        return sample.before + "\n\n".join(turn.content for turn in before)

    def prompt_ids(self, prompt: str, *, raw: bool = False) -> list[int]:
        """Token ids of a rendered prompt, as training saw them; with `raw`, of a text that no template rendered."""
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return [*self.missing_front(ids, special=raw or self.mode != "chat"), *ids]

    def encoder_ids(self, text: str) -> list[int]:
        """Token ids of a text for an encoder, or for its decoder to write: special tokens around it, EOS at the end."""
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        return ids if self.around[1] or eos is None else [*ids, int(eos)]

    def missing_front(self, ids: list[int], *, special: bool) -> tuple[int, ...]:
        """Special ids to put before a text: none in a chat, nor where a template wrote them already."""
        front = self.around[0] if special else ()
        return () if tuple(ids[: len(front)]) == front else front

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Special ids that the tokenizer puts before and after a text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return tuple(full[:start]), tuple(full[start + len(bare) :])

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which an answer ends: the end of a turn as the template writes it, and EOS."""
        ids = set() if self.tokenizer.eos_token_id is None else {int(self.tokenizer.eos_token_id)}
        for turns, tools in self._examples() if self.mode == "chat" else ():
            try:
                rendered = self._conversations.render(turns, tools, "last")
            except ValueError:  # a template that refuses or insists on such turns, or cannot be trained on
                continue
            if rendered.ends:
                ids.add(self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"][-1])
        return tuple(sorted(ids))

    def _examples(self) -> tuple[tuple[tuple[Turn, ...], str], ...]:
        """Conversations that show how answers and tool calls end, with their tools."""
        call = '[{"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "it"}}}]'
        tool = '[{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]'
        system, user = Turn("system", "c"), Turn("user", "a")
        ends = ((Turn("assistant", "b"), ""), (Turn("assistant", "", tool_calls=call), tool))
        return tuple(((*front, end), tools) for end, tools in ends for front in ((user,), (system, user)))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)


def template_columns(template: str | None) -> tuple[str, ...]:
    """Names that a prompt template shows; none for a template of whole conversations.

    Raises:
        DataError: the template is no valid Jinja.
    """
    from jinja2.meta import find_undeclared_variables

    if template is None or _OF_MESSAGES.search(template):
        return ()
    from ftune.data.sandbox import prompt_environment

    _compiled(template)
    return tuple(sorted(find_undeclared_variables(prompt_environment().parse(template))))


def _compiled(template: str) -> Template:
    from jinja2 import TemplateSyntaxError

    from ftune.data.sandbox import prompt_environment

    try:
        return prompt_environment().from_string(template)
    except TemplateSyntaxError as error:
        raise _invalid(error) from error


def _check_chat(template: str) -> None:
    from jinja2 import TemplateSyntaxError

    from ftune.data.sandbox import chat_environment

    try:
        chat_environment().from_string(template)
    except TemplateSyntaxError as error:
        raise _invalid(error) from error


def _invalid(error: TemplateSyntaxError) -> DataError:
    return DataError(f"data.template: is no valid Jinja: {error.message} (its line {error.lineno}).")


def _run(template: Template, values: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    from ftune.data.bounded import render

    try:
        return render(template, values)
    except (TemplateError, *FAULTS) as error:
        raise ValueError(f"data.template cannot be rendered: {error}. Columns here: {', '.join(values)}") from error
