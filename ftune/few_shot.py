"""`ftune eval --shots`: a language model is scored with 0, 1 or more training rows before each row, nothing learns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.as_language_model import Asked, open_language_model
from ftune.data.cache import Cache, cache_root
from ftune.data.hygiene import drawn
from ftune.data.samples import Samples, Tick, read_samples
from ftune.data.shape import Sample
from ftune.device import build_accelerator
from ftune.errors import DataError, Problem, RecipeError
from ftune.evaluation import Scores
from ftune.evidence import rows_digest
from ftune.generation import Prediction
from ftune.in_context import InContext
from ftune.metrics.custom import load_metrics
from ftune.objectives import TEXT_METRICS
from ftune.options import LABEL_METRICS, OPTION_METRICS, Question
from ftune.recipe import Recipe
from ftune.scoring import Evaluation, SplitName, baseline_of, chosen_split, chunk_of, known_metrics, runtime_of
from ftune.shots import Pool, embeddings, nearest, shown_before
from ftune.target import Target

if TYPE_CHECKING:
    from accelerate import Accelerator

Before = Callable[[int], list[list[Sample]]]
"""From a number of shots to the demonstrations of each row."""


@dataclass(frozen=True)
class _Rows:
    """What is scored, and what may be shown.

    Args:
        scored: the rows.
        name: of their split.
        labels: of the training rows, where rows have labels.
        pool: of demonstrations.
    """

    scored: list[Sample]
    name: str
    labels: tuple[str, ...]
    pool: Pool


def evaluate_shots(
    path: Path,
    asked: Asked,
    *,
    split: SplitName | None,
    data_file: Path | None,
    metrics: Sequence[str] | None,
    max_rows: int | None,
    batch_size: int,
    overrides: tuple[str, ...],
    tick: Tick,
) -> list[Evaluation]:
    """Score a language model once for each number of demonstrations.

    Args:
        path: run, checkpoint, model folder of ftune, or recipe (then its base model).
        asked: numbers of demonstrations, and what prompts look like.
        split: of the target's own recipe; None takes test if there is one, else eval.
        data_file: other rows, of the same format. Demonstrations are the recipe's training rows all the same.
        metrics: names; None takes the recipe's, and those of options where rows have options.
        max_rows: score at most this many rows, chosen by the seed; None takes `eval.max_rows` for eval, else all.
        batch_size: rows per forward; never changes the result.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        RecipeError: the target writes no text, or an option has no effect on its rows.
        DataError: rows that cannot be shown, too few of them, or prompts that do not fit into the model.
    """
    tick("loading", 0, 0)
    target, formats = open_language_model(path, overrides, asked)
    return score_shots(
        target, formats, asked, path=path, split=split, data_file=data_file, metrics=metrics, max_rows=max_rows,
        batch_size=batch_size, accelerator=build_accelerator(runtime_of(target)), tick=tick,
    )  # fmt: skip


def score_shots(
    target: Target,
    formats: frozenset[str],
    asked: Asked,
    *,
    path: Path,
    split: SplitName | None,
    data_file: Path | None,
    metrics: Sequence[str] | None,
    max_rows: int | None,
    batch_size: int,
    accelerator: Accelerator,
    tick: Tick,
) -> list[Evaluation]:
    """The same of a target that is loaded, with the formats of its rows; `path` names it.

    Raises:
        RecipeError, DataError: as `evaluate_shots`.
    """
    record = target.record
    if record is None:
        raise AssertionError("a target without a recipe")
    recipe = record.recipe
    rows = _read(recipe, record.folder, formats, split, data_file, max_rows, tick)
    scorer = InContext(
        target, recipe, accelerator, batch_size, chunk_of(target, record, accelerator.device.type),
        lambda done, total: tick("scoring", done, total),
    )  # fmt: skip
    questions = _questions(scorer, rows, asked)
    names = _metrics(recipe, rows, metrics, questions)
    scorer.functions = load_metrics(names, record.folder)
    before = _before(scorer, rows, questions, asked, tick)
    writes = bool(set(names) & {*TEXT_METRICS, *scorer.functions})
    _check_fit(scorer, rows, questions, before, max(asked.shots), writes=writes)
    found, digest = [], rows_digest([sample.row for sample in rows.scored])
    for count in asked.shots:
        started = time.monotonic()
        scores, predictions = _scored(scorer, rows, questions, before(count), names, asked)
        baseline = {} if count else baseline_of(path, rows.name)
        seconds = time.monotonic() - started
        shared = () if asked.demonstrations == "nearest" else _places(before(count))
        found.append(
            Evaluation(
                str(path), rows.name, len(rows.scored), scores, baseline, [*predictions], seconds, digest, count, shared
            )
        )
    return found


# the rows


def _read(
    recipe: Recipe,
    folder: Path,
    formats: frozenset[str],
    split: SplitName | None,
    data_file: Path | None,
    max_rows: int | None,
    tick: Tick,
) -> _Rows:
    """Rows that are scored, and those that may be shown before them.

    Raises:
        DataError: rows that are plain text or tokens.
    """
    cache = Cache(cache_root(os.environ, Path.home()))

    def read(data: Any) -> Samples:
        return read_samples(
            data, folder, accepted=formats, seed=recipe.data_seed, max_eval_rows=None, tick=tick, cache=cache
        )

    data, name, shown = chosen_split(recipe.data, split, data_file)
    own = read(recipe.data)
    samples = own if data_file is None else read(data)
    split_rows = {"train": samples.train, "eval": samples.eval, "test": samples.test}[name]
    most = max_rows or (recipe.eval.max_rows if name == "eval" else None)
    scored = list(drawn(split_rows, most, recipe.data_seed))
    for sample in scored:
        if not sample.turns and not isinstance(sample.label, str):
            place = f"{sample.row.file}:{sample.row.number}"
            raise DataError(f"{place}: has no answer that a prompt could ask for. Shots are for rows with an answer.")
    whole = scored if shown == "train" else split_rows
    held_out = chain(scored, whole, own.eval, own.test)
    return _Rows(scored, shown, own.labels, Pool(own.train, held_out, recipe.seed))


def _questions(scorer: InContext, rows: _Rows, asked: Asked) -> list[Question] | None:
    """The rows with their options; None where they have none.

    Raises:
        RecipeError: options were asked for, and the rows have none.
    """
    labelled = not rows.scored[0].turns
    if not labelled and not all(sample.choices for sample in rows.scored):
        if asked.calibrate or asked.options:
            option = "--calibrate" if asked.calibrate else "--options"
            message = "has no effect: the rows have no options. It is for multiple_choice and for rows with a label."
            raise RecipeError([Problem("", message, option)])
        return None
    make = _maker(scorer, rows, asked)
    return [make(sample) for sample in rows.scored]


def _maker(scorer: InContext, rows: _Rows, asked: Asked) -> Callable[[Sample], Question]:
    """Makes a question of a row with options."""
    return scorer.question_maker(rows.labels, asked.options, own_prompt=asked.template is None)


def _metrics(
    recipe: Recipe, rows: _Rows, asked: Sequence[str] | None, questions: Sequence[Question] | None
) -> tuple[str, ...]:
    if questions is None:
        return known_metrics(recipe, asked)
    if rows.scored[0].turns:
        return known_metrics(recipe, asked, OPTION_METRICS)
    return known_metrics(recipe, asked, LABEL_METRICS, others=False)


# the prompts


def _before(scorer: InContext, rows: _Rows, questions: Sequence[Question] | None, asked: Asked, tick: Tick) -> Before:
    """The demonstrations of each row, with right answers written as options are."""
    make = None if questions is None else _maker(scorer, rows, asked)

    def answered(some: Sequence[Sample]) -> list[Sample]:
        return [*some] if make is None else [make(sample).sample for sample in some]

    if asked.demonstrations != "nearest" or not max(asked.shots):
        choose = rows.pool.balanced if asked.demonstrations == "balanced" else rows.pool.first
        return lambda count: [answered(choose(count))] * len(rows.scored)
    most = max(asked.shots)
    rows.pool.first(most)
    every = rows.pool.all()

    def embedded(samples: Sequence[Sample]) -> Any:
        return embeddings(
            scorer.embedder, samples, scorer.renderer, pad_id=scorer.target.pad_id, batch_size=scorer.batch_size,
            max_length=scorer.limit, tick=lambda done, total: tick("embedding", done, total),
        )  # fmt: skip

    chosen = nearest(embedded(rows.scored), embedded(every), most)
    return lambda count: [answered([every[int(i)] for i in row[most - count :]]) for row in chosen]


def _check_fit(
    scorer: InContext,
    rows: _Rows,
    questions: Sequence[Question] | None,
    before: Before,
    most: int,
    *,
    writes: bool,
) -> None:
    """Refuse prompts that the model cannot take: cut ones would be scored as if they were whole.

    Raises:
        DataError: names the longest row, and the greatest number of shots at which all rows fit.
    """

    def needed(count: int) -> list[int]:
        samples = rows.scored if questions is None else [one.sample for one in questions]
        shown = [shown_before(s, some, scorer.renderer) for s, some in zip(samples, before(count), strict=True)]
        return scorer.needed(shown, questions, writes=writes)

    sizes = needed(most)
    if max(sizes) <= scorer.limit:
        return
    low, high = -1, most  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if max(needed(middle)) <= scorer.limit else (low, middle)
    row = rows.scored[sizes.index(max(sizes))].row
    over = sum(size > scorer.limit for size in sizes)
    with_answers = (
        f", answers of {scorer.recipe.eval.max_new_tokens} (eval.max_new_tokens) among them" if writes else ""
    )
    fits = f"At most {low} shots fit for all rows." if low >= 0 else "Not even without demonstrations do all rows fit."
    raise DataError(
        f"{row.file}:{row.number}: needs {max(sizes)} tokens with {most} shots{with_answers}, more than the "
        f"{scorer.limit} that the model takes; so do {over - 1} other rows. {fits}"
    )


def _scored(
    scorer: InContext,
    rows: _Rows,
    questions: Sequence[Question] | None,
    before: Sequence[Sequence[Sample]],
    names: tuple[str, ...],
    asked: Asked,
) -> tuple[Scores, list[Prediction]]:
    """Every metric of `names`, and what the model answers."""
    samples = rows.scored if questions is None else [one.sample for one in questions]
    shown = [shown_before(s, some, scorer.renderer) for s, some in zip(samples, before, strict=True)]
    scores: Scores = {}
    predictions: list[Prediction] = []
    if set(names) & set(scorer.recipe.objective.forward_metrics):
        scores |= scorer.likelihoods(shown, names)
    if questions is not None and set(names) & {*OPTION_METRICS, *LABEL_METRICS}:
        found, predictions = scorer.options(questions, before, names, calibrate=asked.calibrate)
        scores |= found
    if set(names) & {*TEXT_METRICS, *scorer.functions}:
        every = list({id(one): one for some in before for one in some}.values())
        found, predictions = scorer.answers(shown, every, names)
        scores |= found
    return {name: scores[name] for name in names if name in scores}, predictions


def _places(before: Sequence[Sequence[Sample]]) -> tuple[str, ...]:
    """`file:row` of the demonstrations that all rows share."""
    return tuple(f"{one.row.file}:{one.row.number}" for one in before[0])
