"""Run the trials of a comparison, one after another, each in a process of its own: memory is then each one's alone.

A trial is an ordinary `ftune train`, so one that was cut goes on where it was, and one that is finished is left alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftune import drift
from ftune.compare.trials import Trial
from ftune.errors import Interrupted, LockedError
from ftune.report import read_report
from ftune.signals import StopFlag

Tick = Callable[[str, int, int], None]
LOGS = "logs"
"""Folder of what the trials printed, in that of the comparison."""
SECONDS_BETWEEN_LOOKS = 0.5
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a trial that was told to stop, see `ftune.errors`."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Args:
        code: its exit code.
        said: its last words on stderr.
    """

    code: int
    said: str = ""


def is_finished(trial: Trial) -> bool:
    """Whether the run of a trial is there already, complete, and what the recipe asks for now."""
    return drift.is_complete(trial.loaded.output_dir.absolute(), trial.loaded)


def run_trial(trial: Trial, log: Path, stop: StopFlag, tick: Tick) -> Outcome:
    """Train, or go on training.

    Raises:
        Interrupted: a signal came; the trial has saved and ended.
    """
    arguments = ["train", str(trial.loaded.path), "--quiet", *_sets(trial.overrides)]

    def look() -> None:
        tick(trial.name, *_progress(trial.loaded.output_dir))

    outcome = run(arguments, log, stop, look)
    while outcome.code == LockedError.exit_code:  # the process of an earlier, killed comparison still trains it
        tick(f"{trial.name}: another process trains it, waiting", 0, 0)
        time.sleep(SECONDS_BETWEEN_LOOKS)
        outcome = run(arguments, log, stop, look)
    return outcome


def _sets(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def run(
    arguments: Sequence[str], log: Path, stop: StopFlag, look: Callable[[], None], printed: Path | None = None
) -> Outcome:
    """Run `ftune ARGUMENTS` and call `look` now and then.

    Args:
        arguments: of the command line.
        log: file for its stderr.
        stop: set by signals.
        look: shows progress.
        printed: file for its stdout; None drops that.

    Raises:
        Interrupted: a signal came; the process was told, and has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors, (printed or Path(os.devnull)).open("wb") as output:
        command = [sys.executable, "-m", "ftune", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        told = False
        while process.poll() is None:
            if stop.set and not told:
                process.send_signal(signal.SIGTERM)  # Ctrl-C has reached it already, SIGTERM to us alone has not
                told = True
            if not stop.set:
                look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if stop.set or process.returncode in INTERRUPTED:
        number = stop.signal_number or process.returncode - 128
        raise Interrupted(number, "interrupted; what is finished is kept. The same command goes on.")
    return Outcome(process.returncode, _last_words(log))


def _last_words(log: Path) -> str:
    """What a failed process said at the end, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return " ".join([line for line in lines if line][-3:])


def _progress(folder: Path) -> tuple[int, int]:
    """Steps done and in all of a run that is going on; zeros before its first."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            last = json.loads(file.read().decode("utf-8", "replace").splitlines()[-1])
        return int(last["step"]), int(plan["steps"]["value"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0


def cost_of(trial: Trial) -> dict[str, Any]:
    """What a finished trial took, and what it chose."""
    folder = trial.loaded.output_dir
    report = read_report(folder)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {
        "trainable_parameters": report["trainable_parameters"],
        "total_parameters": report["total_parameters"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "train_seconds": report["train_seconds"],
        "tokens_per_second": report["tokens_per_second"],
        "steps": report["steps"],
        "tokens": report["tokens_seen"],
        "targets": report["targets_seen"],
        "artefact_bytes": sum(file.stat().st_size for file in (folder / "model").rglob("*") if file.is_file()),
        "learning_rate": plan["learning_rate"]["value"],
        "learning_rate_source": plan["learning_rate"]["source"],
        "rows_seen": report["rows_seen"],
        "guard": {
            name: {"before": sets["before"]["loss"], "after": sets["after"]["loss"]["value"]}
            for name, sets in report["guard"].items()
            if "loss" in sets["before"] and "loss" in sets["after"]
        },
        "finished": report["finished"],
    }
