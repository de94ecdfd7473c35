"""Law 13: twenty steps equal a plain PyTorch loop, and transformers with peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench, bench
from laws import BLOCKS, DEEP, ROWS, recipe, start_model
from plain_loop import PlainLora, Row, plain_loop

from ftune.data.order import permutation
from ftune.load import Loaded

STEPS = 20
BATCH = 8
METHODS = DEEP


def asked(
    folder: Path, method: str, family: str, accumulation: int, warmup: int = 3, packing: bool | str = False
) -> Loaded:
    """Eleven uneven rows in batches of eight: every second window holds three."""
    return recipe(
        folder,
        rows=ROWS,
        model=f"builtin:tiny-{family}",
        method={"name": method, **BLOCKS.get(method, {})},
        train={"duration": f"{STEPS} steps", "batch_size": BATCH, "micro_batch_size": BATCH // accumulation,
               "learning_rate": 1e-3, "warmup": warmup, "schedule": "cosine", "weight_decay": 0.1,
               "max_grad_norm": 1.0},
        data={"packing": packing},
        seed=3,
    )  # fmt: skip


def windows(work: Bench) -> list[list[Row]]:
    """Rows of each step, by the published rule: window s of an epoch is s*B..(s+1)*B-1 of its permutation."""
    rows = [
        (torch.from_numpy(example.ids).long(), torch.from_numpy(example.is_target))
        for example in work.prepared.dataset.train.examples
    ]
    assert permutation(3, 0, len(rows)).tolist() != permutation(3, 1, len(rows)).tolist()
    epochs = [[rows[i] for i in permutation(3, epoch, len(rows))] for epoch in range(STEPS)]
    return [epoch[start : start + BATCH] for epoch in epochs for start in range(0, len(rows), BATCH)][:STEPS]


def by_ftune(work: Bench) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of what learned."""
    losses = [result.loss for result in work.steps()]
    return losses, seen({n: p for n, p in work.model.named_parameters() if p.requires_grad})


def seen(learning: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Final weights without GPT-2's key biases: softmax cannot see them, so Adam makes steps of rounding noise."""
    whole = {name: parameter.detach() for name, parameter in learning.items()}
    return {n: torch.cat([p[:64], p[128:]]) if n.endswith("c_attn.bias") else p for n, p in whole.items()}


def assert_same(ours: tuple[list[float], dict[str, Any]], theirs: tuple[list[float], dict[str, Any]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6, abs=0)
    assert ours[0][-1] < 0.9 * ours[0][0]
    assert ours[1].keys() == theirs[1].keys()
    worst = {name: float((ours[1][name] - theirs[1][name]).abs().max()) for name in ours[1]}
    assert max(worst.values()) <= 1e-5, worst


def plain_lora(work: Bench, model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Put our own LoRA, with ftune's first A and B, beside the layers of a plain model."""
    start = {n: p for n, p in work.model.named_parameters() if p.requires_grad}
    learning = {}
    for name in [n for n in start if ".lora_A." in n]:
        path = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
        parent, _, leaf = path.rpartition(".")
        b = start[name.replace("lora_A", "lora_B")]
        lora = PlainLora(model.get_submodule(path), start[name].detach(), b.detach(), scale=8 / 4)
        setattr(model.get_submodule(parent), leaf, lora)
        learning |= {name: lora.a, name.replace("lora_A", "lora_B"): lora.b}
    assert len(learning) == len(start) >= 16
    return learning


@pytest.mark.parametrize("accumulation", [1, 2, 8])
@pytest.mark.parametrize("method", METHODS)
def test_law_13_a_plain_loop(tmp_path: Path, method: str, accumulation: int) -> None:
    loaded = asked(tmp_path, method, "llama", accumulation)
    work = bench(loaded)
    assert work.plan.accumulation == accumulation
    model = start_model(loaded)
    learning = dict(model.requires_grad_(True).named_parameters()) if method == "full" else plain_lora(work, model)
    losses = plain_loop(model, learning, windows(work), peak=1e-3, warmup=3, decay=0.1, max_norm=1.0)
    assert_same(by_ftune(work), (losses, seen(learning)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3"])
def test_law_13_a_plain_loop_on_tied_models(tmp_path: Path, method: str, family: str) -> None:
    loaded = asked(tmp_path, method, family, 2, packing=True)
    work = bench(loaded)
    assert work.plan.packing
    model = start_model(loaded)
    learning = dict(model.requires_grad_(True).named_parameters()) if method == "full" else plain_lora(work, model)
    losses = plain_loop(model, learning, windows(work), peak=1e-3, warmup=3, decay=0.1, max_norm=1.0)
    assert_same(by_ftune(work), (losses, seen(learning)))


@pytest.mark.parametrize("method", METHODS)
def test_law_13_transformers_and_peft(tmp_path: Path, method: str) -> None:
    """Their loss (`labels=`), their LoRA, torch's AdamW and their schedule, on whole padded windows."""
    from peft import LoraConfig, get_peft_model
    from transformers import get_cosine_schedule_with_warmup

    loaded = asked(tmp_path, method, "llama", 1, warmup=0)
    work = bench(loaded)
    model = start_model(loaded)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        model.load_state_dict({n: p for n, p in work.model.named_parameters() if p.requires_grad}, strict=False)
    else:
        model.requires_grad_(True)
    model.train()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in learning.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in learning.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    losses = []
    for window in windows(work):
        width = max(len(ids) for ids, _ in window)
        ids = torch.full((len(window), width), 256)
        labels = torch.full((len(window), width), -100)
        mask = torch.zeros((len(window), width), dtype=torch.int64)
        for row, (tokens, is_target) in enumerate(window):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, : len(tokens)] = torch.where(is_target, tokens, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert_same(by_ftune(work), (losses, seen(learning)))
