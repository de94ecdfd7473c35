"""Out of memory: the same step in smaller parts, at once or later, and what cannot be made smaller."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laws import events, recipe, train

from ftune import micro_batch
from ftune.errors import MemoryExhausted
from ftune.load import Loaded, load_recipe
from ftune.objectives.causal_lm import CausalLM

ROWS = [{"prompt": f"{n} and {n}", "completion": "odd" * (1 + n % 3)} for n in range(24)]
WORDS = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def asked(folder: Path, **sections: Any) -> Loaded:
    step = {"duration": "6 steps", "batch_size": 8, "micro_batch_size": "auto"}
    return recipe(
        folder, rows=ROWS, method={"name": "lora", "dropout": 0.1}, train={**step, **sections.pop("train", {})},
        checkpoint={"every": 2}, **sections,
    )  # fmt: skip


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Forwards of more than so many tokens fail, after the given number of them; two try out the model."""
    real = CausalLM.loss

    def set_limit(tokens: int | None, after: int = 0) -> None:
        calls = 0

        def loss(self: CausalLM, model: Any, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if tokens is not None and calls > after and batch["input_ids"].numel() > tokens:
                raise RuntimeError(WORDS)
            return real(self, model, batch)

        monkeypatch.setattr(CausalLM, "loss", loss)

    return set_limit


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run" / "model").glob("*.safetensors")}


def tokens_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "plan.json").read_text())["micro_batch_tokens"]
    return found


def test_in_the_first_step_it_is_as_if_the_size_had_been_so(
    tmp_path: Path, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", 200)
    limit(60)
    report = train(asked(tmp_path / "cut"))
    assert report["steps"] == 6 and report["rows_seen"] == 48
    found = tokens_of(tmp_path / "cut")
    assert found["value"] == 40 and found["source"] == "halved: out of memory after step 0 with 80 tokens a forward"
    assert [event["micro_batch_tokens"] for event in events(tmp_path / "cut" / "run", "out_of_memory")] == [80, 40]
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", 40)
    train(asked(tmp_path / "so"))
    assert tokens_of(tmp_path / "so")["value"] == 40
    assert weights(tmp_path / "cut") == weights(tmp_path / "so") != {}


def test_later_it_goes_on_and_a_resumed_run_goes_on_alike(
    tmp_path: Path, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before are saved, so that none of them is made again in other parts."""
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", 200)
    limit(130, after=4)
    train(asked(tmp_path / "whole"))
    (event,) = events(tmp_path / "whole" / "run", "out_of_memory")
    at = event["step"]
    assert 0 < at < 6 and at % 2 == 1, "between two checkpoints"
    assert at in [event["step"] for event in events(tmp_path / "whole" / "run", "checkpoint")]

    def die(operation: str, path: Path) -> None:
        if path.name == "plan.json" and (tmp_path / "cut" / "run" / "checkpoints" / f"step_{at:06d}").is_dir():
            raise KeyboardInterrupt

    limit(130, after=4)
    with pytest.raises(KeyboardInterrupt):
        train(asked(tmp_path / "cut"), on_operation=die)
    assert tokens_of(tmp_path / "cut")["value"] == 160, "cut after the checkpoint and before the plan"
    limit(130)
    train(asked(tmp_path / "cut"))
    assert tokens_of(tmp_path / "cut")["value"] == 80
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut") != {}


def test_nothing_of_the_step_that_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had computed is gone before the steps before it are saved, or saving might not fit either."""
    real, kept, calls = CausalLM.loss, [], 0

    def loss(self: CausalLM, model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5 and not kept:
            activations = batch["input_ids"].float() + 1
            kept.append(weakref.ref(activations))
            raise RuntimeError(WORDS)
        return real(self, model, batch)

    def saved(operation: str, path: Path) -> None:
        if kept and "step_" in str(path):
            alive.append(kept[0]() is not None)

    alive: list[bool] = []
    monkeypatch.setattr(CausalLM, "loss", loss)
    train(asked(tmp_path), on_operation=saved)
    assert alive and not any(alive)


def test_examples_that_are_counted_are_halved_too(tmp_path: Path, limit: Callable[..., None]) -> None:
    from facts import plan_of

    from ftune.out_of_memory import halved

    plan = plan_of(train={"micro_batch_size": 6, "batch_size": 8})
    smaller = halved(plan, 10, 3)
    assert smaller is not None and (smaller.micro_batch_size, smaller.accumulation) == (3, 3)
    one = plan_of(train={"micro_batch_size": 1})
    assert halved(one, 10, 0) is None


@pytest.mark.parametrize(("size", "tokens"), [(4, 60), ("auto", 5)])
def test_what_cannot_be_made_smaller_ends_the_run(
    tmp_path: Path, limit: Callable[..., None], size: Any, tokens: int
) -> None:
    """A size that the recipe names is the recipe's, and a forward holds one example at least."""
    limit(tokens)
    with pytest.raises(MemoryExhausted, match="out of memory with .* The global batch stays the same"):
        train(asked(tmp_path, train={"micro_batch_size": size}))
    limit(None)
    assert train(load_recipe(tmp_path / "recipe.yaml"))["steps"] == 6
