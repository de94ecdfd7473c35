"""`train.compile`: the same numbers from fewer kernels, only where asked or worth it; resumed, the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cuts import assert_same_run
from facts import FACTS, facts, plan_of, recipe_of
from laws import ftune
from matrix import Cell, fast_cells
from test_laws_resume import STEPS, twelve
from test_matrix import STILL

from ftune.compiled import missing_compiler
from ftune.decide import make_plan
from ftune.errors import MachineError
from ftune.plan import Plan

TOLERANCE = 2e-6
"""Of a gradient's largest number, and of a loss: the law of parity in fp32."""
KEPT = {"checkpoint": {"every": 1, "keep": 12}}


class Both(NamedTuple):
    """Three steps of a cell.

    Args:
        losses: of each step.
        gradients: of each step, by name.
        nats: of each row, after the steps.
        names: of the model's weights.
        graphs: of the compiler, after each step.
    """

    losses: list[float]
    gradients: list[dict[str, Any]]
    nats: Any
    names: list[str]
    graphs: list[int]


def three_steps(cell: Cell, folder: Path, *, compiled: bool, **train: Any) -> Both:
    import torch._dynamo as dynamo
    from bench import bench

    from ftune.begin import body_of
    from ftune.compiled import compile_blocks

    dynamo.reset()
    dynamo.utils.counters.clear()
    work = bench(cell.recipe(folder, train={"compile": compiled, "micro_batch_size": "auto", **train}))
    assert work.plan.compile is compiled
    if compiled:
        compile_blocks(body_of(work.model), folder / "kernels")
    losses, gradients, graphs = [], [], []
    steps = work.steps()
    for _ in range(3):  # of four, four and three rows
        losses.append(next(steps).loss)
        gradients.append(work.gradients())
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
    return Both(losses, gradients, work.row_losses(batch_size=3).nats, list(work.model.state_dict()), graphs)


def assert_equal_but_for_rounding(ours: Both, plain: Both) -> None:
    assert ours.names == plain.names
    assert ours.losses == pytest.approx(plain.losses, rel=TOLERANCE)
    for ours_of, plain_of in zip(ours.gradients, plain.gradients, strict=True):
        assert ours_of.keys() == plain_of.keys()
        moving = [name for name in plain_of if not STILL.search(name)]
        assert moving
        largest = {name: float(plain_of[name].abs().max()) for name in moving}
        off = {name: float((ours_of[name] - plain_of[name]).abs().max()) for name in moving}
        bounds = {name: TOLERANCE * max(largest[name], 1e-3 * max(largest.values())) for name in moving}
        assert {name: off[name] / bounds[name] for name in moving if off[name] > bounds[name]} == {}


def test_rows_end_to_end_learn_the_same_and_are_scored_by_the_model_as_it_is(tmp_path: Path) -> None:
    """Their lengths, others in each step, are not compiled in. With a rate of zero both models stay as they were."""
    cell = Cell("lora", "causal_lm", "llama")
    ours, plain = (three_steps(cell, tmp_path / str(on), compiled=on, learning_rate=0) for on in (True, False))
    assert_equal_but_for_rounding(ours, plain)
    assert ours.nats.tolist() == plain.nats.tolist()
    assert 0 < ours.graphs[0] == ours.graphs[1] == ours.graphs[2] and plain.graphs == [0, 0, 0]
    assert any((tmp_path / "True" / "kernels").iterdir())


@pytest.mark.e2e
@pytest.mark.parametrize("cell", [cell for cell in fast_cells() if cell.method != "feature_based"], ids=str)
def test_every_method_and_objective_learns_the_same(tmp_path: Path, cell: Cell) -> None:
    ours, plain = (three_steps(cell, tmp_path / str(on), compiled=on) for on in (True, False))
    assert_equal_but_for_rounding(ours, plain)
    assert ours.graphs[0] > 0


@pytest.mark.e2e
def test_activations_may_be_computed_again(tmp_path: Path) -> None:
    cell = Cell("full", "causal_lm", "qwen3")
    again = {"activation_checkpointing": True}
    ours = three_steps(cell, tmp_path / "ours", compiled=True, **again)
    assert_equal_but_for_rounding(ours, three_steps(cell, tmp_path / "plain", compiled=False))


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["full", "lora"])
def test_law_8_killed_and_compiled_anew(tmp_path: Path, shared: Any, method: str) -> None:
    """The second start finds no kernels, and sees other rows first than the run that nothing disturbed."""
    every = {"duration": "3 epochs", "warmup": 2, "schedule": "cosine", "learning_rate": 3e-3, "compile": True}
    whole, cut = (twelve(tmp_path / n, shared, method, "llama", train=every, **KEPT) for n in ("whole", "cut"))
    done = ftune("train", whole.path, seconds=400, FTUNE_CACHE=str(tmp_path / "first"))
    assert done.returncode == 0, done.stderr[-2000:]
    killed = ftune(
        "train", cut.path, seconds=400, FTUNE_CACHE=str(tmp_path / "second"), FTUNE_TESTING="1", FTUNE_FAULT="60:KILL"
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    there = sorted(path.name for path in (tmp_path / "cut" / "run" / "checkpoints").glob("step_*"))
    assert there and "step_000012" not in there
    done = ftune("train", cut.path, seconds=400, FTUNE_CACHE=str(tmp_path / "third"))
    assert done.returncode == 0 and "goes on after step" in done.stdout + done.stderr, done.stderr[-2000:]
    assert Plan.of_run(tmp_path / "cut" / "run").compile
    assert_same_run(tmp_path / "cut" / "run", tmp_path / "whole" / "run", STEPS)


def test_what_the_machine_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_compiler({}, "cpu") == "there is no C++ compiler (g++ or clang++)"
    tool = tmp_path / "my-cc"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert missing_compiler({"CXX": "my-cc"}, "cpu") is None
    assert missing_compiler({"CXX": "gone"}, "cpu") == "there is no C++ compiler gone (CXX)"
    assert "never tried" in str(missing_compiler({"CXX": "my-cc"}, "mps"))


def test_a_compiler_that_fails_is_one_message(tmp_path: Path) -> None:
    loaded = Cell("lora", "causal_lm", "llama").recipe(tmp_path, train={"compile": True})
    done = ftune("train", loaded.path, CXX="false", FTUNE_CACHE=str(tmp_path / "none"))
    assert done.returncode == 10, done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert "train.compile: compiling failed: " in said and "Set train.compile to false." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("asked", "changes", "expected", "why"),
    [
        (False, {}, False, "recipe: train.compile"),
        (True, {}, True, "recipe: train.compile"),
        ("auto", {}, False, "less than 3e+14"),
        ("auto", {"tokens": 10**10}, True, "at least 3e+14"),
        ("auto", {"tokens": 10**10, "compile_refusal": "there is none"}, False, "auto: there is none"),
        ("auto", {"tokens": 10**10, "device": "cuda"}, False, "was not measured"),
    ],
)
def test_the_plan_says_whether_and_why(asked: Any, changes: dict[str, Any], expected: bool, why: str) -> None:
    plan = plan_of(facts(**changes), train={"compile": asked})
    assert plan.compile is expected and why in plan.sources["compile"]


def test_a_run_that_insists_is_refused_where_nothing_can_compile() -> None:
    with pytest.raises(MachineError, match=r"train.compile: no compiler. Install it, or set train.compile to false"):
        plan_of(facts(compile_refusal="no compiler"), train={"compile": True})


def test_a_run_goes_on_as_it_began_unless_the_recipe_says_otherwise() -> None:
    began = plan_of(facts(tokens=10**10), train={"compile": "auto"})
    assert began.compile
    for asked, expected in (("auto", True), (False, False)):
        recipe = recipe_of(train={"compile": asked})
        now = make_plan(recipe, FACTS)
        assert not now.compile and now.continuing(began, recipe).compile is expected
