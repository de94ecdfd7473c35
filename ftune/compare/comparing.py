"""A whole comparison: trials, prompts and baselines become rows, rows become a verdict, and all of it is written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ftune.compare.baselines import baselines
from ftune.compare.differences import Measured
from ftune.compare.running import LOGS, Tick, cost_of, is_finished, run, run_trial
from ftune.compare.trials import TRIALS, Setting, Trial, trials_of
from ftune.compare.verdict import System, Verdict, judge
from ftune.data.cache import Cache, cache_root
from ftune.data.samples import Samples, read_samples
from ftune.data.table import Rows
from ftune.disk import as_disk_error
from ftune.drift import data_files
from ftune.errors import Problem, RecipeError, suggestion
from ftune.evidence import RESAMPLES, read_evidence, rows_digest
from ftune.load import Loaded
from ftune.metrics import LIKELIHOODS, better_of, bounds_of
from ftune.report import read_report
from ftune.signals import StopFlag

PROMPTED = "prompted"
"""Folder of the base model's scores, in that of the comparison."""
OURS = {TRIALS, LOGS, PROMPTED, "compare.json", "compare.md", "compare.html", "compare.png", ".lock", ".lock.json"}
"""Everything that a comparison writes into its folder."""


@dataclass(frozen=True)
class Asked:
    """What to compare.

    Args:
        own: the recipe.
        settings: methods at points of a grid.
        shots: numbers of demonstrations given to the base model.
        seeds: of the trials.
        metric: what decides.
        split: the rows that are reported.
        folder: of the comparison.
        budget: of each trial, as written.
        overrides: `--set` of the user.
    """

    own: Loaded
    settings: Sequence[Setting]
    shots: Sequence[int]
    seeds: Sequence[int]
    metric: str
    split: Literal["eval", "test"]
    folder: Path
    budget: str | None
    overrides: Sequence[str]

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which way the metric is better."""
        return better_of(self.metric)


@dataclass(frozen=True)
class Row:
    """What became of one row.

    Args:
        name, kind: as in `System`.
        system: its figures, or None where it has none.
        values: the metric by seed; by one name where there are no seeds.
        about: what a baseline is, or why there is no figure.
        metrics: all metrics of the reported rows, means over seeds.
    """

    name: str
    kind: str
    system: System | None
    values: Mapping[str, float]
    about: str = ""
    metrics: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that a table shows."""

    asked: Asked
    rows: Sequence[Row]
    verdict: Verdict | None
    remarks: Sequence[str]
    scored: int


def choose_metric(own: Loaded, asked: str | None) -> str:
    """What decides: as asked, else the first metric that is no likelihood, else bits per byte or the loss.

    Raises:
        RecipeError: the recipe does not measure it.
    """
    recipe = own.recipe
    objective = recipe.objective
    named = recipe.method.default_metrics(objective) if recipe.eval.metrics == "auto" else recipe.eval.metrics
    known = tuple(dict.fromkeys(("loss", *named)))
    if asked is not None:
        if asked not in known:
            message = f"{asked!r} is not measured by this recipe.{suggestion(asked, known)} eval.metrics names what is."
            raise RecipeError([Problem("", message, "--metric")])
        return asked
    answers = [name for name in known if name not in LIKELIHOODS]
    return answers[0] if answers else ("bits_per_byte" if "bits_per_byte" in known else "loss")


def choose_split(own: Loaded) -> Literal["eval", "test"]:
    """Test rows if the recipe has any, else eval rows.

    Raises:
        RecipeError: it has neither.
    """
    if own.recipe.data.test is not None:
        return "test"
    if own.recipe.data.eval is None:
        message = "is needed to compare anything. Give it a path or a share such as '10%'."
        raise RecipeError([Problem("data.eval", message, str(own.path))])
    return "eval"


def refuse_foreign_folder(folder: Path) -> None:
    """A folder with files that no comparison wrote is not ours to fill.

    Raises:
        RecipeError: it has some, or is a file.
        DiskError: it cannot be looked at.
    """
    with as_disk_error(folder):
        if folder.exists() and not folder.is_dir():
            raise RecipeError([Problem("", f"{folder} is a file. Choose another name.", "--output-dir")])
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in OURS and not name.startswith((".tmp-", ".trash-"))]
    if foreign:
        shown = ", ".join(foreign[:3])
        message = f"{folder} holds files that are no comparison ({shown}). Choose an empty or new folder."
        raise RecipeError([Problem("", message, "--output-dir")])


def compare(asked: Asked, stop: StopFlag, tick: Tick, note: Any) -> Comparison:
    """Run what is not finished yet, and judge.

    The caller holds the lock of the folder. Rows that fail stay in the table with their reason.

    Raises:
        Interrupted: a signal came; what is finished is kept.
    """
    samples = _samples(asked, tick)
    scored = samples.test if asked.split == "test" else samples.eval
    trials = trials_of(asked.own, asked.settings, asked.seeds, asked.folder)
    failed = _train_all(asked, trials, stop, tick, note)
    rows = [_trained(asked, setting, [t for t in trials if t.setting is setting], failed) for setting in asked.settings]
    rows += [_prompted(asked, shots, stop, tick) for shots in asked.shots]
    tick("baselines", 0, 0)
    found, none = _untrained(asked, samples, scored)
    rows += found
    systems = [row.system for row in rows if row.system is not None]
    verdict = judge(systems, asked.metric, asked.better) if systems else None
    return Comparison(asked, rows, verdict, remarks(asked, rows, none), len(scored))


def _untrained(asked: Asked, samples: Samples, scored: Rows) -> tuple[list[Row], str]:
    """Rows of the baselines, and why there are none."""
    objective, rows = asked.own.recipe.objective, []
    found, none = baselines(samples.train, list(scored), samples.labels, objective, [asked.metric])
    digest = rows_digest([sample.row for sample in scored])
    for one in found:
        if (score := one.scores.get(asked.metric)) is None:
            rows.append(Row(one.name, "baseline", None, {}, f"has no {asked.metric}"))
            continue
        resamples = None if score.resamples is None else score.resamples[None]
        measured = Measured(np.array([score.value]), resamples, digest, False, bounds_of(asked.metric))
        rows.append(Row(one.name, "baseline", System(one.name, "baseline", measured), {"": score.value}, one.about))
    return rows, none


def _samples(asked: Asked, tick: Tick) -> Samples:
    recipe = asked.own.recipe
    return read_samples(
        recipe.data,
        asked.own.folder,
        accepted=recipe.formats,
        seed=recipe.data_seed,
        max_eval_rows=recipe.eval.max_rows,
        tick=tick,
        cache=Cache(cache_root(os.environ, Path.home())),
    )


def _train_all(asked: Asked, trials: Sequence[Trial], stop: StopFlag, tick: Tick, note: Any) -> dict[str, str]:
    """Why trials failed, by their names."""
    failed = {}
    for number, trial in enumerate(trials, start=1):
        tick(f"{trial.name} ({number} of {len(trials)})", 0, 0)
        if is_finished(trial):
            note(f"{trial.name}: finished before")
            continue
        log = asked.folder / LOGS / f"{trial.setting.folder}_seed={trial.seed}.txt"
        outcome = run_trial(trial, log, stop, tick)
        note(f"{trial.name}: " + ("finished" if outcome.code == 0 else f"failed with code {outcome.code}"))
        if outcome.code != 0:
            failed[trial.name] = f"exit code {outcome.code}: {outcome.said}"
    return failed


def _trained(asked: Asked, setting: Setting, trials: Sequence[Trial], failed: Mapping[str, str]) -> Row:
    good = [trial for trial in trials if trial.name not in failed]
    if not good:
        reason = setting.refusal or next((failed[t.name] for t in trials), "was not run")
        return Row(setting.name, "trained", None, {}, reason)
    folders = [trial.loaded.output_dir for trial in good]
    reports = [read_report(folder) for folder in folders]
    scores = [report["metrics"][asked.split] for report in reports]
    if asked.metric not in scores[0]:
        return Row(setting.name, "trained", None, {}, f"has no {asked.metric} on these rows")
    held = [_resamples_of(folder, asked.split) for folder in folders]
    measured = _measured([score[asked.metric]["value"] for score in scores], held, asked.metric, drawn=True)
    choosing = [report["metrics"].get("eval", {}).get(asked.metric) for report in reports]
    by = None if None in choosing else float(np.mean([score["value"] for score in choosing if score]))
    system = System(setting.name, "trained", measured, _means([cost_of(trial) for trial in good]), setting.method, by)
    values = {str(trial.seed): score[asked.metric]["value"] for trial, score in zip(good, scores, strict=True)}
    lost = "; ".join(f"seed {t.seed}: {failed[t.name]}" for t in trials if t.name in failed)
    metrics = {name: float(np.mean([score[name]["value"] for score in scores])) for name in scores[0]}
    return Row(setting.name, "trained", system, values, lost, metrics)


def _resamples_of(folder: Path, split: str) -> dict[str, Any]:
    """What a run kept for paired tests; nothing where an earlier version of ftune trained it."""
    try:
        found: dict[str, Any] = json.loads((folder / RESAMPLES).read_text(encoding="utf-8"))[split]
    except (OSError, ValueError, KeyError):
        return {"rows": str(folder), "metrics": {}}
    return found


def _measured(values: Sequence[float], held: Sequence[Mapping[str, Any]], metric: str, *, drawn: bool) -> Measured:
    found = [read_evidence(one) for one in held]
    resamples = [metrics.get(metric) for _, metrics in found]
    known = [one for one in resamples if one is not None]
    digests = {rows for rows, _ in found}
    stacked = np.stack(known) if len(known) == len(found) else None
    return Measured(
        np.array(values), stacked, digests.pop() if len(digests) == 1 else "differ", drawn, bounds_of(metric)
    )


def _means(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of numbers, also of those in objects; of everything else the first."""

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {key: mean([value[key] for value in values]) for key in values[0]}
        return float(np.mean(values)) if isinstance(values[0], (int, float)) else values[0]

    return {key: mean([cost[key] for cost in costs]) for key in costs[0]}


def _prompted(asked: Asked, shots: int, stop: StopFlag, tick: Tick) -> Row:
    """The base model with demonstrations in its prompt, scored by `ftune eval` in a process of its own, once."""
    name, folder = f"{shots}-shot", asked.folder / PROMPTED
    folder.mkdir(exist_ok=True)
    result = folder / f"{name}_{_what_is_scored(asked)}.json"
    resamples = result.with_suffix(".resamples")
    if not result.is_file():
        arguments = ["eval", str(asked.own.path), "--split", asked.split, "--shots", str(shots), "--json", "--quiet"]
        arguments += ["--metrics", asked.metric, "--resamples", str(resamples)]
        arguments += [word for override in asked.overrides for word in ("--set", override)]
        half = result.with_suffix(".part")
        outcome = run(arguments, asked.folder / LOGS / f"{name}.txt", stop, lambda: tick(name, 0, 0), half)
        if outcome.code != 0:
            return Row(name, "prompted", None, {}, f"exit code {outcome.code}: {outcome.said}")
        half.replace(result)
    found = json.loads(result.read_text(encoding="utf-8"))["metrics"].get(asked.metric)
    if found is None:
        return Row(name, "prompted", None, {}, f"has no {asked.metric} on these rows")
    held = json.loads(resamples.read_text(encoding="utf-8"))
    measured = _measured([found["value"]], [held], asked.metric, drawn=False)
    return Row(name, "prompted", System(name, "prompted", measured), {"": found["value"]}, "the base model, untrained")


def _what_is_scored(asked: Asked) -> str:
    """Short digest of recipe, rows, split and metric: a result of other ones is not reused."""
    recipe = asked.own.recipe
    known = [recipe.model_dump(mode="json"), data_files(recipe, asked.own.folder), asked.split, asked.metric]
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def remarks(asked: Asked, rows: Sequence[Row], none: str) -> list[str]:
    """What a reader must know to trust the table."""
    points = Counter(setting.method for setting in asked.settings)
    each = {str(count) for count in points.values()}
    tried = each.pop() if len(each) == 1 else ", ".join(f"{name} {count}" for name, count in points.items())
    unseen = (
        "Neither has seen the test rows that are reported here"
        if asked.split == "test"
        else "The recipe has no test rows, so these are reported, and figures of tuned rows are a little too good"
    )
    remarks = [
        f"Budget of each trial: {asked.budget or asked.own.recipe.train.duration}. Settings of each method: {tried}.",
        f"The step of a run is chosen by its loss on eval rows, a setting by {asked.metric} on them. {unseen}.",
    ]
    left_out = {setting.method: setting.left_out for setting in asked.settings if setting.left_out}
    remarks += [f"No effect on {method}, so not set there: {', '.join(keys)}." for method, keys in left_out.items()]
    costs = [row.system.cost for row in rows if row.system is not None and row.system.cost]
    if tokens := [cost["targets"] for cost in costs if cost["steps"] > 1]:
        remarks.append(f"Supervised tokens seen by a trial: {min(tokens):,.0f} to {max(tokens):,.0f}.")
    return remarks + ([f"No majority and no TF-IDF row: {none}."] if none else [])
