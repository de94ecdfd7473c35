"""AdamW with an 8-bit state: near AdamW, a quarter of its memory, resumed to the bit; refused where it cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import Stops
from facts import facts, plan_of, recipe_of
from laws import events, recipe, train
from safetensors.torch import load_file, save_file

from ftune.errors import ArtifactError, Interrupted, MachineError, RecipeError
from ftune.optim import build_optimizer, check_packages, load_optimizer_state, optimizer_state, set_learning_rate


class Model(torch.nn.Module):
    """Two matrices whose states have codes, and a vector whose state is too small for that."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(96, 64))
        self.other = torch.nn.Parameter(torch.randn(65, 64))
        self.vector = torch.nn.Parameter(torch.randn(64))

    def set_gradients(self, seed: int) -> None:
        for number, parameter in enumerate(self.parameters()):
            generator = torch.Generator().manual_seed(seed * 10 + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def optimizer_of(model: Model, name: str = "adamw_8bit", decay: float = 0.1) -> torch.optim.Optimizer:
    plan = plan_of(train={"optimizer": name, "learning_rate": 0.1, "weight_decay": decay})
    return build_optimizer(plan, recipe_of().method, model)


def advance(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        model.set_gradients(step)
        set_learning_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()


def test_a_restart_from_a_file_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = Model()
    optimizer = optimizer_of(model)
    advance(model, optimizer, range(3))
    save_file(optimizer_state(optimizer, model), tmp_path / "optimizer.safetensors")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    advance(model, optimizer, range(3, 6))

    again = Model()
    again.load_state_dict(weights)
    fresh = optimizer_of(again)
    kept = load_file(tmp_path / "optimizer.safetensors")
    codes = {"state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2", "step"}
    assert {key.partition("/")[2] for key in kept if key.startswith("matrix/")} == codes
    assert kept["matrix/state1"].dtype == torch.uint8 and len(kept["matrix/absmax1"]) == 96 * 64 / 256
    assert kept["vector/state1"].dtype == torch.float32
    load_optimizer_state(fresh, again, kept)
    advance(again, fresh, range(3, 6))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    ours, theirs = optimizer_state(fresh, again), optimizer_state(optimizer, model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_follows_adamw(tmp_path: Path) -> None:
    """The same path within a tenth of what was moved; the small vector to rounding."""
    ends = []
    for name in ("adamw", "adamw_8bit"):
        model = Model()
        optimizer = optimizer_of(model, name)
        advance(model, optimizer, range(10))
        ends.append(model.state_dict())
    start = Model().state_dict()
    for key in ("matrix", "other"):
        moved, apart = (float((a - ends[0][key]).norm()) for a in (start[key], ends[1][key]))
        assert 0 < apart < 0.1 * moved
    assert torch.allclose(ends[0]["vector"], ends[1]["vector"], rtol=1e-5, atol=1e-6)


def test_decay_shrinks_matrices_alone() -> None:
    model, before = Model(), Model().state_dict()
    optimizer = optimizer_of(model, decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    assert torch.allclose(model.matrix, before["matrix"] * (1 - 0.01 * 0.5), rtol=1e-6, atol=0)
    assert torch.equal(model.vector, before["vector"])


@pytest.mark.parametrize("change", ["codes of another type", "no scale", "another shape"])
def test_a_state_that_does_not_fit_is_refused(change: str) -> None:
    model = Model()
    optimizer = optimizer_of(model)
    advance(model, optimizer, range(1))
    kept = optimizer_state(optimizer, model)
    if change == "codes of another type":
        kept["matrix/state1"] = kept["matrix/state1"].float()
    elif change == "no scale":
        del kept["matrix/absmax2"]
    else:
        kept["other/state1"] = kept["other/state1"][:1]
    again = Model()
    with pytest.raises(ArtifactError, match="does not fit the model"):
        load_optimizer_state(optimizer_of(again), again, kept)


def test_the_plan_counts_a_quarter_of_adamws_state() -> None:
    known = facts(trainable_parameters=1_000_000)
    whole, small = (plan_of(known, train={"optimizer": name}) for name in ("adamw", "adamw_8bit"))
    model = Model()
    optimizer = optimizer_of(model)
    advance(model, optimizer, range(1))
    held = sum(v.numel() * v.element_size() for k, v in optimizer.state[model.matrix].items()
               if k not in ("step", "qmap1", "qmap2"))  # fmt: skip
    assert small.memory_bytes["optimizer"] == pytest.approx(1_000_000 * held / model.matrix.numel(), rel=1e-6)
    assert small.memory_bytes["optimizer"] < 0.26 * whole.memory_bytes["optimizer"]
    assert small.checkpoint_bytes < whole.checkpoint_bytes


def test_where_it_cannot_be_it_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = facts(device="cuda", fast_bf16=True)
    assert plan_of(gpu, train={"optimizer": "paged_adamw_8bit"}).optimizer == "paged_adamw_8bit"
    with pytest.raises(RecipeError, match=r"train.optimizer: .* there is no card. Use adamw_8bit"):
        plan_of(train={"optimizer": "paged_adamw_8bit"})
    with pytest.raises(RecipeError, match=r"works on cuda and cpu, and this is a mps device. Use adamw or adafactor"):
        plan_of(facts(device="mps"), train={"optimizer": "adamw_8bit"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert check_packages("adamw") is None
    with pytest.raises(MachineError, match=r"train.optimizer adamw_8bit needs .*pip install bitsandbytes`, or choose"):
        check_packages("adamw_8bit")


def run_of(folder: Path) -> Any:
    section = {"duration": "4 steps", "optimizer": "adamw_8bit", "weight_decay": 0.01}
    return recipe(folder, method="full", train=section, checkpoint={"every": 9})


def test_law_8_a_run_that_is_cut_equals_one_that_is_not(tmp_path: Path) -> None:
    train(run_of(tmp_path / "whole"))
    for step in (1, 3):
        listener = Stops(step)
        with pytest.raises(Interrupted):
            train(run_of(tmp_path / "cut"), listener, listener.flag)
    train(run_of(tmp_path / "cut"))
    whole, cut = (tmp_path / name / "run" for name in ("whole", "cut"))
    for name in ("weights", "optimizer"):
        a, b = (load_file(run / "checkpoints" / "step_000004" / f"{name}.safetensors") for run in (whole, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert any(value.dtype == torch.uint8 for value in a.values())
    losses = [[event["loss"] for event in events(run, "step")] for run in (whole, cut)]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    assert json.loads((cut / "plan.json").read_text())["optimizer"]["value"] == "adamw_8bit"
