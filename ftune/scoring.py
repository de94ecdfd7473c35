"""`ftune eval` as a plain function: open a target and score it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ftune.base import family_of, limit_of
from ftune.data.build import Split, encode_split
from ftune.data.cache import Cache, cache_root
from ftune.data.encoder import Encoder
from ftune.data.hygiene import drawn
from ftune.data.pack import Cut
from ftune.data.samples import Tick, read_samples
from ftune.decide import (
    choose_frozen_dtype,
    choose_loss_chunk,
    choose_max_length,
    choose_precision,
    choose_threads,
)
from ftune.device import build_accelerator, torch_dtype
from ftune.errors import ArtifactError, Problem, RecipeError, suggestion
from ftune.evaluation import Scores
from ftune.evidence import rows_digest
from ftune.facts import Device, look_at_machine
from ftune.finish import score_target
from ftune.generation import Prediction
from ftune.hook import hooks_in
from ftune.in_context import InContext, score_choices
from ftune.label_predictions import LabelPrediction
from ftune.load import load_recipe
from ftune.metrics.custom import load_metrics
from ftune.options import OPTION_METRICS
from ftune.plan import Runtime
from ftune.prepare import loss_refusal
from ftune.recipe import Data, Recipe
from ftune.start import SIDECAR, Record, read_record
from ftune.target import Target, kind_of, open_target

SplitName = Literal["train", "eval", "test"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one target on one split.

    With `shots`, so many training rows stand before each row; `demonstrations` are their places, where all rows have
    the same.
    """

    target: str
    split: str
    rows: int
    metrics: Scores
    baseline: dict[str, float]
    predictions: list[Prediction | LabelPrediction]
    seconds: float
    digest: str
    """Of the rows, see `ftune.evidence`."""
    shots: int = 0
    demonstrations: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The contract of `ftune eval --json`."""
        shown = {"demonstrations": list(self.demonstrations)} if self.demonstrations else {}
        return {
            "target": self.target,
            "split": self.split,
            "rows": self.rows,
            "metrics": {name: score.to_json() for name, score in self.metrics.items()},
            "shots": self.shots,
            "baseline": self.baseline,
            "seconds": self.seconds,
            **shown,
        }


def evaluate(
    path: Path,
    *,
    split: SplitName | None,
    data_file: Path | None,
    metrics: Sequence[str] | None,
    max_rows: int | None,
    batch_size: int,
    overrides: tuple[str, ...],
    tick: Tick,
) -> Evaluation:
    """Score a target.

    Args:
        path: run, checkpoint, model folder of ftune, or recipe (then its base model).
        split: of the target's own recipe; None takes test if there is one, else eval.
        data_file: other rows, of the same format.
        metrics: names; None takes the recipe's.
        max_rows: score at most this many rows, chosen by the seed; None takes `eval.max_rows` for eval, else all.
        batch_size: rows per forward; never changes the result.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        FtuneError: the target or its data cannot be used.
    """
    started = time.monotonic()
    tick("loading", 0, 0)
    target, record, runtime = open_scorable(path, overrides)
    recipe = record.recipe
    encoded, shown, has_choices = _encoded(target, record, split, data_file, max_rows, tick)
    names = known_metrics(recipe, metrics, OPTION_METRICS if has_choices else ())
    functions = load_metrics(names, record.folder)
    accelerator, chunk = build_accelerator(runtime), chunk_of(target, record, runtime.device)

    def scoring(done: int, total: int) -> None:
        tick("scoring", done, total)

    scored = score_target(
        target, encoded, metrics=names, functions=functions, accelerator=accelerator,
        cut=Cut(batch_size), batch_size=batch_size, chunk=chunk,
        draw=recipe.objective.drawer(target.tokenizer) if encoded.hides else None, tick=scoring,
    )  # fmt: skip
    scores, predictions = scored.scores, [*scored.predictions]
    if has_choices and set(names) & set(OPTION_METRICS):
        found, chosen = score_choices(
            InContext(target, recipe, accelerator, batch_size, chunk, scoring), encoded, names
        )
        scores, predictions = scores | found, predictions or [*chosen]
    seconds, digest, baseline = time.monotonic() - started, rows_digest(encoded.examples), baseline_of(path, shown)
    return Evaluation(str(path), shown, len(encoded.samples), scores, baseline, predictions, seconds, digest)


def _encoded(
    target: Target,
    record: Record,
    split: SplitName | None,
    data_file: Path | None,
    max_rows: int | None,
    tick: Tick,
) -> tuple[Split, str, bool]:
    """The rows to score, what they are called, and whether they are questions with choices for a model that writes."""
    recipe, config = record.recipe, target.model.config
    data, name, shown = chosen_split(recipe.data, split, data_file)
    cache = Cache(cache_root(os.environ, Path.home()))
    samples = read_samples(
        data,
        record.folder,
        accepted=recipe.formats,
        seed=recipe.data_seed,
        max_eval_rows=max_rows or recipe.eval.max_rows,
        tick=tick,
        cache=cache,
    )
    rows = {"train": samples.train, "eval": samples.eval, "test": samples.test}[name]
    rows = drawn(rows, max_rows, recipe.data_seed)
    max_length, _ = choose_max_length(recipe, limit_of(config))
    pairs = family_of(config) == "encoder_decoder"
    encoder = Encoder(data, recipe.objective, target.renderer, max_length, record.labels, pairs)
    encoded = encode_split(name, rows, encoder, samples, tick=tick, cache=cache)
    has_choices = bool(recipe.objective.generation_metrics) and samples.formats == ("multiple_choice",)
    return encoded, shown, has_choices


def open_scorable(path: Path, overrides: tuple[str, ...]) -> tuple[Target, Record, Runtime]:
    """Open a target that has a recipe, in the type and precision that training on this machine would use.

    Raises:
        RecipeError: it is a plain model folder, which says nothing about data.
    """
    machine = look_at_machine(Path())
    kind = kind_of(path)
    if kind == "model":
        hint = f"Score it with the recipe of your data: ftune eval RECIPE --set model={path.absolute()}"
        raise RecipeError([Problem("", f"is a plain model folder without a recipe. {hint}", str(path))])
    if kind in ("run", "checkpoint"):
        target = open_target(path, overrides=overrides)
    else:
        record = _record_before_loading(path, kind, overrides)
        precision, _ = choose_precision(record.recipe, machine)
        dtype, _ = choose_frozen_dtype(record.recipe, precision)
        target = open_target(path, torch_dtype(dtype), overrides)
    if target.record is None:
        raise AssertionError(f"a {kind} without a recipe")
    if kind != "recipe":
        _refuse_installed_code(target.record, path)
    return target, target.record, runtime_of(target)


def _refuse_installed_code(record: Record, path: Path) -> None:
    """A recorded recipe runs no function of an installed package: a run that was downloaded could name any.

    Raises:
        ArtifactError: it names one.
    """
    for hook in hooks_in(record.recipe.model_dump(mode="json")):
        beside = record.folder.joinpath(*hook.partition(":")[0].split(".")).with_suffix(".py")
        if not beside.is_file():
            hint = "Score its recipe instead: ftune eval RECIPE --set model=RUN, or train again."
            message = f"{path}: names the function {hook}, which is in no file beside its recipe ({record.folder})."
            raise ArtifactError(f"{message} {hint}")


def runtime_of(target: Target) -> Runtime:
    """Precision and threads that training on this machine would have, or had."""
    machine = look_at_machine(Path())
    if target.record is None:
        raise AssertionError("a target without a recipe")
    precision = target.plan.precision if target.plan else choose_precision(target.record.recipe, machine)[0]
    threads, _ = choose_threads(machine, 1)
    return Runtime(machine.device, precision, 1, threads, machine.device == "cpu")


def chunk_of(target: Target, record: Record, device: str) -> int | None:
    """How many targets have logits at once: as in training, or as training on this machine would have it."""
    if target.plan is not None:
        return target.plan.loss_chunk
    config: Any = target.model.config
    refusal = loss_refusal(record.recipe, config, record.head(target.tokenizer), target.tokenizer)
    return choose_loss_chunk(refusal, int(config.get_text_config().vocab_size), cast("Device", device))[0]


def _record_before_loading(path: Path, kind: str, overrides: tuple[str, ...]) -> Record:
    if kind == "recipe":
        loaded = load_recipe(path, overrides)
        return Record(loaded.recipe, loaded.folder, "")
    return read_record(path / SIDECAR)


def chosen_split(data: Data, split: SplitName | None, data_file: Path | None) -> tuple[Data, SplitName, str]:
    """The part of `data` to read, which split of it to score, and what it is called.

    Raises:
        RecipeError: the recipe has no such split.
    """
    if data_file is not None:
        return data.model_copy(update={"train": str(data_file.absolute()), "eval": None, "test": None}), "train", "data"
    name = split or ("test" if data.test is not None else "eval")
    if name != "train" and getattr(data, name) is None:
        message = f"the recipe has no data.{name}. Name other rows with --data FILE, or another --split."
        raise RecipeError([Problem(f"data.{name}", message)])
    return data, name, name


def known_metrics(
    recipe: Recipe, asked: Sequence[str] | None, of_options: Sequence[str] = (), *, others: bool = True
) -> tuple[str, ...]:
    """Metrics to compute: those that were asked for, or the recipe's and those of options.

    Args:
        recipe: its objective says which metrics there are.
        asked: names; None takes the default.
        of_options: metrics of the rows' options, where they have any.
        others: whether the objective's own metrics are there beside them.

    Raises:
        RecipeError: there is no such metric for these rows.
    """
    objective = recipe.objective
    if asked:
        unknown = [name for name in asked if name not in of_options]
        problems = [f"{name!r} is no metric of options.{suggestion(name, of_options)}" for name in unknown]
        if others:
            found = [objective.metric_problem(name, of_options) for name in unknown]
            problems = [message for message in found if message is not None]
        if problems:
            raise RecipeError([Problem("", message, "--metrics") for message in problems])
        return tuple(asked)
    default = recipe.method.default_metrics(objective)
    own = default if recipe.eval.metrics == "auto" else ("loss", *recipe.eval.metrics)
    return (*(own if others else ()), *of_options)


def baseline_of(path: Path, split: str) -> dict[str, float]:
    """What the base model scored before training, where the run knows it."""
    report = path / "report.json"
    if split != "eval" or not report.is_file():
        return {}
    baseline: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))["baseline"]
    return baseline
