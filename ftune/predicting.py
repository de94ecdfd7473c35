"""`ftune predict` as a plain function: what a target says of every row, also of rows without an answer.

Tensors: B rows, K outputs of a head, T positions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ftune.base import family_of, limit_of
from ftune.data.cache import Cache, cache_root
from ftune.data.encode import BAD_ROW, TOO_LONG, Example
from ftune.data.encode_labels import word_owners
from ftune.data.encoder import Encoder
from ftune.data.hygiene import drawn
from ftune.data.pack import Cut
from ftune.data.samples import Tick, read_samples
from ftune.data.shape import Sample
from ftune.data.unanswered import Asked, read_to_predict
from ftune.decide import choose_max_length
from ftune.device import build_accelerator
from ftune.errors import DataError, Problem, RecipeError, RowProblem
from ftune.evaluation import row_losses
from ftune.generation import predict
from ftune.loop import training_module
from ftune.plan import Runtime
from ftune.scoring import SplitName, chosen_split, open_scorable
from ftune.start import Record
from ftune.target import Target


@dataclass(frozen=True)
class Predicted:
    """What a target says of some rows.

    Args:
        target, split: what was asked.
        lines: one object a row, in the order of the rows.
        left_out: rows that `data.overlong: drop` or `data.on_bad_row: skip` leaves out.
        seconds: of wall time.
    """

    target: str
    split: str
    lines: list[dict[str, Any]]
    left_out: int
    seconds: float

    def to_json(self, out: Path) -> dict[str, Any]:
        """The contract of `ftune predict --json`."""
        return {
            "target": self.target,
            "split": self.split,
            "rows": len(self.lines),
            "left_out": self.left_out,
            "out": str(out),
            "seconds": self.seconds,
        }


def predict_rows(
    path: Path,
    *,
    split: SplitName | None,
    data_file: Path | None,
    max_rows: int | None,
    batch_size: int,
    overrides: tuple[str, ...],
    tick: Tick,
) -> Predicted:
    """Let a target answer or label rows.

    Args:
        path: run, checkpoint, model folder of ftune, or recipe (then its base model).
        split: of the target's own recipe; None takes test if there is one, else eval.
        data_file: other rows, of the same format, with or without answers.
        max_rows: at most this many rows, chosen by the seed; None takes all.
        batch_size: rows per forward; never changes the result.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        RecipeError: the target predicts nothing of a row.
        DataError: rows that cannot be read, or do not fit.
    """
    started = time.monotonic()
    tick("loading", 0, 0)
    target, record, runtime = open_scorable(path, overrides)
    if record.recipe.objective.encoding == "hidden_tokens":
        what = "guesses words that were hidden, and has nothing to say of a row"
        message = f"objective {record.recipe.objective.name} {what}. Score it with: ftune eval {path}"
        raise RecipeError([Problem("", message, str(path))])
    rows, shown = _rows(record, split, data_file, max_rows, tick)
    writes = bool(record.recipe.objective.generation_metrics)
    say = _answers if writes else _labels
    lines = say(target, record, runtime, rows, batch_size, lambda done, total: tick("predicting", done, total))
    return Predicted(str(path), shown, lines, len(rows) - len(lines), time.monotonic() - started)


def _rows(
    record: Record, split: SplitName | None, data_file: Path | None, max_rows: int | None, tick: Tick
) -> tuple[list[Asked], str]:
    """The rows, and what they are called."""
    recipe = record.recipe
    if data_file is not None:
        rows = read_to_predict(data_file, recipe.data, recipe.formats, record.labels)
        return rows[: max_rows or len(rows)], "data"
    data, name, shown = chosen_split(recipe.data, split, None)
    samples = read_samples(
        data, record.folder, accepted=recipe.formats, seed=recipe.data_seed, max_eval_rows=None, tick=tick,
        cache=Cache(cache_root(os.environ, Path.home())),
    )  # fmt: skip
    found = {"train": samples.train, "eval": samples.eval, "test": samples.test}[name]
    return [Asked(sample, True) for sample in drawn(found, max_rows, recipe.data_seed)], shown


def _place(sample: Sample) -> dict[str, Any]:
    return {"file": sample.row.file, "number": sample.row.number}


def _answers(
    target: Target, record: Record, runtime: Runtime, rows: Sequence[Asked], batch_size: int, tick: Any
) -> list[dict[str, Any]]:
    """Prompt, answer and what was expected of each row.

    Raises:
        DataError: a row asks nothing, or its prompt does not fit with an answer.
    """
    room, config = record.recipe.eval.max_new_tokens, target.model.config
    if plain := next((one.sample for one in rows if not one.sample.turns), None):
        place = f"{plain.row.file}:{plain.row.number}"
        raise DataError(f"{place}: is plain text, which asks nothing. Let the model go on with: ftune generate --raw")
    taken = 0 if target.kind == "recipe" else record.recipe.learner.positions_taken
    limit = limit_of(config)
    samples = [_with_answer(one.sample) for one in rows]
    reads = family_of(config) == "encoder_decoder"
    problems = []
    for sample in samples:
        try:
            ids = target.renderer.prompt_ids(target.renderer.prompt(sample))
        except ValueError as error:
            problems.append(RowProblem(sample.row.file, sample.row.number, f"{error}."))
            continue
        if limit is not None and len(ids) + (0 if reads else room) > limit - taken:
            message = f"has a prompt of {len(ids)} tokens, which with an answer of {room} is more than {limit - taken}."
            problems.append(RowProblem(sample.row.file, sample.row.number, f"{message} Lower eval.max_new_tokens."))
    if problems:
        raise DataError(problems=problems)
    target.model.to(build_accelerator(runtime).device)
    found = predict(
        target.model, samples, target.renderer, pad_id=target.pad_id,
        max_new_tokens=room, batch_size=batch_size, tick=tick,
    )  # fmt: skip
    return [
        {**_place(one.sample), "prompt": said.prompt, **({"expected": said.expected} if one.answered else {}),
         "received": said.received}
        for one, said in zip(rows, found, strict=True)
    ]  # fmt: skip


def _with_answer(sample: Sample) -> Sample:
    """A conversation whose last answer is predicted, whether it was to be learned or not."""
    last = max((number for number, turn in enumerate(sample.turns) if turn.role == "assistant"), default=-1)
    turns = sample.turns[: last + 1]
    return replace(sample, turns=(*turns[:-1], replace(turns[-1], weight=1)))


def _labels(
    target: Target, record: Record, runtime: Runtime, rows: Sequence[Asked], batch_size: int, tick: Any
) -> list[dict[str, Any]]:
    """Label, labels or number of each row, or the label of each of its words."""
    recipe, accelerator = record.recipe, build_accelerator(runtime)
    encoder, pairs = _encoder(target, record), []
    problems = []
    stand_ins = [_neutral(one.sample, record.labels) for one in rows]
    encoded = encoder.encode(stand_ins, lambda done: None, answered=False, tokens=False)
    for one, found in zip(rows, encoded, strict=True):
        if found.examples:
            pairs.append((one, found.examples[0]))
        elif found.reason in (BAD_ROW, TOO_LONG):
            problems.append(RowProblem(one.sample.row.file, one.sample.row.number, f"{found.message}"))
    if problems and (recipe.data.on_bad_row == "error" or not pairs):
        raise DataError(problems=problems)
    if not pairs:
        return []
    module = accelerator.prepare_model(training_module(target.model, recipe.objective, None), evaluation_mode=True)
    losses = row_losses(
        module, [example for _, example in pairs], objective=recipe.objective, accelerator=accelerator,
        pad_id=target.pad_id, cut=Cut(batch_size), draw=None, tick=tick,
    )  # fmt: skip
    outputs = losses.outputs or []
    return [
        {**_place(one.sample), **_said(encoder, record, one.sample, example, output), **_expected(one)}
        for (one, example), output in zip(pairs, outputs, strict=True)
    ]


def _encoder(target: Target, record: Record) -> Encoder:
    recipe, config = record.recipe, target.model.config
    max_length, _ = choose_max_length(recipe, limit_of(config))
    pairs = family_of(config) == "encoder_decoder"
    return Encoder(recipe.data, recipe.objective, target.renderer, max_length, record.labels, pairs)


def _neutral(sample: Sample, labels: Sequence[str]) -> Sample:
    """The row with labels that the model knows: its own may be new, and count for nothing here."""
    if sample.words:
        return replace(sample, label=(labels[0],) * len(sample.words))
    if isinstance(sample.label, tuple):
        return replace(sample, label=())
    return replace(sample, label=labels[0]) if isinstance(sample.label, str) else sample


def _expected(one: Asked) -> dict[str, Any]:
    label = one.sample.label
    return {"expected": list(label) if isinstance(label, tuple) else label} if one.answered else {}


def _said(encoder: Encoder, record: Record, sample: Sample, example: Example, output: np.ndarray) -> dict[str, Any]:
    """One row's output of a head in words: logits [K], or the number of the likeliest label of each position [T]."""
    problem, labels = getattr(record.recipe.objective, "problem", None), record.labels
    if sample.words:
        owners = word_owners(encoder.renderer, sample, record.recipe.objective.label_at)
        of_word = dict(zip(owners, output[output >= 0].tolist(), strict=False))
        said = [labels[of_word[word]] if word in of_word else None for word in range(len(sample.words))]
        return {"words": list(sample.words), "labels": said}
    logits = output.astype(np.float64)
    if problem == "regression":
        return {"prediction": float(logits[0])}
    if problem == "multi_label":
        chances = 1 / (1 + np.exp(-logits))
        given = [name for name, logit in zip(labels, logits, strict=True) if logit > 0]
        return {"labels": given, "probabilities": dict(zip(labels, chances.tolist(), strict=True))}
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    named = dict(zip(labels, chances.tolist(), strict=True))
    return {"label": labels[int(logits.argmax())], "probabilities": named}
