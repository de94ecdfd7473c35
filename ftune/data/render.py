"""The one renderer: a sample becomes text with supervised spans, in training, evaluation and generation alike.

Spans are character ranges of the rendered text, found by construction and never by comparing token ids. A span ends
with the turn's terminator, so that a model learns to stop.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftune.data.shape import Sample, Turn
from ftune.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

Mode = Literal["chat", "prompt", "plain"]
TrainOn = Literal["completion", "last", "all"]


@dataclass(frozen=True)
class Rendered:
    """Text as it enters the tokenizer.

    Args:
        text: the whole row.
        spans: supervised character ranges, in order.
        special: whether the tokenizer puts its own special tokens around the text.
        ends: whether the text already ends with a supervised terminator; if not, EOS is appended.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    special: bool
    ends: bool


class Renderer:
    """Renders samples for one tokenizer.

    A recipe template that uses `messages` becomes the tokenizer's chat template; any other renders the prompt from
    the row's columns. Without one, the tokenizer's chat template is used when it has one, else the text as it is.

    Args:
        tokenizer: its chat template is replaced when the recipe brings one.
        template: `data.template`.

    Raises:
        DataError: the template is no valid Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self.tokenizer = tokenizer
        self.template = None if template is None else _compiled(template)
        if template is not None and "messages" in template:
            tokenizer.chat_template = template
        self.mode: Mode = "plain"
        if template is not None and "messages" not in template:
            self.mode = "prompt"
        elif tokenizer.chat_template:
            self.mode = "chat"

    @property
    def description(self) -> str:
        """How prompts are rendered, for the plan."""
        return {
            "chat": "chat template of the tokenizer" if self.template is None else "chat template of the recipe",
            "prompt": "prompt template of the recipe",
            "plain": "text as it is",
        }[self.mode]

    def render(self, sample: Sample, train_on: TrainOn) -> Rendered:
        """The whole sample with its supervised spans.

        Raises:
            ValueError: the template refuses the conversation, or its turns cannot be told apart.
        """
        if not sample.turns:
            return Rendered(sample.text, ((0, len(sample.text)),), special=True, ends=False)
        if self.mode == "chat":
            rendered = self._conversation(sample.turns, train_on)
        else:
            prompt, answer = self.prompt(sample), sample.turns[-1].content
            spans = ((len(prompt), len(prompt) + len(answer)),)
            rendered = Rendered(prompt + answer, spans, special=True, ends=False)
        if train_on == "all":
            return Rendered(rendered.text, ((0, len(rendered.text)),), rendered.special, rendered.ends)
        return rendered

    def prompt(self, sample: Sample) -> str:
        """What a model is given to answer the last assistant turn of `sample`.

        Raises:
            ValueError: the template refuses the conversation, or there is no template for one of several turns.
        """
        before = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
        if self.mode == "chat":
            return self._chat(before, ask=True)
        if any(turn.role == "assistant" for turn in before):
            raise ValueError("several turns need a chat template: the tokenizer has none. Set data.template")
        if self.template is not None:
            return _run(self.template, **(sample.fields or {}))
        return "\n\n".join(turn.content for turn in before)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt, exactly as training saw them."""
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        front = () if self.mode == "chat" else self.around[0]
        return [*front, *ids]

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
        if self.mode == "chat":
            rendered = self._conversation((Turn("user", "a"), Turn("assistant", "b")), "completion")
            if rendered.ends:
                last = self.tokenizer(rendered.text[: rendered.spans[-1][1]], add_special_tokens=False)["input_ids"]
                ids.add(last[-1])
        return tuple(sorted(ids))

    def _conversation(self, turns: tuple[Turn, ...], train_on: TrainOn) -> Rendered:
        text = self._chat(turns, ask=False)
        spans: list[tuple[int, int]] = []
        ends = False
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, after = self._chat(turns[:index], ask=True), self._chat(turns[: index + 1], ask=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    "the chat template rewrites earlier turns, so what to train on cannot be told. "
                    "Set data.template to one that renders each turn the same wherever it stands"
                )
            end, ends = self._end_of_turn(after, len(before), turn.content)
            spans.append((len(before), end))
        if train_on == "last":
            spans = spans[-1:]
        return Rendered(text[: spans[-1][1]] if train_on != "all" else text, tuple(spans), special=False, ends=ends)

    def _end_of_turn(self, text: str, start: int, content: str) -> tuple[int, bool]:
        """Where the turn that begins at `start` ends, and whether it ends with a terminator."""
        body = content.strip()
        found = text.find(body, start)
        if found < 0:
            raise ValueError("the chat template alters the assistant's words, so what to train on cannot be told")
        after = found + len(body)
        nearest = [(text.find(token, after), token) for token in self._special_tokens if token in text[after:]]
        if not nearest:
            return after, False
        position, token = min(nearest)
        return position + len(token), True

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted({str(token.content) for token in added if token.special}))

    def _chat(self, turns: tuple[Turn, ...], *, ask: bool) -> str:
        from jinja2 import TemplateError

        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except (TemplateError, TypeError, IndexError, KeyError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ValueError(f"the chat template refuses the roles {roles}: {error}") from error
        return str(text)


def _compiled(template: str) -> Template:
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise DataError(f"data.template: is no valid Jinja: {error.message} (its line {error.lineno}).") from error


def _run(template: Template, **values: Any) -> str:
    from jinja2 import TemplateError

    try:
        return template.render(**values)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"data.template cannot be rendered: {error}. Columns here: {', '.join(values)}") from error
