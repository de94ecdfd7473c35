"""A loss or gradient that is not finite stops the run before the update, with exit code 7, naming step and rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bases import plain_base
from laws import ROWS, Shared, events, recipe, train

from ftune.checkpoints import checkpoints
from ftune.errors import DivergedError, exit_code_of
from ftune.evaluation import likelihood_scores
from ftune.load import Loaded
from ftune.manifest import verify
from ftune.state import TrainState


def poisoned(shared: Shared, folder: Path, token: int, value: float) -> Path:
    """A base whose embedding of one byte is `value`."""
    from safetensors.torch import load_file, save_file

    from ftune import builtin

    folder.mkdir(parents=True)
    base = plain_base(shared, "llama")
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    builtin.tokenizer().save_pretrained(folder)
    return folder


def assert_stopped_before(run: Path, step: int) -> None:
    """Nothing of `step` or later is on disk, and what is there is whole and finite."""
    import torch
    from safetensors.torch import load_file

    assert [event["step"] for event in events(run, "step")] == list(range(1, step))
    for number, folder in checkpoints(run):
        assert number < step
        verify(folder)
        assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "weights.safetensors").values())
    assert not (run / "model").exists() and not (run / "report.json").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("micro", [1, 4])
def test_one_bad_row_is_named(tmp_path: Path, shared: Shared, method: str, micro: int) -> None:
    """Row 6 alone holds a Q, whose embedding is infinite."""
    rows = [{"prompt": f"{i} is", "completion": "Q" if i == 5 else f"{i * i}."} for i in range(8)]
    train_section = {"duration": "4 steps", "batch_size": 4, "micro_batch_size": micro}
    base = poisoned(shared, tmp_path / "base", ord("Q"), float("inf"))
    loaded = recipe(
        tmp_path, rows=rows, model=str(base), method=method, train=train_section, checkpoint={"every": 1, "keep": 9}
    )
    with pytest.raises(DivergedError) as caught:
        train(loaded)
    message = str(caught.value)
    assert exit_code_of(caught.value) == 7
    named = [line for line in range(1, 9) if f"rows.jsonl:{line}" in message]
    assert 6 in named and (named == [6] or micro > 1 and len(named) <= micro), message
    step = int(message.partition(":")[0].removeprefix("step "))
    assert step in (1, 2)
    assert_stopped_before(tmp_path / "run", step)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_huge_learning_rate(tmp_path: Path, method: str, evaluates: bool) -> None:
    sections: dict[str, Any] = {"train": {"duration": "30 steps", "learning_rate": 1e25, "max_grad_norm": None}}
    if evaluates:
        sections |= {"data": {"eval": "rows.jsonl"}, "eval": {"every": 1}}
    loaded = recipe(tmp_path, method=method, checkpoint={"every": 1, "keep": 99}, **sections)
    with pytest.raises(DivergedError) as caught:
        train(loaded)
    message = str(caught.value)
    assert re.match(r"(evaluation after )?step \d+: ", message) and "rows.jsonl:" in message
    run = tmp_path / "run"
    last = max((event["step"] for event in events(run, "step")), default=0)
    assert all(number <= last for number, _ in checkpoints(run))
    assert not (run / "model").exists()


def test_an_evaluation_that_is_not_finite_stops_the_run_and_names_its_rows(tmp_path: Path, shared: Shared) -> None:
    held = tmp_path / "held.jsonl"
    held.parent.mkdir(exist_ok=True)
    held.write_text("\n".join(map(json.dumps, [*ROWS[:2], {"prompt": "Q", "completion": "no"}])))
    base = poisoned(shared, tmp_path / "base", ord("Q"), float("nan"))
    loaded = recipe(tmp_path, model=str(base), data={"eval": str(held)}, eval={"every": 1}, method="lora")
    with pytest.raises(DivergedError, match=r"^evaluation after step 0: .*held\.jsonl:3") as caught:
        train(loaded)
    assert "held.jsonl:1" not in str(caught.value)
    assert exit_code_of(caught.value) == 7


def test_a_loss_too_large_for_a_perplexity_is_still_a_number(tmp_path: Path) -> None:
    """exp(loss) leaves the range of floats at 710 nats, which a bad start can reach; the run goes on and resumes."""
    import numpy as np

    from ftune.evaluation import RowLosses

    losses = RowLosses(np.array([9000.0, 9000.0]), np.array([10, 10]), np.array([10, 10]), None, [])
    scores = likelihood_scores(losses, ("loss", "perplexity", "bits_per_byte"), intervals=True)
    assert scores["loss"].value == 900.0
    numbers = {name: score.value for name, score in scores.items()}
    json.dumps(numbers, allow_nan=False)
    state = TrainState(baseline=numbers)
    assert TrainState.model_validate_json(state.model_dump_json()) == state


def test_some_steps_may_be_passed_over(tmp_path: Path, shared: Shared) -> None:
    """Nothing is learned in them; beyond the limit the run ends, and a higher one lets it go on to the same bits."""
    from safetensors.torch import load_file

    rows = [{"prompt": f"{i} is", "completion": "Q" if i == 5 else f"{i * i}."} for i in range(8)]
    base = poisoned(shared, tmp_path / "base", ord("Q"), float("inf"))

    def allowed(folder: str, number: int) -> Loaded:
        return recipe(
            tmp_path / folder, rows=rows, model=str(base), method="lora", checkpoint={"every": 1, "keep": 9},
            train={"duration": "6 steps", "batch_size": 4, "max_skipped_steps": number},
        )  # fmt: skip

    report = train(allowed("three", 3))
    run = tmp_path / "three" / "run"
    skipped = [event for event in events(run, "step") if "skipped" in event]
    assert report["skipped_steps"] == len(skipped) == 3 and report["steps"] == 6
    assert all("rows.jsonl:6" in event["skipped"] and event["loss"] == "nan" for event in skipped)
    assert "steps without an update, not finite | 3" in (run / "report.md").read_text()
    saved = dict(checkpoints(run))
    for step in range(2, 7):
        before, after = (load_file(saved[n] / "weights.safetensors") for n in (step - 1, step))
        same = all(before[name].equal(after[name]) for name in before)
        assert same == (step in [event["step"] for event in skipped])
    with pytest.raises(DivergedError, match=r"step \d: loss nan.*train.max_skipped_steps"):
        train(allowed("two", 2))
    assert train(allowed("two", 3))["skipped_steps"] == 3
    for name in ("weights", "optimizer"):
        one, other = (tmp_path / f / "run" / "checkpoints" / "step_000006" for f in ("two", "three"))
        assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
