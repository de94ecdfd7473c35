"""Laws 8 and 11: where a run was cut, saved or measured never shows in what it learned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bases import noisy
from laws import DEEP, FAMILIES, Shared, Stops, events, ftune, train

from ftune.errors import ArtifactError, Interrupted
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.signals import StopFlag

STEPS = 12
METHODS = DEEP
VARIANTS = {"pissa": {"init": "pissa"}, "dora": {"dora": True}, "new_tokens": {"new_tokens": ["<call>"]}}
ROWS = [{"prompt": "x" * (i % 5) + "?", "completion": f"<call>{i}" + "!" * (i % 4)} for i in range(13)]
"""13 rows in batches of 4: the last window of each of the three epochs holds one row."""


def twelve(folder: Path, shared: Shared, method: str, family: str, **sections: Any) -> Loaded:
    """Three epochs of four steps, two micro-batches each, dropout on, schedule and warm-up of every kind."""
    every = {"duration": "3 epochs", "warmup": 2, "schedule": "cosine", "learning_rate": 3e-3}
    return noisy(
        folder,
        shared,
        "lora" if method in VARIANTS else method,
        family,
        rows=ROWS,
        block=VARIANTS.get(method, {}),
        **{"train": every, "data": {"eval": "rows.jsonl"}, "eval": {"every": 4}, **sections},
    )


def uninterrupted(shared: Shared, method: str, family: str) -> Path:
    """The run that nothing disturbed, with a checkpoint of every step."""

    def fill(folder: Path) -> None:
        train(twelve(folder, shared, method, family, checkpoint={"every": 1, "keep": STEPS}))

    run = shared.make(f"uninterrupted-{method}-{family}", fill) / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step_{k:06d}" for k in range(1, 13)]
    return run


def interrupt(loaded: Loaded, step: int) -> None:
    """Train until `step` and be interrupted there."""
    listener = Stops(step)
    with pytest.raises(Interrupted) as caught:
        train(loaded, listener, listener.flag)
    assert caught.value.code == 130
    assert f"step {step} of {STEPS} is saved" in str(caught.value)


def assert_same_checkpoint(ours: Path, theirs: Path, step: int) -> None:
    import torch
    from safetensors.torch import load_file

    for name in ("weights.safetensors", "optimizer.safetensors"):
        a, b = (load_file(run / "checkpoints" / f"step_{step:06d}" / name) for run in (ours, theirs))
        assert a.keys() == b.keys() and len(a) > 0
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], (name, step)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Final weights, optimizer, every loss, the artefact and what the report says of quality."""
    assert_same_checkpoint(ours, theirs, STEPS)
    for kind, keys in (("step", ("step", "loss", "grad_norm", "learning_rate", "rows")), ("eval", ("step", "loss"))):
        a, b = ([[event[key] for key in keys] for event in events(run, kind)] for run in (ours, theirs))
        assert a == b, kind
    assert [event["step"] for event in events(ours, "step")] == list(range(1, STEPS + 1))
    weights = next(path.name for path in (ours / "model").glob("*.safetensors"))
    assert (ours / "model" / weights).read_bytes() == (theirs / "model" / weights).read_bytes()
    reports = [json.loads((run / "report.json").read_text()) for run in (ours, theirs)]
    for key in ("metrics", "baseline", "rows_seen", "tokens_seen", "targets_seen", "model_step", "finished"):
        assert reports[0][key] == reports[1][key], key


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_law_8_cut_at_every_single_step(tmp_path: Path, shared: Shared, method: str, family: str) -> None:
    """Twelve starts, one step each: an error at any of the eleven resumes would be carried to the end."""
    through_every_cut(tmp_path, shared, method, family)


@pytest.mark.parametrize("variant", VARIANTS)
def test_law_8_variants_of_lora_cut_at_every_single_step(tmp_path: Path, shared: Shared, variant: str) -> None:
    through_every_cut(tmp_path, shared, variant, "llama")


def through_every_cut(tmp_path: Path, shared: Shared, method: str, family: str) -> None:
    whole = uninterrupted(shared, method, family)
    loaded = twelve(tmp_path, shared, method, family, checkpoint={"every": 5})
    for step in range(1, STEPS):
        interrupt(loaded, step)
        assert_same_checkpoint(tmp_path / "run", whole, step)
    train(loaded)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("method", METHODS)
def test_law_8_cut_once_and_run_to_the_end(tmp_path: Path, shared: Shared, method: str, step: int) -> None:
    loaded = twelve(tmp_path, shared, method, "llama", checkpoint={"every": 5})
    interrupt(loaded, step)
    train(loaded)
    assert_same_run(tmp_path / "run", uninterrupted(shared, method, "llama"))


@pytest.mark.parametrize(
    "change", [{"precision": "bf16"}, *({"optimizer": name} for name in ("adafactor", "sgd", "muon"))], ids=str
)
@pytest.mark.parametrize("method", METHODS)
def test_law_8_in_bf16_and_with_other_optimizers(
    tmp_path: Path, shared: Shared, method: str, change: dict[str, str]
) -> None:
    section = {"duration": "3 epochs", "warmup": 2, "schedule": "linear", "learning_rate": 3e-3, **change}
    for name in ("cut", "whole"):
        loaded = twelve(tmp_path / name, shared, method, "llama", train=section, checkpoint={"every": 5})
        if name == "cut":
            interrupt(loaded, 1)
            interrupt(loaded, 6)
        train(loaded)
    assert_same_run(tmp_path / "cut" / "run", tmp_path / "whole" / "run")
    losses = [event["loss"] for event in events(tmp_path / "whole" / "run", "step")]
    assert losses != [event["loss"] for event in events(uninterrupted(shared, method, "llama"), "step")]


@pytest.mark.e2e
@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("method", METHODS)
def test_law_8_every_family(tmp_path: Path, shared: Shared, method: str, step: int, family: str) -> None:
    loaded = twelve(tmp_path, shared, method, family, checkpoint={"every": 5})
    interrupt(loaded, step)
    train(loaded)
    assert_same_run(tmp_path / "run", uninterrupted(shared, method, family))


@pytest.mark.parametrize("method", METHODS)
def test_law_8_after_sigkill(tmp_path: Path, shared: Shared, method: str) -> None:
    """Killed by the kernel's hand at the rename that would have published step 8; the same command goes on."""
    sections = {"checkpoint": {"every": 2}}
    operations: list[str] = []
    counted = twelve(tmp_path / "counted", shared, method, "llama", **sections)
    (tmp_path / "counted" / "run").mkdir()  # as the lock of the command line does, uncounted
    train(counted, on_operation=lambda kind, path: operations.append(f"{kind} {path.name}"))
    loaded = twelve(tmp_path / "killed", shared, method, "llama", **sections)
    number = 1 + operations.index("rename step_000008")
    killed = ftune("train", loaded.path, FTUNE_TESTING="1", FTUNE_FAULT=f"{number}:KILL")
    assert killed.returncode == -9, killed.stderr[-2000:]
    run = tmp_path / "killed" / "run"
    there = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert "step_000006" in there and "step_000008" not in there and not (run / "model").exists()
    done = ftune("train", loaded.path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"goes on after step 6", done.stdout + done.stderr)
    assert_same_run(run, uninterrupted(shared, method, "llama"))


class StopsIn(Listener):
    """Presses Ctrl-C when a phase is reported for the `count`-th time."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.left, self.flag = name, count, StopFlag()

    def phase(self, name: str, done: int, total: int) -> None:
        self.left -= name == self.name
        if self.left == 0:
            self.flag.signal_number = 15


@pytest.mark.parametrize(
    ("phase", "count", "step"),
    [
        ("reading rows.jsonl", 1, None), ("tokenising train", 1, None), ("loading the model", 1, None),
        ("evaluating", 1, 0), ("evaluating", 8, 4), ("evaluating", 15, 8), ("evaluating", 22, 12),
        ("scoring eval", 1, 12), ("scoring eval", 5, 12),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_law_8_cut_outside_of_steps(
    tmp_path: Path, shared: Shared, method: str, phase: str, count: int, step: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the baseline (7 batches), in the evaluations after steps 4, 8 and 12, in the final scoring, while loading."""
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))  # so that rows are read at all
    loaded = twelve(tmp_path, shared, method, "llama", checkpoint={"every": 5})
    listener = StopsIn(phase, count)
    with pytest.raises(Interrupted) as caught:
        train(loaded, listener, listener.flag)
    assert caught.value.code == 143
    saved = sorted(path.name for path in tmp_path.glob("run/checkpoints/*"))
    assert saved[-1:] == ([] if step is None else [f"step_{step:06d}"])
    train(loaded)
    assert_same_run(tmp_path / "run", uninterrupted(shared, method, "llama"))


@pytest.mark.parametrize("method", METHODS)
def test_law_8_a_run_that_ends_by_the_clock_goes_on(tmp_path: Path, shared: Shared, method: str) -> None:
    """A cap of no time at all ends every start after one step, with an artefact of its own."""
    every = {"duration": "3 epochs", "warmup": 2, "schedule": "cosine", "learning_rate": 3e-3, "max_minutes": 1e-9}
    loaded = twelve(tmp_path, shared, method, "llama", checkpoint={"every": 5}, train=every)
    for step in range(1, STEPS):
        report = train(loaded)
        assert (report["steps"], report["finished"]) == (step, "max_minutes")
    assert train(loaded)["finished"] == "complete"
    assert_same_run(tmp_path / "run", uninterrupted(shared, method, "llama"))


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_that_is_extended_equals_a_longer_one(tmp_path: Path, shared: Shared, method: str) -> None:
    whole = {"warmup": 0, "schedule": "constant", "learning_rate": 3e-3}
    for steps in (5, STEPS):
        report = train(twelve(tmp_path / "a", shared, method, "llama", train={**whole, "duration": f"{steps} steps"}))
        assert report["steps"] == steps
    train(twelve(tmp_path / "b", shared, method, "llama", train={**whole, "duration": f"{STEPS} steps"}))
    assert_same_checkpoint(tmp_path / "a" / "run", tmp_path / "b" / "run", STEPS)


@pytest.mark.parametrize("save_every", [1, 3, 99])
@pytest.mark.parametrize("eval_every", [1, 3, 99])
@pytest.mark.parametrize("method", METHODS)
def test_law_11_cadences_never_change_the_weights(
    tmp_path: Path, shared: Shared, method: str, eval_every: int, save_every: int
) -> None:
    cadences_agree(tmp_path, shared, method, "llama", eval_every, save_every)


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize(("eval_every", "save_every"), [(1, 99), (99, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_law_11_in_every_family(
    tmp_path: Path, shared: Shared, method: str, eval_every: int, save_every: int, family: str
) -> None:
    cadences_agree(tmp_path, shared, method, family, eval_every, save_every)


def cadences_agree(tmp_path: Path, shared: Shared, method: str, family: str, eval_every: int, save_every: int) -> None:
    loaded = twelve(
        tmp_path, shared, method, family, eval={"every": eval_every}, checkpoint={"every": save_every, "keep": 20}
    )
    train(loaded)
    run = tmp_path / "run"
    assert len(events(run, "eval")) == 1 + len({*range(eval_every, STEPS + 1, eval_every), STEPS})
    assert_same_checkpoint(run, uninterrupted(shared, method, family), STEPS)
    losses = [[event["loss"] for event in events(r, "step")] for r in (run, uninterrupted(shared, method, family))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_law_11_generating_between_steps_changes_nothing(tmp_path: Path, shared: Shared, method: str) -> None:
    generating = {"every": 2, "generate_every": 2, "metrics": ["exact_match"], "max_new_tokens": 3}
    train(twelve(tmp_path, shared, method, "llama", eval=generating, checkpoint={"every": 5}))
    assert sum("exact_match" in event for event in events(tmp_path / "run", "eval")) >= 5
    assert_same_checkpoint(tmp_path / "run", uninterrupted(shared, method, "llama"), STEPS)


def test_law_8_with_weighted_sources(tmp_path: Path, shared: Shared) -> None:
    """Half of the rows, others each epoch, and those of another source twice: six epochs of two steps."""
    section = {"duration": "12 steps", "warmup": 2, "learning_rate": 3e-3, "batch_size": 6, "micro_batch_size": 3}
    sources = [{"path": "rows.jsonl", "weight": 0.5}, {"path": "more.jsonl", "weight": 2.0}]
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()
        rows = [{"prompt": f"{i}?", "completion": f"<call>{i}"} for i in range(20, 23)]
        (tmp_path / name / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": sources, "eval": "rows.jsonl"}
        loaded = twelve(tmp_path / name, shared, "lora", "llama", train=section, data=data, checkpoint={"every": 5})
        if name == "cut":
            interrupt(loaded, 3)
            interrupt(loaded, 8)
        train(loaded)
    assert_same_run(tmp_path / "cut" / "run", tmp_path / "whole" / "run")
    report = json.loads((tmp_path / "whole" / "run" / "report.json").read_text())
    assert (report["rows_seen"], report["data"]["train"]["examples"]) == (6 * 12, 12)


def test_a_run_of_a_version_with_other_fields_is_refused_in_words(tmp_path: Path, shared: Shared) -> None:
    loaded = twelve(tmp_path, shared, "lora", "llama")
    interrupt(loaded, 2)
    path = tmp_path / "run" / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    del plan["loss_chunk"]
    path.write_text(json.dumps({**plan, "gone": {"value": 1, "source": "here"}}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="fields of this version of ftune: gone, loss_chunk"):
        train(loaded)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"plan\.json: cannot be read"):
        train(loaded)
