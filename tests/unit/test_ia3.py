"""`ia3`: vectors of ones that rescale keys, values and MLP activations, on every head and family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from ftune import builtin, methods, targets
from ftune.errors import ArtifactError, RecipeError
from ftune.methods.ia3 import Ia3

OUTPUTS = {
    "llama": {"k_proj", "v_proj"}, "qwen3": {"k_proj", "v_proj"}, "gemma3": {"k_proj", "v_proj"},
    "gpt2": {"attn.c_attn"}, "bert": {"self.key", "self.value"}, "t5": {"k", "v"}, "bart": {"k_proj", "v_proj"},
}  # fmt: skip
INPUTS = {
    "llama": "mlp.down_proj", "qwen3": "mlp.down_proj", "gemma3": "mlp.down_proj", "gpt2": "mlp.c_proj",
    "bert": "output.dense", "t5": "DenseReluDense.wo", "bart": "fc2",
}  # fmt: skip


def attached(method: Ia3, built: Any) -> Any:
    return method.attach(built, builtin.tokenizer())


def learning(built: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in built.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("head", "family"), tiny.CELLS)
def test_ia3_learns_is_saved_and_is_merged(tmp_path: Path, head: str, family: str) -> None:
    import torch
    import transformers
    from peft import PeftModel

    method, inputs = Ia3(), tiny.batch(head, family)
    base = tiny.model(head, family)
    shapes, heads = method.target_shapes(base), targets.head_modules(base)
    of_the_head = sum(p.numel() for name in heads for p in base.get_submodule(name).parameters())
    before = tiny.logits(base, inputs)
    built = attached(method, base)
    assert torch.equal(tiny.logits(built, inputs), before)
    frozen = {name: p.detach().clone() for name, p in built.named_parameters() if not p.requires_grad}
    start = learning(built)
    assert sum(p.numel() for p in start.values()) == method.trainable_parameters(shapes) + of_the_head
    assert all((value == 1).all() for name, value in start.items() if "ia3_l" in name)

    tiny.learn(built, inputs, rate=3e-2)
    after = dict(built.named_parameters())
    assert [name for name, value in start.items() if torch.equal(after[name], value)] == []
    assert [name for name, value in frozen.items() if not torch.equal(after[name], value)] == []
    trained = tiny.logits(built, inputs)
    assert tiny.distance(trained, before) > 1e-3

    method.save(built, tmp_path / "adapter")
    loaded = method.load(tiny.model(head, family, seed=9), tmp_path / "adapter")
    assert torch.equal(tiny.logits(loaded, inputs), trained)
    plain = PeftModel.from_pretrained(tiny.model(head, family, seed=9), str(tmp_path / "adapter"))
    assert torch.equal(tiny.logits(plain, inputs), trained)
    merged = method.merge(loaded)
    assert tiny.distance(tiny.logits(merged, inputs), trained) < 1e-5 * max(1.0, float(trained.abs().max()))
    merged.save_pretrained(tmp_path / "merged")
    read = getattr(transformers, tiny.HEADS[head]).from_pretrained(tmp_path / "merged")
    assert torch.equal(tiny.logits(read, inputs), tiny.logits(merged, inputs))


@pytest.mark.parametrize("family", tiny.FAMILIES["sequence"])
def test_auto_takes_keys_values_and_the_end_of_each_mlp(family: str) -> None:
    head = "seq2seq" if family in tiny.FAMILIES["seq2seq"] else "sequence"
    outputs, inputs = Ia3()._matched(tiny.model(head, family))
    layers = {"bart": 4, "t5": 4}.get(family, 2)
    mixers = {"bart": 6, "t5": 6}.get(family, 2)  # the decoder's layers attend twice
    assert all(any(targets.ends_in(name, end) for end in OUTPUTS[family]) for name in outputs)
    assert len(outputs) == mixers * len(OUTPUTS[family])
    assert all(targets.ends_in(name, INPUTS[family]) and "attention" not in name for name in inputs)
    assert len(inputs) == layers


def test_gpt2_counts_all_outputs_of_its_one_layer() -> None:
    base = tiny.model("causal", "gpt2")
    assert Ia3().trainable_parameters(Ia3().target_shapes(base)) == 2 * (3 * 64 + 4 * 64)


def test_layers_can_be_named(tmp_path: Path) -> None:
    import torch

    method = Ia3(target_modules=["v_proj"], feedforward_modules=["o_proj"])
    assert method.problems() == []
    base = tiny.model("causal", "llama")
    shapes = method.target_shapes(base)
    built, inputs = attached(method, base), tiny.batch("causal", "llama")
    vectors = {name: tuple(p.shape) for name, p in learning(built).items()}
    assert len(vectors) == 4
    assert all(shape == ((32, 1) if "v_proj" in name else (1, 64)) for name, shape in vectors.items())
    assert method.trainable_parameters(shapes) == 2 * (32 + 64)
    tiny.learn(built, inputs)
    method.save(built, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["feedforward_modules"] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    loaded = method.load(tiny.model("causal", "llama"), tmp_path)
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(built, inputs))


def test_many_layers_are_read_back(tmp_path: Path) -> None:
    """peft shortens lists of twenty targets and more, and refuses what it then reads."""
    import torch

    method, inputs = Ia3(), tiny.batch("causal", "gpt2")
    built = attached(method, tiny.model("causal", "gpt2", n_layer=12))
    tiny.learn(built, inputs)
    method.save(built, tmp_path)
    loaded = method.load(tiny.model("causal", "gpt2", n_layer=12), tmp_path)
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(built, inputs))


def test_what_cannot_be_is_refused() -> None:
    llama = tiny.model("causal", "llama")
    with pytest.raises(RecipeError, match="method.target_modules: 'v_prj' matches no linear .* Did you mean 'v_proj'"):
        attached(Ia3(target_modules=["v_prj"]), llama)
    with pytest.raises(RecipeError, match="would be rescaled on both sides"):
        attached(Ia3(feedforward_modules=["v_proj"]), llama)
    with pytest.raises(RecipeError, match="method.target_modules: 'classifier' is part of the head"):
        attached(Ia3(target_modules=["classifier"]), tiny.model("sequence", "bert"))
    assert Ia3(target_modules=[], feedforward_modules=[]).problems()[0][0] == "target_modules"
    both = Ia3(target_modules=["v_proj"], feedforward_modules=["v_proj"])
    assert both.problems()[0][0] == "feedforward_modules"


def test_an_unknown_architecture_asks_for_names() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 272}
    torch.manual_seed(0)
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).requires_grad_(False)
    with pytest.raises(RecipeError, match="method.target_modules: auto .* mamba .*Name the layers yourself"):
        attached(Ia3(), mamba)


def test_bf16_bodies_reload_bit_identical(tmp_path: Path) -> None:
    import torch

    for head, family in (("causal", "llama"), ("sequence", "bert"), ("seq2seq", "t5")):
        method, inputs = Ia3(), tiny.batch(head, family)
        built = attached(method, tiny.model(head, family).to(torch.bfloat16))
        tiny.learn(built, inputs, rate=3e-2)
        assert {p.dtype for p in learning(built).values()} == {torch.float32}
        method.save(built, tmp_path / family)
        loaded = method.load(tiny.model(head, family, seed=9).to(torch.bfloat16), tmp_path / family)
        assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(built, inputs))


def test_a_missing_vector_is_fatal(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    method = Ia3()
    method.save(attached(method, tiny.model("causal", "llama")), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file(dict(list(state.items())[1:]), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="Missing: \\['base_model"):
        method.load(tiny.model("causal", "llama"), tmp_path)


def test_ia3_is_found_by_name() -> None:
    assert methods.load("ia3") is Ia3 and Ia3.learning_rate == 3e-3
