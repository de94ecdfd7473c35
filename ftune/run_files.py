"""What a run left in its folder, read for reports: finished or not, of this version or an older one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftune.errors import ArtifactError

Json = dict[str, Any]
SPLITS = ("eval", "test")
"""Splits that are scored at the end."""
PROMPTED = "prompted.json"
"""What the base model scores with training rows in its prompt, and of what that is."""


@dataclass(frozen=True)
class RunFiles:
    """The files of a run. What an older version did not write is empty.

    Args:
        name: of the folder.
        report: `report.json`; None while the run is not finished.
        plan: values of `plan.json`, without their sources.
        recipe: as it was resolved.
        run: `run.json`: versions, machine, fingerprints.
        events: of `metrics.jsonl`, in order.
        predictions: rows of `predictions_eval.jsonl` and `predictions_test.jsonl`, by split.
        prompted: metrics of the base model by split and number of shots, see `ftune.prompted`.
    """

    name: str
    report: Json | None
    plan: Json = field(default_factory=dict)
    recipe: Json = field(default_factory=dict)
    run: Json = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    predictions: dict[str, list[Json]] = field(default_factory=dict)
    prompted: Json = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Json]:
        """The events `step`, `eval` and so on."""
        return [event for event in self.events if event.get("event") == kind]

    @property
    def known(self) -> Json:
        """The report, or what can be said of a run that is not finished."""
        return self.report if self.report is not None else _so_far(self)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder. Nothing is written and nothing locked, so a run in progress can be read.

    Raises:
        ArtifactError: it is no run folder, or a file in it is damaged.
    """
    if not (folder / "run.json").is_file():
        what = "holds no run.json" if folder.is_dir() else "is no folder"
        raise ArtifactError(f"{folder}: {what}. Expected a run folder, as `ftune train` writes it, such as runs/NAME.")
    plan = _object(folder / "plan.json")
    return RunFiles(
        name=folder.resolve().name,
        report=_object(folder / "report.json") if (folder / "report.json").is_file() else None,
        plan={key: entry.get("value") if isinstance(entry, Mapping) else entry for key, entry in plan.items()},
        recipe=_object(folder / "resolved.json").get("recipe", {}),
        run=_object(folder / "run.json"),
        events=read_lines(folder / "metrics.jsonl"),
        predictions={
            name: rows for name in SPLITS if (rows := read_lines(folder / f"predictions_{name}.jsonl"))
        },
        prompted=_object(folder / PROMPTED).get("scores", {}),
    )  # fmt: skip


def read_lines(path: Path) -> list[Json]:
    """Objects of a JSONL file in order; a line torn by a kill is left out, and without a file there are none."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _object(path: Path) -> Json:
    """A JSON object; without a file, an empty one.

    Raises:
        ArtifactError: it is something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}. Expected JSON as ftune wrote it.") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: expected a JSON object, received {type(value).__name__}.")
    return value


def _so_far(files: RunFiles) -> Json:
    """A report of a run that is not finished: its last evaluation in place of final scores, sums over its steps."""
    steps, evals = files.of_kind("step"), files.of_kind("eval")
    recipe, plan = files.recipe, files.plan
    scores = {key: value for key, value in evals[-1].items() if _is_metric(key, value)} if evals else {}
    seconds = sum(step.get("seconds", 0.0) for step in steps)
    tokens = sum(step.get("tokens", 0) for step in steps)
    return {
        "name": files.name,
        "model": (recipe.get("model") or {}).get("name"),
        "method": (recipe.get("method") or {}).get("name"),
        "objective": (recipe.get("objective") or {}).get("name"),
        "finished": None,
        "steps": max((step.get("step", 0) for step in steps), default=0),
        "planned_steps": plan.get("steps"),
        "baseline": {k: v for k, v in evals[0].items() if _is_metric(k, v)}
        if evals and not evals[0].get("step")
        else {},
        "prompted": files.prompted,
        "metrics": {"eval": {name: {"value": value, "ci95": None} for name, value in scores.items()}} if scores else {},
        "trainable_parameters": plan.get("trainable_parameters"),
        "total_parameters": plan.get("total_parameters"),
        "rows_seen": sum(step.get("rows", 0) for step in steps),
        "tokens_seen": tokens,
        "targets_seen": sum(step.get("targets", 0) for step in steps),
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "flops_per_second": sum(step.get("flops", 0.0) for step in steps) / seconds if seconds else None,
        "peak_memory_bytes": max((step.get("memory_bytes", 0) for step in steps), default=0) or None,
        "planned_memory_bytes": _sum(plan.get("memory_bytes")),
    }


def _is_metric(key: str, value: Any) -> bool:
    return key not in ("event", "step") and isinstance(value, (int, float))


def _sum(sizes: Any) -> int | None:
    return sum(sizes.values()) if isinstance(sizes, dict) else None
