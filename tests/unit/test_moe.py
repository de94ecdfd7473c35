"""Mixtures of experts: routers and stacked experts stay frozen, everything else of a LoRA run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from ftune import builtin
from ftune.errors import RecipeError
from ftune.methods.ia3 import Ia3
from ftune.methods.lora import Lora

SIZES: dict[str, Any] = {
    "vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "num_experts_per_tok": 2,
    "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16, "mlp_only_layers": [0]},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48},
    "phimoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "head_dim": 16},
}
"""Routers are a parameter (Mixtral, Qwen) or a linear layer (Phi, Llama 4); Qwen2 has a shared expert with a gate."""
ATTENTION = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
SHARED = {f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
ADAPTED = {
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "qwen2_moe": ATTENTION | {f"mlp.{name}" for name in SHARED},
    "phimoe": ATTENTION,
    "llama4_text": ATTENTION | {f"feed_forward.{name}" for name in SHARED},
}


def model(kind: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}))
    for parameter in built.parameters():
        if not parameter.any():  # some routers start at zero, where all experts tie
            torch.nn.init.normal_(parameter, std=0.1)
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_leaves_routers_and_experts_alone(tmp_path: Path, kind: str) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    method, inputs = Lora(rank=4, alpha=8.0), tiny.batch("causal", "llama")
    base = model(kind)
    before, original = tiny.logits(base, inputs), {name: p.clone() for name, p in base.named_parameters()}
    wanted = method.target_shapes(base)
    assert {name.split(".", 3)[-1] for name in wanted} == ADAPTED[kind]
    torch.manual_seed(3)
    built = method.attach(base, builtin.tokenizer())
    adapted = {name for name, module in built.named_modules() if isinstance(module, LoraLayer)}
    assert adapted == {f"base_model.model.{name}" for name in wanted}
    learning = [p for p in built.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == method.trainable_parameters(wanted)
    assert torch.equal(tiny.logits(built, inputs), before)

    tiny.learn(built, inputs)
    trained = tiny.logits(built, inputs)
    assert tiny.distance(trained, before) > 0.1
    method.save(built, tmp_path / "adapter")
    loaded = method.load(model(kind), tmp_path / "adapter")
    assert torch.equal(tiny.logits(loaded, inputs), trained)
    assert torch.equal(tiny.logits(PeftModel.from_pretrained(model(kind), str(tmp_path / "adapter")), inputs), trained)

    merged = method.merge(loaded)
    assert tiny.distance(tiny.logits(merged, inputs), trained) < 1e-5
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, original[name])}
    assert {name for name, _ in merged.named_parameters()} == set(original)
    assert changed == {f"{name}.weight" for name in wanted}
    merged.save_pretrained(tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(tiny.logits(read, inputs), tiny.logits(merged, inputs))


def test_what_stays_frozen_cannot_be_named() -> None:
    cases = {
        ("phimoe", "router"): "'router' routes to experts and stays frozen",
        ("qwen2_moe", "shared_expert_gate"): "'shared_expert_gate' routes to experts",
        ("mixtral", "experts.down_proj"): "'experts.down_proj' is a stack of experts, which stays frozen",
        ("qwen3_moe", "gate_proj"): "'gate_proj' is a name that peft .* takes for the experts",
    }
    for (kind, name), message in cases.items():
        with pytest.raises(RecipeError, match=f"method.target_modules: {message}"):
            Lora(target_modules=[name]).target_shapes(model(kind))
    with pytest.raises(RecipeError, match="method.feedforward_modules: auto .* as the experts of a mixture do"):
        Ia3().target_shapes(model("mixtral"))
    named = Ia3(target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    assert len(named.target_shapes(model("mixtral"))) == 4


@pytest.mark.parametrize("kind", ["mixtral", "phimoe"])
def test_qlora_is_refused_where_the_experts_would_stay_as_they_are(kind: str) -> None:
    from ftune.methods.qlora import QLora

    with pytest.raises(RecipeError, match=r"only \d+% of the weights .* stacked experts cannot. .* method: lora"):
        QLora().target_shapes(model(kind))
    assert QLora().target_shapes(tiny.model("causal", "llama"))
