"""Checkpoints that read images, tuned on text: only the language model is adapted, and every tensor is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from ftune import builtin
from ftune.errors import RecipeError
from ftune.methods.ia3 import Ia3
from ftune.methods.lora import Lora

IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
TEXT = {
    "vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, **IDS,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "model_type": "gemma3_text", "head_dim": 24, "sliding_window": 32},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 260,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
        "image_token_index": 260,
    },
    "qwen2_vl": {
        "text_config": {**TEXT, "model_type": "qwen2_vl_text", **ROPE},
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
        "image_token_id": 260,
    },
}


def model(kind: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    built = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **KINDS[kind], **IDS))
    return built.eval().requires_grad_(False)


def batch(kind: str) -> dict[str, Any]:
    import torch

    found = tiny.batch("causal", "llama")
    found["input_ids"][found["input_ids"] == 260] = 5
    if kind == "gemma3":  # says which positions are of an image; it is wanted in training
        found["token_type_ids"] = torch.zeros_like(found["input_ids"])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Lora(rank=4, alpha=8.0, trainable_tokens=["a"]), Ia3()], ids=["lora", "ia3"])
def test_only_the_language_model_is_adapted(tmp_path: Path, kind: str, method: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    inputs, base = batch(kind), model(kind)
    before, original = tiny.logits(base, inputs), {name: t.clone() for name, t in base.state_dict().items()}
    wanted = method.target_shapes(base)
    assert len(wanted) == 2 * (7 if method.name == "lora" else 3)
    assert all(name.startswith("model.language_model.layers.") for name in wanted)
    torch.manual_seed(3)
    built = method.attach(base, builtin.tokenizer())
    assert torch.equal(tiny.logits(built, inputs), before)
    tiny.learn(built, inputs)
    trained = tiny.logits(built, inputs)
    assert tiny.distance(trained, before) > 0.01

    method.save(built, tmp_path / "adapter")
    loaded = method.load(model(kind), tmp_path / "adapter")
    assert torch.equal(tiny.logits(loaded, inputs), trained)
    assert torch.equal(tiny.logits(PeftModel.from_pretrained(model(kind), str(tmp_path / "adapter")), inputs), trained)
    merged = method.merge(loaded)
    assert tiny.distance(tiny.logits(merged, inputs), trained) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    read = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert type(read) is type(base) and torch.equal(tiny.logits(read, inputs), tiny.logits(merged, inputs))

    kept = read.state_dict()
    assert set(kept) == set(original)
    changed = {name for name, tensor in original.items() if not torch.equal(kept[name], tensor)}
    assert {name for name in changed if not name.startswith("model.language_model.")} <= {"lm_head.weight"}
    assert {f"{name}.weight" for name in wanted} <= changed


def test_layers_that_text_does_not_reach_cannot_be_named() -> None:
    with pytest.raises(RecipeError, match="method.target_modules: 'linear_1' is outside of the language model"):
        Lora(target_modules=["linear_1"]).target_shapes(model("llava"))
    both = Lora(target_modules=["q_proj"]).target_shapes(model("gemma3"))
    assert list(both) == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_how_such_a_checkpoint_is_told_apart(kind: str) -> None:
    """What the spine relies on to open it with its own class."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    config = AutoConfig.for_model(kind, **KINDS[kind], **IDS)
    assert type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and config.get_text_config() is not config
    for family in builtin.SHAPES:
        plain = builtin.config(family)
        assert type(plain) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and plain.get_text_config() is plain


@pytest.mark.parametrize(
    "method", [{"name": "lora", "rank": 4}, {"name": "full"}, {"name": "qlora", "rank": 4}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_text_keeps_the_class_and_every_tensor(tmp_path: Path, kind: str, method: dict[str, Any]) -> None:
    """Train, save, open, merge: the images' part of the checkpoint is there in the end, bit for bit."""
    import torch
    from laws import ROWS, recipe, train
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from ftune.merging import merge

    base = model(kind)
    base.save_pretrained(tmp_path / "base")
    builtin.tokenizer().save_pretrained(tmp_path / "base")
    loaded = recipe(tmp_path, rows=ROWS, model=str(tmp_path / "base"), method=method, data={"eval": "rows.jsonl"},
                    eval={"every": 5})  # fmt: skip
    report = train(loaded)
    assert report["metrics"]["eval"]["loss"]["value"] < report["baseline"]["loss"]
    result = merge(tmp_path / "run", None, dtype="fp32", tick=lambda what: None)
    assert result.opens_with == "AutoModelForImageTextToText"
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", tmp_path / "run/merged"))
    assert before.keys() == after.keys()
    seen = [name for name in before if "vision" in name or "visual" in name]
    assert seen
    kept = [name for name in seen if torch.equal(before[name].float(), after[name])]
    if method["name"] == "lora":
        assert kept == seen
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "run/merged")
    assert type(opened) is type(base)
