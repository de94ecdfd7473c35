"""Law 8 at length: 40 steps over three epochs, cut after each of them, end with the bits of a run that was not cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuts import assert_same_run, interrupt
from laws import Shared, train
from matrix import ROWS, Cell

from ftune import methods
from ftune.load import Loaded

STEPS = 40
OBJECTIVES = {"feature_based": "sequence_classification"}
"""causal_lm for the others."""
SHAPES = [
    {"schedule": schedule, "precision": precision}
    for schedule in ("cosine", "linear", "constant")
    for precision in ("fp32", "bf16")
]


def cell_of(method: str) -> Cell:
    return Cell(method, OBJECTIVES.get(method, "causal_lm"), "llama")


def forty(folder: Path, method: str, shape: dict[str, str]) -> Loaded:
    """53 rows in batches of 4 are 14 steps an epoch, the last of one row: 40 steps end inside the third epoch."""
    cell = cell_of(method)
    few = ROWS[cell.format]
    return cell.recipe(
        folder,
        rows=[few[i % len(few)] for i in range(53)],
        train={"duration": f"{STEPS} steps", "warmup": 3, **shape},
        eval={"every": 13, "max_rows": 5},
        checkpoint={"every": 7, "keep": 2, "best": "eval_loss"},
    )


def uninterrupted(shared: Shared, method: str, shape: dict[str, str]) -> Path:
    def fill(folder: Path) -> None:
        train(forty(folder, method, shape))

    return shared.make("-".join(("forty", method, *shape.values())), fill) / "run"


def cut_at(folder: Path, shared: Shared, method: str, shape: dict[str, str], step: int) -> None:
    loaded = forty(folder, method, shape)
    interrupt(loaded, step)
    train(loaded)
    assert_same_run(folder / "run", uninterrupted(shared, method, shape), STEPS)


@pytest.mark.crash
@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("method", methods.names())
def test_cut_after_every_step(tmp_path: Path, shared: Shared, method: str, step: int) -> None:
    cut_at(tmp_path, shared, method, SHAPES[0], step)


@pytest.mark.crash
@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: "-".join(shape.values()))
def test_cut_after_every_step_under_every_schedule(
    tmp_path: Path, shared: Shared, shape: dict[str, str], step: int
) -> None:
    cut_at(tmp_path, shared, "lora", shape, step)
