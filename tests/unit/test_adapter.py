"""Bottleneck adapters on tiny random models of every family, and on the shapes of other architectures."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from ftune import builtin, targets
from ftune.errors import ArtifactError, NotMergeable, RecipeError
from ftune.methods.adapter import Adapter, load_adapter

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "bert", "t5", "bart"]
VARIANTS = ["houlsby", "pfeiffer", "parallel"]
LM = {"bert": "MaskedLM", "t5": "Seq2SeqLM", "bart": "Seq2SeqLM"}
LEARNING = re.compile(r".+\.adapter\.(down|up)\.(weight|bias)")
HEADS = {
    "gpt2": {"score"}, "bert": {"classifier", "bert.pooler"}, "t5": {"classification_head"},
    "bart": {"classification_head"},
}  # fmt: skip
ADAPTERS = {"houlsby": {"bert": 4, "t5": 10, "bart": 10}, "pfeiffer": {"t5": 4, "bart": 4}}
"""How many there are in two blocks, or in two of an encoder and two of a decoder, where it is not 4 and 2."""


def make(family: str, head: str | None = None, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny frozen model with drawn weights, in evaluation mode."""
    config = builtin.config(family)
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    auto = getattr(transformers, f"AutoModelFor{head or LM.get(family, 'CausalLM')}")
    return auto.from_config(config).eval().requires_grad_(False)


def attached(model: PreTrainedModel, seed: int = 1, **fields: Any) -> PreTrainedModel:
    """The model with adapters whose start is drawn from `seed`."""
    torch.manual_seed(seed)
    return Adapter(**fields).attach(model, builtin.tokenizer())


def busy(model: PreTrainedModel) -> PreTrainedModel:
    """Give what learns values that matter, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Three rows of bytes that end in EOS, which BART's classifier reads."""
    ids = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(7))
    ids[:, -1] = 258
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "LMHead" not in type(model).__name__ and type(model).__name__.endswith("ForConditionalGeneration"):
        found["decoder_input_ids"] = ids.flip(1)
    return found


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model)).logits


def learning(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def loss(model: PreTrainedModel) -> torch.Tensor:
    """Cross-entropy against the same arbitrary answers each time."""
    found = model(**inputs(model)).logits.float().flatten(0, -2)
    answers = torch.arange(len(found)) % found.shape[1]
    return torch.nn.functional.cross_entropy(found, answers)


def expected_adapters(variant: str, family: str) -> int:
    kind = "houlsby" if variant == "houlsby" else "pfeiffer"
    return ADAPTERS[kind].get(family, 4 if kind == "houlsby" else 2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_same_function_and_learns_only_adapters(family: str, variant: str) -> None:
    model = make(family)
    before = logits(model)
    method = Adapter(variant=variant, reduction_factor=8)
    shapes = method.target_shapes(model)
    assert method.attach(model, builtin.tokenizer()) is model
    assert torch.equal(logits(model), before)
    names = set(learning(model))
    assert all(LEARNING.fullmatch(name) for name in names)
    count = expected_adapters(variant, family)
    assert len(shapes) == count and len(names) == 4 * count
    assert sum(p.numel() for p in learning(model).values()) == count * (2 * 64 * 8 + 64 + 8)
    assert method.trainable_parameters(shapes) == count * (2 * 64 * 8 + 64 + 8)
    assert method.target_shapes(model) == shapes  # the adapters' own layers are no targets


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classification_head_learns_too(family: str, variant: str) -> None:
    model = make(family, "SequenceClassification", num_labels=3)
    before = logits(model)
    attached(model, variant=variant)
    assert before.shape == (3, 3) and torch.equal(logits(model), before)
    assert not model.training
    others = {name for name in learning(model) if not LEARNING.fullmatch(name)}
    heads = HEADS.get(family, {"score"})
    assert {next(head for head in heads if name.startswith(f"{head}.")) for name in others} == heads


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, "SequenceClassification"])
def test_five_steps_move_all_that_learns_and_nothing_else(family: str, variant: str, head: str | None) -> None:
    model = attached(make(family, head), variant=variant).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(learning(model).values(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_computes_the_equations(variant: str) -> None:
    model = busy(attached(make("llama"), variant=variant, non_linearity="tanh", scaling=2.5))
    block = model.model.layers[1]
    x = torch.randn(2, 3, 64)
    plain = copy.deepcopy(block.mlp)
    plain.down_proj._forward_hooks.clear()
    plain.gate_proj._forward_pre_hooks.clear()
    with torch.no_grad():
        h = plain(x)
        adapter = block.mlp.down_proj.adapter
        reads = x if variant == "parallel" else h
        down = torch.tanh(reads @ adapter.down.weight.T + adapter.down.bias)
        expected = h + 2.5 * (down @ adapter.up.weight.T + adapter.up.bias)
        assert torch.allclose(block.mlp(x), expected, atol=1e-5)
        assert (block.mlp(x) - h).abs().max() > 0.1


def test_the_start() -> None:
    names = learning(attached(make("llama"), reduction_factor=1))
    for name, parameter in names.items():
        if name.endswith("down.weight"):
            assert abs(float(parameter.detach().std()) - 0.02) < 0.001
        else:
            assert not parameter.any()
    assert all(p.dtype == torch.float32 for p in names.values())


@pytest.mark.parametrize("non_linearity", ["relu", "gelu", "silu", "tanh"])
def test_each_non_linearity_is_another_function(non_linearity: str) -> None:
    kinds = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "Tanh"}
    model = attached(make("llama"), non_linearity=non_linearity)
    assert type(model.model.layers[0].mlp.down_proj.adapter.non_linearity).__name__ == kinds[non_linearity]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, "SequenceClassification"])
def test_save_and_load_on_a_fresh_base(family: str, variant: str, head: str | None, tmp_path: Path) -> None:
    method = Adapter(variant=variant, dropout=0.5, scaling=2.0, non_linearity="gelu", reduction_factor=4)
    model = make(family, head, num_labels=3)
    frozen = logits(model)
    busy(method.attach(model, builtin.tokenizer()))
    expected = logits(model)
    method.save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    fresh = make(family, head, num_labels=3)
    if head:
        for name in targets.head_modules(fresh):
            for parameter in fresh.get_submodule(name).parameters():
                parameter.data.add_(1.0)  # a new head is another one each time
    loaded = load_adapter(fresh, str(tmp_path))
    assert loaded is fresh and not learning(loaded)
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(expected, frozen)
    assert not any(module.training for module in loaded.modules())  # dropout is off


def test_the_folder(tmp_path: Path) -> None:
    method = Adapter(variant="houlsby", layers=[1])
    model = make("bert", "SequenceClassification", num_labels=3)
    method.save(method.attach(model, builtin.tokenizer()), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    layer = "bert.encoder.layer.1"
    assert config == {
        "peft_type": "BOTTLENECK", "task_type": "SEQ_CLS", "base_model_name_or_path": "builtin:tiny-bert",
        "inference_mode": True, "variant": "houlsby", "reduction_factor": 16, "non_linearity": "relu", "scaling": 1.0,
        "dropout": 0.0, "layers": [1], "modules_to_save": ["bert.pooler", "classifier"],
        "target_modules": [f"{layer}.attention.output.dense", f"{layer}.output.dense"],
    }  # fmt: skip
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(weights) == sorted(
        f"base_model.model.{name}"
        for name in [
            *(
                f"{layer}.{where}.adapter.{part}"
                for where in ("attention.output.dense", "output.dense")
                for part in ("down.weight", "down.bias", "up.weight", "up.bias")
            ),
            *("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"),
        ]
    )


@pytest.mark.parametrize(
    ("family", "head", "word"),
    [
        ("llama", None, "CAUSAL_LM"), ("bert", None, None),
        ("t5", None, "SEQ_2_SEQ_LM"), ("bart", None, "SEQ_2_SEQ_LM"),
        ("bert", "TokenClassification", "TOKEN_CLS"), ("t5", "TokenClassification", "TOKEN_CLS"),
        ("llama", "SequenceClassification", "SEQ_CLS"),
    ],
)  # fmt: skip
def test_the_folder_names_the_task(family: str, head: str | None, word: str | None, tmp_path: Path) -> None:
    Adapter().save(attached(make(family, head)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == word


def saved(folder: Path, family: str = "llama", head: str | None = None, **fields: Any) -> Path:
    Adapter(**fields).save(busy(attached(make(family, head), **fields)), folder)
    return folder


NAME = "model.layers.0.mlp.down_proj.adapter.up.bias"


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_fatal(kind: str, tmp_path: Path) -> None:
    file = saved(tmp_path) / "adapter_model.safetensors"
    weights = load_file(file)
    tensor = weights.pop(f"base_model.model.{NAME}")
    if kind == "unexpected":
        weights |= {f"base_model.model.{NAME}": tensor, "base_model.model.more.weight": tensor.clone()}
    elif kind == "shape":
        weights[f"base_model.model.{NAME}"] = torch.zeros(63)
    save_file(weights, file)
    said = {
        "missing": rf"Missing: \['{re.escape(NAME)}'\]",
        "unexpected": r"unexpected: \['more\.weight'\]",
        "shape": rf"another shape: \[.{re.escape(NAME)} is \[63\], the model's \[64\].\]",
    }
    with pytest.raises(ArtifactError, match=said[kind]):
        load_adapter(make("llama"), tmp_path)


def test_a_head_must_be_there_and_fit(tmp_path: Path) -> None:
    file = saved(tmp_path, "bert", "SequenceClassification") / "adapter_model.safetensors"
    with pytest.raises(ArtifactError, match=r"classifier\.weight is \[2, 64\], the model's \[5, 64\].*as many labels"):
        load_adapter(make("bert", "SequenceClassification", num_labels=5), tmp_path)
    weights = load_file(file)
    del weights["base_model.model.classifier.bias"]
    save_file(weights, file)
    with pytest.raises(ArtifactError, match=r"Missing: \['classifier\.bias'\]"):
        load_adapter(make("bert", "SequenceClassification"), tmp_path)


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_adapter(make("llama"), tmp_path / "nowhere")
    folder = saved(tmp_path)
    model = load_adapter(make("llama"), folder)
    with pytest.raises(ArtifactError, match="has an adapter already"):
        load_adapter(model, folder)
    with pytest.raises(ArtifactError, match="trained on a base with other layers"):
        load_adapter(make("gpt2"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change in ({"variant": "odd"}, {"target_modules": 3}, {"layers": [7]}, {"peft_type": "LORA"}):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ArtifactError, match="cannot be read|no block 7|is a LORA adapter"):
            load_adapter(make("llama"), folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_adapter(make("llama"), folder)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_leaves_gradients_as_they_are(family: str, variant: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = busy(attached(make(family), variant=variant, dropout=0.2)).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss(model).backward()
        flows = [hook.__self__ for module in model.modules() for hook in module._forward_pre_hooks.values()]
        assert len(flows) == (expected_adapters(variant, family) if variant == "parallel" else 0)
        assert all(flow.inputs is None for flow in flows)  # nothing outlives the backward pass
        return {name: parameter.grad for name, parameter in learning(model).items()}

    plain, recomputed = gradients(False), gradients(True)
    assert all(plain[name].abs().max() > 0 for name in plain)
    for name, gradient in plain.items():
        if family == "t5":  # plain T5, every weight learning, differs by as much
            assert (recomputed[name] - gradient).abs().max() < 2e-6 * gradient.abs().max()
        else:
            assert torch.equal(recomputed[name], gradient)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_generation_with_and_without_cache(family: str, variant: str) -> None:
    model = busy(attached(make(family), variant=variant))
    given = {name: value[:, :6] for name, value in inputs(model).items() if name != "decoder_input_ids"}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}

    def generate(of: PreTrainedModel, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found = of.generate(**given, **options, use_cache=use_cache, return_dict_in_generate=True, output_logits=True)
        return found.sequences, torch.stack(found.logits)

    tokens, cached = generate(model, True)
    tokens_again, recomputed = generate(model, False)
    assert torch.equal(tokens, tokens_again)
    assert torch.allclose(cached, recomputed, atol=1e-4)
    assert (cached - generate(make(family), True)[1]).abs().max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_choose_blocks(variant: str) -> None:
    model = attached(make("t5"), variant=variant, layers=[3, 0])
    blocks = {".".join(name.split(".")[:3]) for name in learning(model)}
    assert blocks == {"encoder.block.0", "decoder.block.1"}


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"layers": [0, 2]}, "method.layers", "there is no block 2: the model has 2, numbered 0 to 1."),
        ({"reduction_factor": 65}, "method.reduction_factor", "65 leaves nothing of the model's width of 64."),
    ],
)
def test_settings_that_the_model_refuses(fields: dict[str, Any], path: str, said: str) -> None:
    model = make("llama")
    with pytest.raises(RecipeError) as caught:
        attached(model, **fields)
    assert caught.value.problems[0].path == path
    assert caught.value.problems[0].message.startswith(said)
    assert not any("adapter" in name for name, _ in model.named_modules())


def test_settings_that_are_wrong_by_themselves() -> None:
    assert Adapter(layers=[1, 0, 1]).problems() == [("layers", "names a block twice: [0, 1, 1]. Remove one.")]
    assert Adapter(layers=[1, 0]).problems() == []
    for wrong in (
        {"layers": []}, {"layers": [-1]}, {"reduction_factor": 0}, {"scaling": 0}, {"dropout": 1.0},
        {"variant": "serial"}, {"non_linearity": "softmax"}, {"reduction": 2},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            Adapter(**wrong)


def test_merging_is_refused() -> None:
    with pytest.raises(NotMergeable, match="non-linear.*load_adapter.*lora"):
        Adapter().merge(attached(make("llama")))
    assert not Adapter.mergeable


TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 272}
BERT_LIKE = ["attention.output.dense", "output.dense", "intermediate.dense"]
LLAMA_LIKE = ["self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj"]
OPT_LIKE = ["self_attn.out_proj", "fc2", "fc1"]
ARCHITECTURES = {
    "mistral": (TINY | {"num_key_value_heads": 2}, LLAMA_LIKE),
    "phi3": (TINY | {"num_key_value_heads": 2, "pad_token_id": 0}, [*LLAMA_LIKE[:2], "mlp.gate_up_proj"]),
    "gpt_neox": (TINY, ["attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"]),
    "falcon": (TINY, ["self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"]),
    "bloom": (
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 272},
        ["self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"],
    ),
    "opt": (TINY | {"ffn_dim": 64, "word_embed_proj_dim": 64}, OPT_LIKE),  # an MLP no wider than the model
    "roberta": (TINY, BERT_LIKE),
    "electra": (TINY | {"embedding_size": 32}, BERT_LIKE),
    "distilbert": (
        {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": 272},
        ["attention.out_lin", "ffn.lin2", "ffn.lin1"],
    ),
    "modernbert": (TINY | {"pad_token_id": 0}, ["attn.Wo", "mlp.Wo", "mlp.Wi"]),
    "deberta-v2": (TINY | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, BERT_LIKE),
    "mpnet": (TINY | {"intermediate_size": 64}, ["attention.attn.o", *BERT_LIKE[1:]]),
    "nomic_bert": (TINY, LLAMA_LIKE),  # defines its MLP before its attention
}
MASKED = {"roberta", "electra", "distilbert", "modernbert", "deberta-v2", "mpnet", "nomic_bert", "albert", "fnet"}


def build(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM if kind in MASKED else transformers.AutoModelForCausalLM
    return auto.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_finds_its_places_by_structure(kind: str) -> None:
    settings, (attention, mlp, first) = ARCHITECTURES[kind]
    model = build(kind, **settings)
    blocks = targets.blocks(model)
    assert len(blocks) == 2
    for block in blocks.values():
        parts = targets.sublayers(block, 64)
        assert [part.output for part in parts] == [attention, mlp]
        assert parts[-1].input == first
        assert all(part.certain for part in parts)
    before = logits(model)
    for variant in VARIANTS:
        adapted = attached(copy.deepcopy(model), variant=variant)
        assert torch.equal(logits(adapted), before)
        loss(busy(adapted)).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in learning(adapted).values())


def test_a_shared_block_has_a_shared_adapter() -> None:
    model = build("albert", **TINY | {"embedding_size": 32, "num_hidden_layers": 3, "inner_group_num": 2})
    group = "albert.encoder.albert_layer_groups.0.albert_layers"
    assert list(targets.blocks(model)) == [f"{group}.0", f"{group}.1"]
    before = logits(model)
    attached(model, variant="parallel", layers=[1])
    assert torch.equal(logits(model), before)
    assert {name.split(".adapter.")[0] for name in learning(model)} == {f"{group}.1.ffn_output"}
    loss(busy(model).train()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learning(model).values())


def test_a_model_that_reads_images_is_adapted_in_its_language_model() -> None:
    text = TINY | {"model_type": "llama", "pad_token_id": 256}
    vision = {"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "projection_dim": 32}  # fmt: skip
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=260)
    model = transformers.AutoModelForImageTextToText.from_config(config).requires_grad_(False)
    assert list(targets.blocks(model)) == [f"model.language_model.layers.{index}" for index in range(2)]
    assert len(learning(attached(model, variant="houlsby"))) == 16


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("mixtral", TINY | {"num_local_experts": 2}, r"block 0 .*`mlp.experts` holds the weights of several layers"),
        ("qwen2_moe", TINY | {"num_experts": 2, "num_experts_per_tok": 1}, r"block 0 .*`mlp.experts`"),
        ("fnet", TINY, r"block 0 .*no attention and MLP were found .* with 64 outputs"),
        ("mamba2", {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 272},
         "no attention and MLP"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_without_a_place_are_refused(kind: str, settings: dict[str, Any], said: str, variant: str) -> None:
    model = build(kind, **settings)
    with pytest.raises(RecipeError, match=f"finds no place in this model: .*{said}.*method lora"):
        attached(model, variant=variant)


class Gated(torch.nn.Module):
    """An attention with a gate of its output's shape, defined last."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        for name, module in attention.named_children():
            self.add_module(name, module)
        self.gate = torch.nn.Linear(64, 64)


def test_an_attention_with_a_gate_is_refused_by_houlsby_only() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn = Gated(layer.self_attn)
    with pytest.raises(RecipeError, match="cannot tell for sure which layer ends the attention of block 0 .*pfeiffer"):
        attached(model, variant="houlsby")
    assert len(learning(attached(model, variant="pfeiffer"))) == 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_half_precision_base(variant: str, tmp_path: Path) -> None:
    model = make("llama").to(torch.bfloat16)
    before = logits(model)
    attached(model, variant=variant)
    assert before.dtype == torch.bfloat16 and torch.equal(logits(model), before)
    loss(busy(model)).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in learning(model).values())
    Adapter(variant=variant).save(model, tmp_path)
    assert torch.equal(logits(load_adapter(make("llama").to(torch.bfloat16), tmp_path)), logits(model))
    for parameter in learning(model).values():
        parameter.data = parameter.data.to(torch.bfloat16)
    Adapter(variant=variant).save(model, tmp_path)
    loaded = load_adapter(make("llama").to(torch.bfloat16), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_parameter(NAME).dtype == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantised_base(variant: str, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    make("llama").save_pretrained(tmp_path / "base")
    options = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")

    def base() -> PreTrainedModel:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=options, dtype=torch.float32
        ).requires_grad_(False)
        for module in loaded.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = False  # repacks its weights in place, then trains wrongly
        return loaded

    method = Adapter(variant=variant)
    model = base()
    before = logits(model)
    assert set(method.target_shapes(model).values()) <= {(64, 64), (64, 128)}
    attached(model, variant=variant)
    assert torch.equal(logits(model), before)
    count = expected_adapters(variant, "llama")
    assert sum(p.numel() for p in learning(model).values()) == count * (2 * 64 * 4 + 64 + 4)
    loss(busy(model)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learning(model).values())
    (tmp_path / "adapter").mkdir()
    method.save(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(base(), tmp_path / "adapter")), logits(model))


def test_counts_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(builtin.config("llama"))
    method = Adapter(variant="houlsby")
    shapes = method.target_shapes(model)
    method.skeleton().attach(model.requires_grad_(False), builtin.tokenizer())
    found = learning(model)
    assert all(parameter.is_meta for parameter in found.values())
    assert sum(p.numel() for p in found.values()) == method.trainable_parameters(shapes) == 4 * 580


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deep_copy_is_independent(variant: str) -> None:
    model = busy(attached(make("llama"), variant=variant))
    twin = copy.deepcopy(model)
    expected = logits(model)
    busy(model)
    assert torch.equal(logits(twin), expected)
    assert not torch.equal(logits(model), expected)
