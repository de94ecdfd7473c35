"""When a run ends before its last step, and which step it then calls its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from facts import plan_of
from laws import recipe, train

from ftune.errors import MemoryExhausted, exit_code_of
from ftune.objectives.causal_lm import CausalLM
from ftune.state import TrainState
from ftune.stopping import note_evaluation


def evaluations(losses: list[float], **sections: Any) -> TrainState:
    """The state after these evaluations, one a step."""
    plan, state = plan_of(**sections), TrainState()
    for state.step, loss in enumerate(losses, start=1):
        note_evaluation(state, loss, plan)
    return state


def test_a_slow_steady_fall_is_improvement() -> None:
    """Each evaluation gains less than min_delta, but three together gain more: the counter starts anew."""
    falling = [1.0 - 0.02 * step for step in range(9)]
    stopping = {"early_stopping": {"patience": 5, "min_delta": 0.05}}
    counts = [evaluations(falling[: n + 1], train=stopping).evaluations_without_gain for n in range(len(falling))]
    assert counts == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    state = evaluations(falling, train=stopping)
    assert (state.best_step, state.best_loss) == (9, falling[-1]), "the best is the smallest, by however little"


def test_a_plateau_is_no_improvement() -> None:
    assert (
        evaluations(
            [1.0, 0.99, 0.98, 0.99, 0.97], train={"early_stopping": {"min_delta": 0.05}}
        ).evaluations_without_gain
        == 4
    )


def test_without_a_best_none_is_remembered() -> None:
    """So that switching `checkpoint.best` on later does not name a checkpoint that was pruned."""
    state = evaluations([1.0, 0.5, 0.9], checkpoint={"best": None})
    assert state.best_step is None and state.best_loss is None


def test_best_may_be_switched_on_later(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "data": {"eval": "20%"}, "eval": {"every": 1}, "checkpoint": {"every": 1, "keep": 1, "best": None},
        "train": {"learning_rate": 1.0},
    }  # fmt: skip
    train(recipe(tmp_path, **sections))
    sections["checkpoint"]["best"] = "eval_loss"
    sections["train"]["duration"] = "7 steps"
    report = train(recipe(tmp_path, **sections))
    assert report["steps"] == 7 and report["model_step"] in (6, 7)


@pytest.mark.parametrize(
    "words",
    ["[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"],
)
def test_out_of_memory_on_a_cpu_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def explode(self: CausalLM, model: Any, batch: Any) -> Any:
        raise RuntimeError(words)

    monkeypatch.setattr(CausalLM, "loss", explode)
    with pytest.raises(MemoryExhausted, match="train.micro_batch_size: 1") as caught:
        train(recipe(tmp_path))
    assert exit_code_of(caught.value) == 9


def test_other_runtime_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: CausalLM, model: Any, batch: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(CausalLM, "loss", explode)
    with pytest.raises(RuntimeError, match="shapes"):
        train(recipe(tmp_path))
