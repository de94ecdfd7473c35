"""The one renderer: a sample becomes text with supervised spans, in training, evaluation and generation alike.

Spans are character ranges of the rendered text, found by construction and never by comparing token ids. A span ends
with the turn's terminator, so that a model learns to stop.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftune.data.chat import Turn
from ftune.data.shape import Sample
from ftune.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers import PreTrainedTokenizerBase

Mode = Literal["chat", "prompt", "plain"]
TrainOn = Literal["completion", "last", "all"]
_OF_MESSAGES = re.compile(r"\{[{%](?:(?![%}]\}).)*?\bmessages\b", re.DOTALL)
"""A template of whole conversations: its code, not its words, speaks of `messages`."""
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a template may raise besides Jinja's own errors, such as OverflowError for a range beyond the sandbox's."""


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
        self.template: Template | None = None
        self.mode: Mode = "plain"
        self._ours = template is not None
        if template is not None and not _OF_MESSAGES.search(template):
            self.template, self.mode = _compiled(template), "prompt"
            return
        if template is not None:
            tokenizer.chat_template = template
            _check_syntax(tokenizer)
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
        """The whole sample with its supervised spans.

        Raises:
            ValueError: the template refuses the conversation, or its turns cannot be told apart.
        """
        if not sample.turns:
            return Rendered(sample.text, ((0, len(sample.text)),), special=True, ends=False)
        if self.mode == "chat":
            return self._conversation(sample.turns, train_on)
        prompt = self.prompt(sample)
        text = prompt + sample.turns[-1].content
        start = 0 if train_on == "all" else len(prompt)
        return Rendered(text, ((start, len(text)),), special=True, ends=False)

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
            return self._chat(before, ask=True)
        if any(turn.role == "assistant" for turn in before):
            raise ValueError("several turns need a chat template: the tokenizer has none. Set data.template")
        if self.template is not None:
            return _run(self.template, sample.fields or {})
        return "\n\n".join(turn.content for turn in before)

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
        asked, system = (Turn("user", "a"), Turn("assistant", "b")), Turn("system", "c")
        for turns in (asked, (system, *asked)) if self.mode == "chat" else ():
            try:
                rendered = self._conversation(turns, "last")
            except ValueError:  # a template that insists on a system turn, or cannot be trained on
                continue
            if rendered.ends:
                ids.add(self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"][-1])
            break
        return tuple(sorted(ids))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)

    def _conversation(self, turns: tuple[Turn, ...], train_on: TrainOn) -> Rendered:
        text = self._chat(turns, ask=False)
        if train_on == "all":
            last = re.search(rf"(?:{self._special.pattern})\s*$", text)
            return Rendered(text, ((0, len(text)),), special=False, ends=last is not None)
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        spans: list[tuple[int, int]] = []
        ends = False
        for index in answers if train_on == "completion" else answers[-1:]:
            before = self._chat(turns[:index], ask=True)
            after = text if index + 1 == len(turns) else self._chat(turns[: index + 1], ask=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    "the chat template rewrites earlier turns, so what to train on cannot be told. Set data.template "
                    "to one that renders each turn the same wherever it stands, or data.train_on to last"
                )
            end, ends = self._end_of_turn(after, len(before), turns[index].content)
            spans.append((len(before), end))
        return Rendered(text[: spans[-1][1]], tuple(spans), special=False, ends=ends)

    def _end_of_turn(self, text: str, start: int, content: str) -> tuple[int, bool]:
        """Where the turn that begins at `start` ends, and whether it ends with a terminator."""
        body = content.strip()
        found = text.find(body, start)
        if found < 0:
            raise ValueError("the chat template alters the assistant's words, so what to train on cannot be told")
        terminator = self._special.search(text, found + len(body))
        return (found + len(body), False) if terminator is None else (terminator.end(), True)

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token; one that begins like a longer one comes after it."""
        added = self.tokenizer.added_tokens_decoder
        tokens = sorted((str(added[i].content) for i in self.special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def _chat(self, turns: tuple[Turn, ...], *, ask: bool) -> str:
        from jinja2 import TemplateError

        if not turns:
            raise ValueError("begins with an assistant message, so there is no prompt to answer")
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except (TemplateError, *_FAULTS) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ValueError(f"the chat template refuses the roles {roles}: {error}") from error
        return str(text)


def template_columns(template: str | None) -> tuple[str, ...]:
    """Names that a prompt template shows; none for a template of whole conversations.

    Raises:
        DataError: the template is no valid Jinja.
    """
    from jinja2.meta import find_undeclared_variables

    if template is None or _OF_MESSAGES.search(template):
        return ()
    _compiled(template)
    return tuple(sorted(find_undeclared_variables(_environment().parse(template))))


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=lambda value: "" if value is None else value,  # an empty cell is not the word "None"
    )


def _compiled(template: str) -> Template:
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise _invalid(error) from error


def _check_syntax(tokenizer: PreTrainedTokenizerBase) -> None:
    """Compile the tokenizer's chat template where transformers does, which knows more tags than plain Jinja."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise _invalid(error) from error
    except (TemplateError, *_FAULTS):  # it wants other roles; each row will tell
        return


def _invalid(error: TemplateSyntaxError) -> DataError:
    return DataError(f"data.template: is no valid Jinja: {error.message} (its line {error.lineno}).")


def _run(template: Template, values: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return template.render(dict(values))
    except (TemplateError, *_FAULTS) as error:
        raise ValueError(f"data.template cannot be rendered: {error}. Columns here: {', '.join(values)}") from error
