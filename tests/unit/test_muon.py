"""Muon: which weights it moves, how far, and that it is torch's own beside torch's AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench, bench
from laws import recipe

from ftune.muon import hidden_matrices
from ftune.optim import load_optimizer_state, optimizer_state

TURNS = [{"text": "good words", "label": "good"}, {"text": "bad words", "label": "bad"}] * 6


def with_muon(folder: Path, model: str = "builtin:tiny-llama", method: Any = "full", **sections: Any) -> Bench:
    train = {"optimizer": "muon", "learning_rate": 0.01, "weight_decay": 0.1}
    return bench(recipe(folder, model=model, method=method, train=train, **sections))


def moved_by_muon(work: Bench) -> set[str]:
    """Names of what has Muon's state after a step; the rest must have AdamW's."""
    next(work.steps())
    states = {name: work.optimizer.state[p].keys() for name, p in work.model.named_parameters() if p.requires_grad}
    assert all(keys in ({"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}) for keys in states.values())
    return {name for name, keys in states.items() if "momentum_buffer" in keys}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_matrices_of_hidden_layers_and_nothing_else(tmp_path: Path, family: str) -> None:
    work = with_muon(tmp_path, f"builtin:tiny-{family}")
    learning = {name: p for name, p in work.model.named_parameters() if p.requires_grad}
    apart = ("embed", "wte", "wpe", "lm_head")
    expected = {name for name, p in learning.items() if p.ndim == 2 and not any(word in name for word in apart)}
    assert moved_by_muon(work) == expected and 0 < len(expected) < len(learning)


def test_heads_of_classifiers_and_poolers_are_apart(tmp_path: Path) -> None:
    data = {"train": "rows.jsonl", "format": "classification", "template": None}
    work = with_muon(tmp_path, "builtin:tiny-bert", objective="sequence_classification", data=data, rows=TURNS)
    moved = moved_by_muon(work)
    assert any(".query." in name for name in moved)
    assert not any(word in name for name in moved for word in ("classifier", "pooler", "embeddings", "bias", "Norm"))


def test_lora_matrices_are_moved_by_it_and_prompts_are_not(tmp_path: Path) -> None:
    lora = moved_by_muon(with_muon(tmp_path / "lora", method={"name": "lora", "rank": 2}))
    assert lora and all(".lora_A." in name or ".lora_B." in name for name in lora)
    assert moved_by_muon(with_muon(tmp_path / "prompt", method={"name": "prompt", "length": 4})) == set()


def test_its_steps_are_those_of_torchs_muon_and_adamw(tmp_path: Path) -> None:
    """Bit for bit over three steps, with the two built apart by hand."""
    work, other = (with_muon(tmp_path / name) for name in ("whole", "apart"))
    chosen = hidden_matrices(other.model)
    matrices = [p for p in other.model.parameters() if id(p) in chosen]
    embeddings = [p for p in other.model.parameters() if id(p) not in chosen and p.ndim == 2]
    vectors = [p for p in other.model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups: list[dict[str, Any]] = [{"params": embeddings, "weight_decay": 0.1}, {"params": vectors}]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0, fused=True)
    steps = work.steps()
    for _ in range(3):
        next(steps)
        for mine, its in zip(work.model.parameters(), other.model.parameters(), strict=True):
            assert mine.grad is not None
            its.grad = mine.grad.clone()
        muon.step()
        adamw.step()
        for (name, mine), its in zip(work.model.named_parameters(), other.model.parameters(), strict=True):
            assert torch.equal(mine, its), name


def test_every_direction_of_a_step_is_as_long_as_one_of_adamw(tmp_path: Path) -> None:
    """Singular values of a step are 0.2 times the rate times the root of the longer side (Liu et al. 2025, eq. 4).

    Five rounds of Newton and Schulz bring them to between 0.6 and 1.3 of that, but for directions without a gradient.
    """
    work = bench(recipe(tmp_path, method="full", train={"optimizer": "muon", "learning_rate": 0.01}))
    before = {name: p.detach().clone() for name, p in work.model.named_parameters()}
    for name in moved_by_muon(work):
        step = work.model.get_parameter(name).detach() - before[name]
        singular = torch.linalg.svdvals(step) / (0.2 * 0.01 * max(step.shape) ** 0.5)
        assert float(singular.max()) < 1.3 and float((singular > 0.6).float().mean()) > 0.1, name


def test_a_restarted_one_goes_on_bit_for_bit(tmp_path: Path) -> None:
    work, again = (with_muon(tmp_path / name) for name in ("whole", "cut"))
    steps = work.steps()
    next(steps)
    weights = {name: p.detach().clone() for name, p in work.model.named_parameters()}
    kept = {key: value.clone() for key, value in optimizer_state(work.optimizer, work.model).items()}
    next(steps)
    again.model.load_state_dict(weights, strict=False)
    load_optimizer_state(again.optimizer, again.model, kept)
    next(again.steps(first=1))
    for (name, mine), its in zip(work.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, its), name


def test_prompts_learn_as_under_adamw(tmp_path: Path) -> None:
    """There is no matrix for it to move, and nothing else changes."""
    ends = []
    for optimizer in ("muon", "adamw"):
        method = {"name": "prompt", "length": 4}
        work = bench(recipe(tmp_path / optimizer, method=method, train={"optimizer": optimizer, "weight_decay": 0.1}))
        next(work.steps())
        ends.append([p.detach().clone() for p in work.model.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
