"""A profile says where time went and changes nothing; operations and speed are in every run's log and report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cuts import Stops
from laws import events, recipe, train
from typer.testing import CliRunner

from ftune.errors import Interrupted
from ftune.flops import cost_of
from ftune.listener import Listener
from ftune.meter import Meter


class Notes(Listener):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def lora(folder: Path, **sections: Any) -> Any:
    method = {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.2}
    every = {"data": {"eval": "rows.jsonl"}, "eval": {"every": 2}, "checkpoint": {"every": 2}}
    return recipe(folder, method=method, **{**every, **sections})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(lora(folder))
    return folder / "run"


def numbers(run: Path) -> list[Any]:
    """Everything of the steps and evaluations that is not a time."""
    keys = ("step", "loss", "grad_norm", "rows", "tokens", "flops")
    return [[event.get(key) for key in keys] for kind in ("step", "eval") for event in events(run, kind)]


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step_000005" / "weights.safetensors").read_bytes()


def test_a_profiled_run_has_the_same_numbers_a_trace_and_a_table(tmp_path: Path, plain: Path) -> None:
    notes = Notes()
    train(lora(tmp_path), notes, profile_steps=2)
    run = tmp_path / "run"
    assert numbers(run) == numbers(plain) and weights(run) == weights(plain)
    table = json.loads((run / "profile" / "table.json").read_text())
    assert (table["first_step"], table["last_step"]) == (4, 5), "two steps and one for the profiler come before"
    kinds = table["kinds"]
    assert {*kinds} == {"data", "forward", "backward", "clipping", "optimizer", "eval", "save", "other"}
    assert sum(kind["share"] for kind in kinds.values()) == pytest.approx(1, abs=1e-6)
    assert sum(kind["seconds"] for kind in kinds.values()) == pytest.approx(table["seconds_per_step"], rel=1e-6)
    assert all(kind["seconds"] > 0 for name, kind in kinds.items() if name != "other")
    operators = {operator["name"]: operator for operator in table["operators"]}
    assert operators["aten::mm"]["calls"] > 20 and operators["aten::mm"]["share"] > 0
    assert not any("ftune" in name for name in operators)
    text = (run / "profile" / "table.txt").read_text()
    assert "backward" in text and any(text in note for note in notes.texts)
    with gzip.open(run / "profile" / "trace.json.gz") as file:
        marks = [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert marks.count("ftune forward") == marks.count("ftune backward") >= 2
    assert marks.count("ftune optimizer") == 2


@pytest.mark.parametrize(("steps", "wanted", "first", "last"), [(1, 3, 1, 1), (4, 9, 2, 4)])
def test_short_runs_are_profiled_as_far_as_they_go(
    tmp_path: Path, steps: int, wanted: int, first: int, last: int
) -> None:
    section = {"duration": f"{steps} steps"}
    train(lora(tmp_path, train=section, data={"eval": None}, eval={}, checkpoint={}), profile_steps=wanted)
    table = json.loads((tmp_path / "run" / "profile" / "table.json").read_text())
    assert (table["first_step"], table["last_step"]) == (first, last)


def test_a_run_that_is_cut_while_it_is_profiled_goes_on_as_ever(tmp_path: Path, plain: Path) -> None:
    listener = Stops(4)
    with pytest.raises(Interrupted) as caught:
        train(lora(tmp_path), listener, listener.flag, profile_steps=2)
    assert caught.value.code == 130
    assert not (tmp_path / "run" / "profile").exists()
    train(lora(tmp_path), profile_steps=1)
    assert numbers(tmp_path / "run") == numbers(plain) and weights(tmp_path / "run") == weights(plain)
    table = json.loads((tmp_path / "run" / "profile" / "table.json").read_text())
    assert (table["first_step"], table["last_step"]) == (5, 5)


def test_early_stopping_ends_a_profile(tmp_path: Path) -> None:
    section = {"duration": "20 steps", "learning_rate": 0.0, "early_stopping": {"patience": 1}}
    train(lora(tmp_path, train=section, eval={"every": 4}), profile_steps=9)
    table = json.loads((tmp_path / "run" / "profile" / "table.json").read_text())
    assert (table["first_step"], table["last_step"]) == (4, 8), "the second evaluation is no better"


def test_operations_and_speed_are_in_the_log_and_the_report(plain: Path) -> None:
    report = json.loads((plain / "report.json").read_text())
    steps = events(plain, "step")
    for event in steps:
        assert event["flops"] > 1e6 and event["mfu"] is None, "nobody publishes the peak of a processor"
        assert event["tokens_per_second"] == pytest.approx(event["tokens"] / event["seconds"])
        assert event["flops_per_second"] == pytest.approx(event["flops"] / event["seconds"])
    total = sum(event["flops"] for event in steps)
    assert report["flops_per_second"] == pytest.approx(total / report["train_seconds"], rel=1e-9)
    assert report["mfu"] is None
    assert "| operations per second |" in (plain / "report.md").read_text()


def test_operations_follow_the_rows_of_the_step(tmp_path: Path) -> None:
    from bench import bench

    work = bench(lora(tmp_path))
    cost = cost_of(work.model, "next_token")
    examples = work.prepared.dataset.train.examples
    whole = sum(cost._of_example(example) for example in examples)
    assert sum(event.flops for event in [*_steps(work, cost)][:3]) == pytest.approx(whole, rel=1e-12)


def _steps(work: Any, cost: Any) -> Any:
    from unittest import mock

    with mock.patch("ftune.meter.Meter.flops", lambda self, window: cost.of(window)):
        yield from work.steps()


def test_mfu_is_a_share_of_the_peak() -> None:
    assert Meter(None, 4e12).mfu(1e12, 0.5) == 0.5
    assert Meter(None, None).mfu(1e12, 0.5) is None
    assert Meter(None, 4e12).mfu(0.0, 0.5) is None, "sklearn's heads count none"


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftune.cli import app

    for name in ("KINETO_LOG_LEVEL", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "3")
    path = str(lora(tmp_path).path)
    done = CliRunner().invoke(app, ["train", path, "--profile", "--profile-steps", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 5
    assert "profile of steps 4 to 4" in done.stderr
    assert (tmp_path / "run" / "profile" / "trace.json.gz").is_file()
    refused = CliRunner().invoke(app, ["train", path, "--profile", "--smoke"])
    assert refused.exit_code == 2 and "makes too few steps to profile" in " ".join(refused.stderr.split())
