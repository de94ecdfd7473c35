"""Schedules in closed form, groups, and an optimizer state that survives a restart to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import bench
from facts import plan_of
from laws import recipe
from matrix import Cell

from ftune.errors import ArtifactError
from ftune.optim import (
    FACTOR,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)

SHAPES = {
    "constant": lambda x: 1.0,
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
}


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize("warmup", [0, 1, 4, 9, 10, 25])
def test_schedules(schedule: str, warmup: int) -> None:
    plan = plan_of(train={"duration": "10 steps", "learning_rate": 0.5, "schedule": schedule, "warmup": warmup})
    warm = min(warmup, 10)
    expected = [0.5 * (k + 1) / warm for k in range(warm)]
    expected += [0.5 * SHAPES[schedule]((k - warm) / (10 - warm)) for k in range(warm, 10)]
    rates = [learning_rate(plan, step) for step in range(10)]
    assert rates == pytest.approx(expected, rel=1e-12, abs=0)
    assert max(rates) == 0.5 and min(rates) > 0, "no step may be wasted on a rate of zero"
    if schedule != "constant" and warm < 10:
        assert learning_rate(plan, 10) == pytest.approx(0, abs=1e-16)


def test_one_step_has_the_whole_rate() -> None:
    for schedule in SHAPES:
        plan = plan_of(train={"duration": "1 steps", "learning_rate": 0.5, "schedule": schedule, "warmup": "3%"})
        assert learning_rate(plan, 0) == 0.5


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_rate_of_every_real_step_is_the_schedules(tmp_path: Path, micro: int) -> None:
    """11 rows in batches of 4: three steps an epoch, whatever the accumulation."""
    section = {"duration": "2 epochs", "schedule": "cosine", "warmup": 2, "micro_batch_size": micro}
    work = bench(recipe(tmp_path, train=section))
    rates = []
    for result in work.steps():
        rates.append(result.learning_rate)
        assert {group["lr"] for group in work.optimizer.param_groups} == {result.learning_rate}
    expected = [5e-4, 1e-3, *(1e-3 * SHAPES["cosine"](k / 4) for k in range(4))]
    assert rates == pytest.approx(expected, rel=1e-12)


class Small(torch.nn.Module):
    """A frozen matrix, a matrix and a vector that learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.matrix = torch.nn.Parameter(torch.randn(3, 4))
        self.vector = torch.nn.Parameter(torch.randn(3))

    def set_gradients(self, seed: int) -> None:
        """Gradients that depend on `seed` only."""
        for number, parameter in enumerate((self.matrix, self.vector)):
            generator = torch.Generator().manual_seed(seed * 10 + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def small(optimizer: str, **train: Any) -> tuple[Small, torch.optim.Optimizer]:
    """A model with an optimizer of that name over it."""
    plan = plan_of(train={"optimizer": optimizer, "learning_rate": 0.1, **train})
    model = Small()
    return model, build_optimizer(plan, recipe_method(), model)


def recipe_method(**block: Any) -> Any:
    """A LoRA block, whose factors depend on names only."""
    from facts import recipe_of

    return recipe_of(method={"name": "lora", **block}).method


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_weight_decay_shrinks_matrices_and_nothing_else(optimizer: str) -> None:
    """Decoupled: without a gradient each step multiplies a matrix by 1 - learning rate x decay, exactly."""
    model, optim = small(optimizer, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        for parameter in (model.matrix, model.vector):
            parameter.grad = torch.zeros_like(parameter)
        set_learning_rate(optim, 0.01)
        optim.step()
    assert torch.allclose(model.matrix, before["matrix"] * (1 - 0.01 * 0.5) ** 3, rtol=1e-6, atol=0)
    assert torch.equal(model.vector, before["vector"])
    assert torch.equal(model.frozen, before["frozen"])


def test_only_what_learns_is_in_a_group() -> None:
    model, optim = small("adamw", weight_decay=0.5)
    held = [parameter for group in optim.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(model.matrix), id(model.vector)}


def test_lora_plus_moves_b_faster_by_its_ratio(tmp_path: Path) -> None:
    """SGD shows it exactly: after one step B is -ratio x rate x gradient, as B began at zero."""
    moved = []
    for ratio in (None, 16.0):
        block = {"name": "lora", "rank": 4, "alpha": 8, "learning_rate_ratio": ratio}
        section = {"optimizer": "sgd", "learning_rate": 0.01, "max_grad_norm": None}
        work = bench(recipe(tmp_path, method=block, train=section))
        factors = {group[FACTOR] for group in work.optimizer.param_groups}
        assert factors == ({1.0} if ratio is None else {1.0, 16.0})
        next(work.steps())
        moved.append({n: p.detach().clone() for n, p in work.model.named_parameters() if ".lora_B." in n})
    assert moved[0] and all(float(tensor.abs().max()) > 0 for tensor in moved[0].values())
    for name, tensor in moved[0].items():
        assert torch.allclose(moved[1][name], 16 * tensor, rtol=1e-5, atol=0)


def test_a_new_head_learns_faster_by_its_ratio(tmp_path: Path) -> None:
    """SGD again: the body moves as it would without, the head 10 times as far, which is the default."""
    moved: list[dict[str, Any]] = []
    for block in ({"head_learning_rate_ratio": 1.0}, {}):
        cell = Cell("full", "sequence_classification", "bert")
        section = {"optimizer": "sgd", "learning_rate": 0.01, "max_grad_norm": None}
        work = bench(cell.recipe(tmp_path, fields=block, train=section))
        before = {name: parameter.detach().clone() for name, parameter in work.model.named_parameters()}
        next(work.steps())
        moved.append({name: p.detach() - before[name] for name, p in work.model.named_parameters()})
    heads = {name for name in moved[0] if name.startswith(("classifier.", "bert.pooler."))}
    assert len(heads) == 4
    for name, tensor in moved[0].items():
        assert torch.allclose(moved[1][name], tensor * (10 if name in heads else 1), rtol=1e-4, atol=1e-7), name


def test_a_pretrained_head_learns_as_the_rest(tmp_path: Path) -> None:
    work = bench(Cell("full", "causal_lm", "llama").recipe(tmp_path))
    assert {group[FACTOR] for group in work.optimizer.param_groups} == {1.0}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_a_restarted_optimizer_goes_on_bit_for_bit(optimizer: str) -> None:
    def advance(model: Small, optim: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            model.set_gradients(step)
            set_learning_rate(optim, 0.01 * (step + 1))
            optim.step()

    model, optim = small(optimizer, weight_decay=0.1)
    advance(model, optim, range(3))
    kept = {key: value.clone() for key, value in optimizer_state(optim, model).items()}  # as a file holds them
    assert {key.partition("/")[0] for key in kept} == {"matrix", "vector"}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    advance(model, optim, range(3, 6))

    again, fresh = small(optimizer, weight_decay=0.1)
    again.load_state_dict(weights)
    load_optimizer_state(fresh, again, kept)
    advance(again, fresh, range(3, 6))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name
    final = optimizer_state(fresh, again)
    assert all(torch.equal(value, final[key]) for key, value in optimizer_state(optim, model).items())


def test_loading_copies_so_that_the_stored_state_stays_as_it_was() -> None:
    model, optim = small("adamw")
    model.set_gradients(0)
    optim.step()
    kept = optimizer_state(optim, model)
    before = {key: value.clone() for key, value in kept.items()}
    again, fresh = small("adamw")
    load_optimizer_state(fresh, again, kept)
    again.set_gradients(1)
    fresh.step()
    assert all(torch.equal(kept[key], value) for key, value in before.items())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_state_that_does_not_fit_is_refused(change: str) -> None:
    model, optim = small("adamw")
    model.set_gradients(0)
    optim.step()
    kept = optimizer_state(optim, model)
    if change == "missing":
        kept = {key: value for key, value in kept.items() if not key.startswith("vector/")}
    else:
        kept["other/exp_avg"] = torch.zeros(3)
    again, fresh = small("adamw")
    with pytest.raises(ArtifactError, match="does not fit the model: .*(vector|other)"):
        load_optimizer_state(fresh, again, kept)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_the_learning_rate_is_obeyed(optimizer: str) -> None:
    """Twice the rate moves a weight twice as far, also a weight that is zero, as LoRA's B is at the start."""
    moved = []
    for rate in (1e-3, 2e-3):
        model, optim = small(optimizer, weight_decay=0.0)
        with torch.no_grad():
            model.matrix.zero_()
        model.set_gradients(0)
        set_learning_rate(optim, rate)
        optim.step()
        moved.append(model.matrix.detach().clone())
    assert torch.allclose(moved[1], 2 * moved[0], rtol=1e-5, atol=0)
    if optimizer != "sgd":
        assert 0.1e-3 < float(moved[0].abs().mean()) < 10e-3, "an adaptive step is about as long as the rate"
