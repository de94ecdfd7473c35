"""`ftune eval` and `ftune generate` as plain functions: open a target, score it or let it write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftune.base import family_of, limit_of
from ftune.data.build import encode_split
from ftune.data.cache import Cache, cache_root
from ftune.data.chat import Turn
from ftune.data.encoder import Encoder
from ftune.data.hygiene import drawn
from ftune.data.pack import Cut
from ftune.data.read import Row
from ftune.data.samples import Tick, read_samples
from ftune.data.shape import Sample
from ftune.decide import (
    choose_frozen_dtype,
    choose_loss_chunk,
    choose_max_length,
    choose_precision,
    choose_threads,
)
from ftune.device import build_accelerator, torch_dtype
from ftune.errors import DataError, Problem, RecipeError
from ftune.evaluation import Prediction, Scores, generate
from ftune.facts import look_at_machine
from ftune.finish import score_target
from ftune.load import load_recipe
from ftune.metrics.custom import load_metrics
from ftune.plan import Runtime
from ftune.prepare import loss_refusal
from ftune.recipe import Data, Recipe
from ftune.start import SIDECAR, Record, read_record
from ftune.target import Target, kind_of, open_target

SplitName = Literal["train", "eval", "test"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one target on one split."""

    target: str
    split: str
    rows: int
    metrics: Scores
    baseline: dict[str, float]
    predictions: list[Prediction]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The contract of `ftune eval --json`."""
        return {
            "target": self.target,
            "split": self.split,
            "rows": self.rows,
            "metrics": {name: asdict(score) for name, score in self.metrics.items()},
            "shots": 0,
            "baseline": self.baseline,
            "seconds": self.seconds,
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
    names = _known_metrics(recipe, metrics)
    functions = load_metrics(names, record.folder)
    data, name, shown = _chosen_split(recipe.data, split, data_file)
    cache = Cache(cache_root(os.environ, Path.home()))
    samples = read_samples(
        data, record.folder, accepted=recipe.formats, seed=recipe.seed,
        max_eval_rows=max_rows or recipe.eval.max_rows, tick=tick, cache=cache,
    )  # fmt: skip
    rows = {"train": samples.train, "eval": samples.eval, "test": samples.test}[name]
    rows = drawn(rows, max_rows, recipe.seed)
    config = target.model.config
    max_length, _ = choose_max_length(recipe, limit_of(config))
    pairs = family_of(config) == "encoder_decoder"
    encoder = Encoder(data, recipe.objective, target.renderer, max_length, record.labels, pairs)
    encoded = encode_split(name, rows, encoder, samples, tick=tick, cache=cache)
    scores, predictions = score_target(
        target,
        encoded,
        metrics=names,
        functions=functions,
        accelerator=build_accelerator(runtime),
        cut=Cut(batch_size),
        batch_size=batch_size,
        chunk=_chunk_of(target, record, runtime),
        draw=recipe.objective.drawer(target.tokenizer) if encoded.hides else None,
        tick=lambda done, total: tick("scoring", done, total),
    )
    seconds = time.monotonic() - started
    return Evaluation(str(path), shown, len(rows), scores, _baseline(path, shown), predictions, seconds)


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
    precision = target.plan.precision if target.plan else choose_precision(target.record.recipe, machine)[0]
    threads, _ = choose_threads(machine, 1)
    return target, target.record, Runtime(machine.device, precision, 1, threads, machine.device == "cpu")


def _chunk_of(target: Target, record: Record, runtime: Runtime) -> int | None:
    """How many targets have logits at once: as in training, or as training on this machine would have it."""
    if target.plan is not None:
        return target.plan.loss_chunk
    config: Any = target.model.config
    refusal = loss_refusal(record.recipe, config, record.head(target.tokenizer), target.tokenizer)
    return choose_loss_chunk(refusal, int(config.get_text_config().vocab_size), runtime.device)[0]


def _record_before_loading(path: Path, kind: str, overrides: tuple[str, ...]) -> Record:
    if kind == "recipe":
        loaded = load_recipe(path, overrides)
        return Record(loaded.recipe, loaded.folder, "")
    return read_record(path / SIDECAR)


def _chosen_split(data: Data, split: SplitName | None, data_file: Path | None) -> tuple[Data, SplitName, str]:
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


def _known_metrics(recipe: Recipe, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Metrics to compute.

    Raises:
        RecipeError: the objective has no such metric.
    """
    objective = recipe.objective
    if asked:
        problems = [message for name in asked if (message := objective.metric_problem(name)) is not None]
        if problems:
            raise RecipeError([Problem("", message, "--metrics") for message in problems])
        return tuple(asked)
    return recipe.method.default_metrics(objective) if recipe.eval.metrics == "auto" else ("loss", *recipe.eval.metrics)


def _baseline(path: Path, split: str) -> dict[str, float]:
    """What the base model scored before training, where the run knows it."""
    report = path / "report.json"
    if split != "eval" or not report.is_file():
        return {}
    baseline: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))["baseline"]
    return baseline


def answer(
    path: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None,
    seed: int,
    raw: bool,
    overrides: tuple[str, ...],
    tick: Tick,
) -> list[str]:
    """Let a target continue prompts.

    Args:
        path: any TARGET.
        prompts: what the user says; rendered as in training.
        max_new_tokens: longest answer.
        sampling: temperature, top_p; None is greedy.
        seed: of sampling.
        raw: continue the text as it is, without a template.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        RecipeError: the target was trained to label, not to write.
    """
    import torch

    tick("loading", 0, 0)
    target = open_target(path, overrides=overrides)
    if target.record is not None and not target.record.recipe.objective.generation_metrics:
        name = target.record.recipe.objective.name
        message = (
            f"objective {name} labels or guesses, it writes no answers. Score rows with: ftune eval {path} --data FILE"
        )
        raise RecipeError([Problem("", message, str(path))])
    device = look_at_machine(Path()).device
    target.model.to(device)
    torch.manual_seed(seed)
    rendered = list(prompts) if raw else [_rendered(target, prompt) for prompt in prompts]
    return generate(
        target.model,
        rendered,
        target.renderer,
        pad_id=target.pad_id,
        max_new_tokens=max_new_tokens,
        batch_size=8,
        tick=lambda done, total: tick("generating", done, total),
        sampling=sampling,
        raw=raw,
    )


def _rendered(target: Target, prompt: str) -> str:
    """One user turn, through the template of training. A prompt template sees the text in every column it names."""
    row = Row("--prompt", 1, {})
    fields = dict.fromkeys(("prompt", "instruction", "text", "question", "source"), prompt) | {
        "input": "",
        "system": "",
    }
    if target.record is not None:
        fields |= dict.fromkeys(set(target.record.recipe.data.columns.values()), prompt)
    try:
        return target.renderer.prompt(Sample(row, turns=(Turn("user", prompt),), fields=fields))
    except ValueError as error:
        raise DataError(f"--prompt: {error}.") from error
