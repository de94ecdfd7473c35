"""Rows for models that do not predict the next token: prompt and answer for encoder-decoders, text to hide parts of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ftune.data.encode import BATCH, Example, Overlong, Report
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError, RowProblem


def encode_pairs(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    overlong: Overlong | None,
    tick: Callable[[int], None],
) -> tuple[list[Example], Report]:
    """What an encoder reads and what its decoder writes, each with the tokenizer's own special tokens and EOS.

    `max_length` holds for either side. `truncate_prompt` cuts the beginning of the prompt, `truncate` the end of both.

    Raises:
        DataError: rows that cannot be rendered, or are too long under `error`.
    """
    report, problems = Report(rows=len(samples)), list[RowProblem]()
    examples: list[Example] = []
    for number, sample in enumerate(samples):
        if number % BATCH == 0:
            tick(number)
        target = renderer.answer(sample)
        try:
            prompt = renderer.encoder_ids(renderer.prompt(sample))
        except ValueError as error:
            problems.append(sample.row.problem(f"{str(error).rstrip('.')}."))
            continue
        fitted = _fitted(sample, prompt, renderer.encoder_ids(target), renderer, max_length, overlong, report, problems)
        if fitted is not None:
            ids, answer = fitted
            size = len(target.encode())
            every = np.ones(len(answer), dtype=bool)
            examples.append(Example(ids, every, size, sample.row.file, sample.row.number, answer=answer))
    tick(len(samples))
    return _finished(examples, report, problems)


def _fitted(
    sample: Sample,
    prompt: list[int],
    answer: list[int],
    renderer: Renderer,
    limit: int,
    overlong: Overlong | None,
    report: Report,
    problems: list[RowProblem],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both sides cut to size as the policy says, or None for a row that is left out."""
    place = f"{sample.row.file}:{sample.row.number}"
    too_long = len(prompt) > limit or len(answer) > limit
    front, back = len(renderer.around[0]), len(renderer.encoder_ids("")) - len(renderer.around[0])
    if too_long and overlong == "drop":
        report.drop("overlong", place)
        return None
    cuttable = overlong == "truncate" or (overlong == "truncate_prompt" and len(answer) <= limit)
    if too_long and not cuttable:
        sizes = f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens, more than max_length {limit}"
        problems.append(sample.row.problem(f"has {sizes}. Raise it, or set data.overlong: drop or truncate."))
        return None
    report.kept += 1
    if too_long:
        report.truncated += 1
        report.truncated_rows += [place][: DataError.SHOWN - len(report.truncated_rows)]
    if len(prompt) > limit:
        keep = limit - front - back
        middle = prompt[front : len(prompt) - back]
        middle = middle[-keep:] if overlong == "truncate_prompt" else middle[:keep]
        prompt = [*prompt[:front], *middle, *prompt[len(prompt) - back :]]
    return np.array(prompt, dtype=np.int32), np.array(answer[:limit], dtype=np.int32)


def encode_windows(
    samples: Sequence[Sample], renderer: Renderer, *, max_length: int, overlong: Overlong | None,
    tick: Callable[[int], None],
) -> tuple[list[Example], Report]:  # fmt: skip
    """Texts to hide parts of, each window between the tokenizer's own special tokens, which are never hidden.

    Longer texts are split, so that every token is read once an epoch; windows of two documents never mix.

    Raises:
        DataError: rows that are too long under `error`.
    """
    report, problems = Report(rows=len(samples)), list[RowProblem]()
    examples: list[Example] = []
    front, back = renderer.around[0], tuple(renderer.encoder_ids("")[len(renderer.around[0]) :])
    room = max_length - len(front) - len(back)
    for start in range(0, len(samples), BATCH):
        tick(start)
        batch = samples[start : start + BATCH]
        texts = [sample.text for sample in batch]
        encoded = renderer.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for sample, ids in zip(batch, encoded["input_ids"], strict=True):
            pieces = _pieces(sample, ids, room, overlong or "split", report, problems)
            for piece in pieces:
                hideable = np.zeros(len(front) + len(piece) + len(back), dtype=bool)
                hideable[len(front) : len(front) + len(piece)] = True
                window = np.array([*front, *piece, *back], dtype=np.int32)
                examples.append(Example(window, hideable, 0, sample.row.file, sample.row.number))
    tick(len(samples))
    return _finished(examples, report, problems)


def _pieces(
    sample: Sample, ids: list[int], room: int, policy: Overlong, report: Report, problems: list[RowProblem]
) -> list[list[int]]:
    """A text cut into windows of at most `room` tokens, or what the policy leaves of it."""
    place = f"{sample.row.file}:{sample.row.number}"
    if not ids or (len(ids) > room and policy == "drop"):
        report.drop("overlong" if ids else "no_targets", place)
        return []
    if len(ids) > room and policy not in ("split", "truncate"):
        message = f"has {len(ids)} tokens, more than the {room} of a window. Use data.overlong: split."
        problems.append(sample.row.problem(message))
        return []
    report.kept += 1
    if len(ids) > room and policy == "truncate":
        report.truncated += 1
        report.truncated_rows += [place][: DataError.SHOWN - len(report.truncated_rows)]
        return [ids[:room]]
    return [ids[start : start + room] for start in range(0, len(ids), room)]


def _finished(examples: list[Example], report: Report, problems: list[RowProblem]) -> tuple[list[Example], Report]:
    if problems:
        raise DataError(problems=problems)
    report.windows = len(examples)
    report.count(examples)
    return examples, report
