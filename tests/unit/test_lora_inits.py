"""Starts of LoRA: PiSSA and OLoRA split the weights and keep the function, EVA follows the layers' inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from ftune import builtin
from ftune.errors import RecipeError
from ftune.methods.lora import Lora

SPLITS = ("pissa", "olora")
CELLS = [("causal", "llama"), ("causal", "gpt2"), ("seq2seq", "t5"), ("sequence", "bert")]
"""gpt2 stores weights transposed; k_proj of llama has 32 outputs, fewer than the highest rank below."""


def lora(init: str, **fields: Any) -> Lora:
    return Lora(**{"rank": 4, "alpha": 8.0, "init": init, **fields})


def attached(method: Lora, built: Any) -> Any:
    import torch

    torch.manual_seed(3)
    return method.attach(built, builtin.tokenizer())


def layers(built: Any) -> Iterator[tuple[str, Any]]:
    from ftune.methods._lora_start import lora_layers

    yield from lora_layers(built)


def weight_of(module: Any) -> Any:
    """[outputs, inputs] whatever the storage."""
    from transformers.pytorch_utils import Conv1D

    weight = module.weight.detach().clone()
    return weight.T if isinstance(module, Conv1D) else weight


FIELDS: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, {"rslora": True}, {"rank": 48}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3.0}}],
    "gpt2": [{}, {"rslora": True}, {"rank": 48}, {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_fc": 3.0}}],
    "t5": [{}, {"rank": 48}],
    "bert": [{}, {"rslora": True}],
}


@pytest.mark.parametrize("init", SPLITS)
@pytest.mark.parametrize(
    ("head", "family", "fields"), [(*cell, fields) for cell in CELLS for fields in FIELDS[cell[1]]]
)
def test_a_split_keeps_the_function_and_is_saved_as_plain_lora(
    tmp_path: Path, head: str, family: str, init: str, fields: dict[str, Any]
) -> None:
    import torch
    from peft import PeftModel

    method, inputs = lora(init, **fields), tiny.batch(head, family)
    base = tiny.model(head, family)
    before = tiny.logits(base, inputs)
    built = attached(method, base)
    rounding = 1e-6 if not fields else 2e-6  # higher scales and ranks move more of each weight
    assert tiny.distance(tiny.logits(built, inputs), before) < rounding * max(1.0, float(before.abs().max()))

    tiny.learn(built, inputs, rate=1e-3)
    trained = tiny.logits(built, inputs)
    assert tiny.distance(trained, before) > 1e-3
    method.save(built, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 2 * method.rank and config["init_lora_weights"] is True
    near = 1e-5 * max(1.0, float(trained.abs().max()))
    loaded = method.load(tiny.model(head, family, seed=9), tmp_path)
    assert tiny.distance(tiny.logits(loaded, inputs), trained) < near
    plain = PeftModel.from_pretrained(tiny.model(head, family, seed=9), str(tmp_path))
    assert torch.equal(tiny.logits(plain, inputs), tiny.logits(loaded, inputs))
    assert tiny.distance(tiny.logits(method.merge(loaded), inputs), trained) < near


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("init", SPLITS)
def test_the_parts_are_those_of_the_papers(family: str, init: str) -> None:
    import torch

    base = tiny.model("causal", family)
    original = {name: weight_of(module) for name, module in Lora()._matched(base).items()}
    built = attached(lora(init), base)
    for name, layer in layers(built):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = original[name.removeprefix("base_model.model.")]
        update = 2.0 * b @ a  # alpha / rank = 2
        assert tiny.distance(weight_of(layer.get_base_layer()) + update, weight) < 1e-6
        if init == "olora":
            assert tiny.distance(b.T @ b, torch.eye(4)) < 1e-5
            assert tiny.distance(b.T @ weight, a) < 1e-4, "B is Q_r and A is R_r = Q_r^T W"
        else:
            assert tiny.distance(torch.linalg.svdvals(update)[:4], torch.linalg.svdvals(weight)[:4]) < 1e-4


def test_ranks_above_the_size_of_a_layer_start_as_plain_lora() -> None:
    built = attached(lora("olora", rank=48), tiny.model("causal", "llama"))
    narrow = next(layer for name, layer in layers(built) if name.endswith("k_proj"))
    a, b = narrow.lora_A["default"].weight, narrow.lora_B["default"].weight
    assert b.shape == (32, 48) and (b[:, 32:] == 0).all() and (a[32:] != 0).all()


def test_splits_want_fp32_and_no_dora() -> None:
    for init in SPLITS:
        assert "exact in fp32 only" in str(lora(init).storage_constraint())
        assert [field for field, _ in lora(init, dora=True).problems()] == ["dora"]
        assert lora(init).skeleton().init == "default"  # type: ignore[attr-defined]
    assert lora("eva").storage_constraint() is None and lora("eva", dora=True).problems() == []


# ------------------------------------------------------------------------------------------------------------ EVA


def batches(head: str = "causal", family: str = "llama", count: int = 3) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        inputs = tiny.batch(head, family)
        inputs["input_ids"] = torch.randint(0, 250, inputs["input_ids"].shape, generator=generator)
        found.append(inputs)
    return found


def forward(built: Any, inputs: dict[str, Any]) -> object:
    return built(**inputs).logits


@pytest.mark.parametrize(
    ("head", "family"), [("causal", "llama"), ("causal", "gpt2"), ("sequence", "qwen3"), ("token", "bert")]
)
def test_eva_keeps_the_function_points_at_the_inputs_and_repeats(tmp_path: Path, head: str, family: str) -> None:
    import torch

    method, inputs = lora("eva"), batches(head, family, 1)[0]
    found = []
    for _ in range(2):
        base = tiny.model(head, family)
        before = tiny.logits(base, inputs)
        built = attached(method, base)
        shapes = {name: p.shape for name, p in built.named_parameters()}
        seen = watch(built)
        method.prepare(built, [inputs], forward)
        assert torch.equal(tiny.logits(built, inputs), before)
        assert {name: p.shape for name, p in built.named_parameters()} == shapes
        found.append({name: layer.lora_A["default"].weight.detach().clone() for name, layer in layers(built)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    inside = inputs["attention_mask"].bool()
    for name, a in found[0].items():
        states = seen[name][inside]
        states = states - states.mean(dim=0)
        most = torch.linalg.svdvals(states)[:4].square().sum()
        assert tiny.distance(a @ a.T, torch.eye(4)) < 1e-5
        assert (states @ a.T).square().sum() > 0.99 * most, f"{name}: no four directions hold more of the variance"


def watch(built: Any) -> dict[str, Any]:
    """Fills with what each layer is given last."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda layer, given: seen.update({name: given[0].detach()})

    for name, layer in layers(built):
        layer.register_forward_pre_hook(keep(name))
    return seen


def test_eva_trains_and_its_artefact_is_plain_lora(tmp_path: Path) -> None:
    import torch

    method, inputs = lora("eva"), tiny.batch("causal", "llama")
    built = attached(method, tiny.model("causal", "llama"))
    method.prepare(built, batches(), forward)
    tiny.learn(built, inputs)
    method.save(built, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["init_lora_weights"]) == (4, {}, True)
    loaded = method.load(tiny.model("causal", "llama"), tmp_path)
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(built, inputs))


def test_eva_stops_reading_when_its_directions_have_settled() -> None:
    read = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            read.append(1)
            yield batches(count=1)[0]

    built = attached(lora("eva"), tiny.model("causal", "llama")).train()
    lora("eva").prepare(built, endless(), forward)
    assert len(read) == 2, "the same batch twice gives the same directions"
    assert built.training and not any(layer._forward_pre_hooks for _, layer in layers(built))


def test_eva_says_why_it_cannot() -> None:
    with pytest.raises(RecipeError, match="method.init: eva reads one stack"):
        attached(lora("eva"), tiny.model("seq2seq", "t5"))
    wide = lora("eva", rank=32)
    with pytest.raises(RecipeError, match="method.init: eva needs a batch with twice as many tokens as the rank"):
        wide.prepare(attached(wide, tiny.model("causal", "llama")), batches(), forward)


def test_other_starts_read_nothing() -> None:
    def never() -> Iterator[dict[str, Any]]:
        raise AssertionError("read")
        yield {}

    built = attached(lora("default"), tiny.model("causal", "llama"))
    lora("default").prepare(built, never(), forward)
