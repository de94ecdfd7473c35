"""The golden mask files: every token of one conversation in each chat template, and whether it is a target.

After a change that is meant, write them anew and look at the difference:

    PYTHONPATH=.:tests python tests/golden_masks.py
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tiny_tokenizers import TOKENIZERS
from written import encode_all

from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.shape import Sample, to_sample
from ftune.errors import DataError

FOLDER = Path(__file__).parent / "golden"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((FOLDER / "templates").glob("*.jinja"))}
MERGES = tuple(
    (left, right) for left, right in map(str.split, (FOLDER / "merges.txt").read_text(encoding="utf-8").splitlines())
)
"""Of a small BPE, trained once on some sentences, so that the tokens of these files are not bytes alone."""
TERMINATORS = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "hostile": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "plain": "",
    "qwen_thinking": "<|im_end|>",
    "zephyr": "</s>",
}
LEADING = {"mistral": " ", "plain": " "}
"""What a template writes between a prompt and the words of an answer."""
NO_SYSTEM = ("gemma",)
THOUGHT = "<think>\n2 & 2\n</think>\n\n"


@functools.cache
def tokenizer(variant: str, template: str | None) -> Any:
    """One of the tokenizers that real ones trip over, with the golden merges and one of the golden templates."""
    return TOKENIZERS[variant](merges=MERGES, template=None if template is None else TEMPLATES[template])


def sample(*messages: dict[str, Any], tools: Any = None, **more: Any) -> Sample:
    """A row of format chat."""
    found = to_sample(Row("chat.jsonl", 1, {"messages": list(messages), "tools": tools, **more}), "chat", {})
    assert isinstance(found, Sample), found
    return found


def said(*words: str, system: str | None = None) -> Sample:
    """A conversation of user and assistant in turn."""
    front = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return sample(*front, *({"role": roles[i % 2], "content": text} for i, text in enumerate(words)))


def conversation(template: str) -> Sample:
    """Of two questions and answers; the words of one answer stand everywhere else as well."""
    system = None if template in NO_SYSTEM else "yes"
    if template == "mistral":
        system = None  # it stands before the last question, so that only the last answer could be learned
    if template == "qwen_thinking":
        return said("Is it yes?", f"{THOUGHT}yes", system=system)
    return said("Is it yes?", "yes", " yes 🙂", "{{ no }}, 5% <b>", system=system)


REWRITTEN = {
    "mistral": said("Is it yes?", "yes", " yes 🙂", "{{ no }}, 5% <b>", system="yes"),
    "qwen_thinking": said(
        "Is it yes?", f"{THOUGHT}yes", " yes 🙂", f"{THOUGHT}{{{{ no }}}}, 5% <b>", "Why?", "yes", system="yes"
    ),
}
"""Conversations of which these templates rewrite earlier turns, so that each answer is an example."""


def listing(template: str) -> str:
    """The golden file of a template: one line for each token, under every tokenizer that gives these."""
    listed: dict[str, list[str]] = {}
    rows = [conversation(template), *([REWRITTEN[template]] if template in REWRITTEN else [])]
    for variant in TOKENIZERS:
        text = "\n".join(tokens(tokenizer(variant, template), row) for row in rows)
        listed.setdefault(text, []).append(variant)
    parts = [f"tokenizers: {', '.join(variants)}\n{text}" for text, variants in listed.items()]
    return "\n".join(parts)


def tokens(own: Any, row: Sample) -> str:
    """Lines of `target`, id and token, where a target has a `*`; an empty line between the examples of a row."""
    examples, _ = encode_all(
        [row], Renderer(own, None), train_on="completion", max_length=9999, overlong=None, tick=lambda done: None
    )
    return "\n".join(_lines(own, example) for example in examples)


def _lines(own: Any, example: Any) -> str:
    letters = own.convert_ids_to_tokens(example.ids.tolist())
    lines = [
        f"{'*' if target else ' '} {i:4} {json.dumps(letter, ensure_ascii=False)}\n"
        for i, target, letter in zip(example.ids.tolist(), example.is_target.tolist(), letters, strict=True)
    ]
    return "".join(lines)


def path_of(template: str) -> Path:
    """The golden file of a template."""
    return FOLDER / "masks" / f"{template}.txt"


if __name__ == "__main__":
    for name in TEMPLATES:
        try:
            path_of(name).write_text(listing(name), encoding="utf-8")
        except DataError as error:
            raise SystemExit(f"{name}: {error}") from error
