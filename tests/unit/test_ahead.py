"""The next step's batches are made while this one is computed: the same bits, no thread left, errors in the open."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import bench
from laws import events, recipe, train

from ftune.ahead import Ahead, lay_out
from ftune.data.encode import Example
from ftune.data.order import window
from ftune.data.pack import Cut
from ftune.errors import Interrupted
from ftune.objectives.causal_lm import CausalLM
from ftune.signals import StopFlag

SMALL: dict[str, Any] = {
    "data": {"packing": False},
    "train": {"duration": "6 steps", "batch_size": 4, "micro_batch_size": 2},
    "method": {"name": "lora", "rank": 2, "dropout": 0.3},
}


def threads() -> list[str]:
    """Of ours, those that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ftune-ahead")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    assert threads() == []
    yield
    assert threads() == []


def test_things_come_in_order_one_step_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> str:
        made.append(step)
        assert threading.current_thread().name.startswith("ftune-ahead")
        return f"made {step}"

    with Ahead(make, range(3, 6)).made() as things:
        assert made == [], "nothing before it is asked for"
        assert next(things)[0] == "made 3"
        until(lambda: made == [3, 4])
        time.sleep(0.05)
        assert made == [3, 4], "one ahead, not more"
        assert [thing for thing, _ in things] == ["made 4", "made 5"]
    assert made == [3, 4, 5]


def until(holds: Any) -> None:
    """Wait for the thread, at most ten seconds."""
    limit = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_time_is_waited_only_for_what_is_not_ready() -> None:
    def slow(step: int) -> int:
        time.sleep(0.2)
        return step

    with Ahead(slow, range(3)).made() as things:
        _, first = next(things)
        time.sleep(0.6)  # the device computes
        _, ready = next(things)
        _, late = next(things)
    assert first >= 0.2 and late >= 0.15
    assert ready < 0.1


def test_an_error_is_raised_at_its_step_and_not_before() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ZeroDivisionError("of step 1")
        return step

    with pytest.raises(ZeroDivisionError, match="of step 1"), Ahead(make, range(4)).made() as things:
        assert next(things)[0] == 0
        until(lambda: True)
        next(things)


def test_leaving_early_waits_for_what_is_begun_and_begins_nothing_more() -> None:
    ended: list[int] = []

    def make(step: int) -> int:
        time.sleep(0.1)
        ended.append(step)
        return step

    with pytest.raises(KeyError), Ahead(make, range(9)).made() as things:
        next(things)
        raise KeyError
    assert ended in ([0], [0, 1])
    assert threads() == []


def rows(count: int) -> list[Example]:
    return [
        Example(np.full(3, number, dtype=np.int32), np.array([False, True, True]), 2, "rows.jsonl", number + 1)
        for number in range(count)
    ]


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(np.stack([example.ids for example in examples]))}


def test_a_process_gets_its_own_batches() -> None:
    work = window(rows(5), 0, batch_size=5, cut=Cut(2), seed=0)
    both = [lay_out(work, collate, rank, 2, pin=False) for rank in (0, 1)]
    assert [[number for number, _, _ in laid.batches] for laid in both] == [[0, 2], [1]]
    for laid in both:
        assert laid.weight == 1.0 and laid.window is work
        for number, examples, batch in laid.batches:
            assert examples == work.micro_batches[number]
            assert batch["input_ids"][:, 0].tolist() == [example.number - 1 for example in examples]


def test_a_process_without_rows_takes_part_without_weight() -> None:
    work = window(rows(2), 0, batch_size=2, cut=Cut(2), seed=0)
    laid = lay_out(work, collate, 1, 2, pin=False)
    assert laid.weight == 0.0
    assert [number for number, _, _ in laid.batches] == [0]


def test_what_fails_in_a_batch_names_step_and_rows() -> None:
    def fails(examples: list[Example]) -> Any:
        raise ValueError("no tensor")

    with pytest.raises(ValueError, match="no tensor") as caught:
        lay_out(window(rows(2), 0, batch_size=2, cut=Cut(1), seed=0), fails, 0, 1, pin=False)
    first = window(rows(2), 0, batch_size=2, cut=Cut(1), seed=0).micro_batches[0][0]
    assert caught.value.__notes__ == [f"step 1, rows rows.jsonl:{first.number}"]


# in a run


def test_runs_are_the_same_to_the_bit_however_long_rows_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is on: it must not depend on when batches are made."""
    prompt = bench(recipe(tmp_path / "a", **SMALL))
    quick = [(result.loss, result.grad_norm, result.rows) for result in prompt.steps()]
    plain, calls = CausalLM.collate, []

    def late(self: CausalLM, examples: list[Example], pad_id: int, left: bool = False) -> Any:
        calls.append(threading.current_thread().name)
        time.sleep(0.05 * (len(calls) % 3))
        return plain(self, examples, pad_id, left)

    monkeypatch.setattr(CausalLM, "collate", late)
    slow = bench(recipe(tmp_path / "b", **SMALL))
    calls.clear()  # the trial of losses lays out rows too
    results = list(slow.steps())
    assert [(result.loss, result.grad_norm, result.rows) for result in results] == quick
    assert len(calls) == 12 and all(name.startswith("ftune-ahead") for name in calls)
    assert all(0 <= result.data_wait <= result.seconds for result in results)
    assert results[0].data_wait > 0
    for (name, one), (_, other) in zip(prompt.model.named_parameters(), slow.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_run_says_how_long_it_waited(tmp_path: Path) -> None:
    train(recipe(tmp_path, **SMALL))
    for event in events(tmp_path / "run", "step"):
        assert 0 <= event["data_wait"] <= event["seconds"]


def test_a_failure_while_rows_are_laid_out_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = CausalLM.collate, []

    def fails(self: CausalLM, examples: list[Example], pad_id: int, left: bool = False) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise ValueError("rows cannot be laid out")
        return plain(self, examples, pad_id, left)

    monkeypatch.setattr(CausalLM, "collate", fails)
    with pytest.raises(ValueError, match="rows cannot be laid out") as caught:
        train(recipe(tmp_path, **SMALL))
    assert len(caught.value.__notes__) == 1 and caught.value.__notes__[0].startswith("step 3, rows ")
    assert "rows.jsonl:" in caught.value.__notes__[0]
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2], "the steps before it were made"
    assert threads() == []


def test_a_signal_ends_the_thread_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftune.listener import Listener
    from ftune.run import train as run

    stop, plain = StopFlag(), CausalLM.loss

    def signalled(self: CausalLM, model: Any, batch: Any) -> Any:
        if len(threads()) != 1:
            raise AssertionError("one thread makes batches")
        stop.signal_number = 15
        return plain(self, model, batch)

    monkeypatch.setattr(CausalLM, "loss", signalled)
    with pytest.raises(Interrupted):
        run(recipe(tmp_path, **SMALL), listener=Listener(), stop=stop)
    assert threads() == []
