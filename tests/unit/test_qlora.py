"""QLoRA: which layers are quantised and how well, that nothing frozen moves, and that one function is trained,
evaluated, saved, loaded and merged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laws import LEARNING

from ftune import builtin, quantisation, targets
from ftune.errors import ArtifactError, MachineError, NotMergeable, RecipeError
from ftune.methods.lora import Lora
from ftune.methods.qlora import RECORD, QLora

HEADS = {"bert": "MaskedLM", "t5": "Seq2SeqLM", "bart": "Seq2SeqLM"}
"""What the other families are not: decoders with AutoModelForCausalLM."""
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2", "bert", "t5", "bart")
KINDS = ("nf4", "int8")
Folder = Callable[..., Path]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders of random models, written once each."""
    written: dict[tuple[str, str], Path] = {}

    def folder(family: str, dtype: str = "float32") -> Path:
        if (family, dtype) not in written:
            written[family, dtype] = tmp_path_factory.mktemp(family)
            plain(family, dtype=dtype).save_pretrained(written[family, dtype])
        return written[family, dtype]

    return folder


def auto(family: str, head: str | None = None) -> Any:
    import transformers

    return getattr(transformers, f"AutoModelFor{head or HEADS.get(family, 'CausalLM')}")


def plain(family: str, head: str | None = None, dtype: str = "float32") -> Any:
    """A random model, as it is published."""
    import torch

    torch.manual_seed(builtin.SEED)
    return auto(family, head).from_config(builtin.config(family)).to(getattr(torch, dtype)).eval().requires_grad_(False)


def method(**block: Any) -> QLora:
    return QLora(**{"rank": 4, "alpha": 8, **block})


def load(
    published: Folder,
    family: str,
    qlora: QLora,
    *,
    head: str | None = None,
    dtype: str = "float32",
    compute: str = "fp32",
) -> Any:
    """The base as a run loads it: quantised while it is read."""
    import torch

    torch.manual_seed(1)  # draws a fresh classification head
    type_of = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    model = auto(family, head).from_pretrained(published(family, dtype), **qlora.load_options(type_of))
    qlora.quantise(model, type_of)
    return model.eval().requires_grad_(False)


def attach(model: Any, qlora: QLora) -> Any:
    """The method on `model`, with an update that is not zero unless LoftQ made one."""
    import torch

    tokenizer = builtin.tokenizer()
    qlora.prepare_tokenizer(tokenizer)
    torch.manual_seed(2)
    attached = qlora.attach(model, tokenizer)
    for name, parameter in attached.named_parameters():
        if ".lora_B." in name and qlora.init != "loftq":
            torch.nn.init.normal_(parameter, std=0.05)
    return attached


def batch(model: Any) -> dict[str, Any]:
    import torch

    ids = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(7))
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids}
    if type(model).__name__.endswith("Classification"):
        return {"input_ids": torch.cat([ids, torch.full((3, 1), model.config.eos_token_id)], dim=1)}
    return {"input_ids": ids, "decoder_input_ids": ids[:, :9]}


def logits(model: Any) -> Any:
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(**batch(base)).logits.float()
    model.train(training)
    return found


def loss(model: Any) -> Any:
    """Cross entropy of each position's own token, in training mode."""
    import torch

    model.train()
    inputs = batch(model.get_base_model())
    wanted = inputs.get("decoder_input_ids", inputs["input_ids"])
    return torch.nn.functional.cross_entropy(model(**inputs).logits.float().flatten(0, 1), wanted.flatten())


def gradients(model: Any) -> dict[str, Any]:
    model.zero_grad()
    loss(model).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: Any, steps: int = 5, rate: float = 1e-2) -> list[float]:
    import torch

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def saved(model: Any, qlora: QLora, folder: Path) -> Path:
    folder.mkdir()
    qlora.save(model, folder)
    return folder


# Which layers, and how well


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_blocks_is_quantised(published: Folder, family: str, kind: str) -> None:
    model = load(published, family, method(quantisation=kind))
    linear = targets.linear_modules(model)
    left = {targets.leaf(name) for name in linear if name not in quantisation.quantised(model)}
    # T5 computes `wo` in fp32, and `dense` is part of BERT's head for masked words
    assert left == {"t5": {"wo"}, "bert": {"dense"}}.get(family, set())
    assert not quantisation.is_quantised(model.get_output_embeddings())
    shapes = {name: targets.shape_of(layer) for name, layer in targets.linear_modules(plain(family)).items()}
    assert {name: targets.shape_of(layer) for name, layer in linear.items()} == shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_will_be_quantised(published: Folder, family: str) -> None:
    import torch

    with torch.device("meta"):
        empty = auto(family).from_config(builtin.config(family))
    loaded = load(published, family, method())
    sizes = [layer.out_features * layer.in_features for layer in quantisation.quantised(loaded).values()]
    assert method().quantised_parameters(empty) == method().quantised_parameters(loaded) == sum(sizes)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
def test_a_classification_head_is_not_quantised(published: Folder, family: str) -> None:
    model = load(published, family, method(), head="SequenceClassification")
    heads = targets.head_modules(model)
    assert heads
    assert not any(quantisation.quantised(model.get_submodule(head)) for head in heads)
    assert len(quantisation.quantised(model)) == len(quantisation.quantised(load(published, family, method())))


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.1), ("int8", 0.01)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dequantised_weights_are_near_the_published_ones(
    published: Folder, family: str, kind: str, error: float
) -> None:
    """gpt2 stores its weights transposed."""
    model, original = load(published, family, method(quantisation=kind)), plain(family)
    for name, layer in quantisation.quantised(model).items():
        weight = original.get_submodule(name).weight
        weight = weight.T if family == "gpt2" else weight
        difference = (quantisation.weight_of(layer) - weight).norm() / weight.norm()
        assert error / 20 < float(difference) < error, name


def test_memory_of_quantised_weights() -> None:
    """A layer of 1024 x 1024 takes the promised bits; the tables of each layer are 1,092 bytes more."""
    import torch

    for block in ({}, {"double_quantisation": False}, {"quantisation": "int8"}):
        qlora = method(**block)
        model = torch.nn.Linear(1024, 1024, bias=False)
        made = quantisation._from_plain(model, model.weight, qlora._how, torch.float32)
        tensors = quantisation._tensors(made)
        bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
        assert bits == pytest.approx(qlora.quantised_bits, abs=8 * 1092 / 2**20), block
        if qlora.quantisation == "nf4":
            assert bits / 16 <= 0.35
    assert method().quantised_bits == pytest.approx(4.127, abs=1e-4)
    assert method(double_quantisation=False).quantised_bits == 4.5
    assert method(quantisation="int8").quantised_bits == 8.03125


# Deterministic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_codes_depend_on_the_published_weights_only(published: Folder, family: str, kind: str) -> None:
    """Neither on the type of computation, nor on whether transformers quantises while it loads or we do later."""
    found = set()
    for compute in ("fp32", "bf16"):
        found.add(quantisation.fingerprint(load(published, family, method(quantisation=kind), compute=compute)))
    later = plain(family)
    method(quantisation=kind).quantise(later)
    found.add(quantisation.fingerprint(later))
    assert len(found) == 1
    other = plain(family, dtype="bfloat16")
    method(quantisation=kind).quantise(other)
    assert quantisation.fingerprint(other) not in found


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_function_that_is_trained(published: Folder, kind: str) -> None:
    """bitsandbytes' own int8 layer is another function in evaluation, and one row's depends on the others."""
    import torch

    model = attach(load(published, "llama", method(quantisation=kind)), method(quantisation=kind))
    evaluated = logits(model)
    with torch.no_grad():
        model.train()
        assert torch.equal(model(**batch(model.get_base_model())).logits, evaluated)
        alone = model(input_ids=batch(model.get_base_model())["input_ids"][:1]).logits
    assert torch.allclose(alone, evaluated[:1], atol=1e-5)


# Training


def _pretend_avx512(model: Any) -> None:
    """What bitsandbytes finds out by itself on a CPU with AVX512-BF16."""
    for layer in quantisation.quantised(model).values():
        layer.support_avx512bf16_for_cpu = True


def test_no_layer_repacks_itself_after_attach_and_load(published: Folder, tmp_path: Path) -> None:
    model = load(published, "llama", method())
    _pretend_avx512(model)
    attached = attach(model, method())
    assert {layer.support_avx512bf16_for_cpu for layer in quantisation.quantised(attached).values()} == {False}
    folder = saved(attached, method(), tmp_path / "adapter")
    model = load(published, "llama", method())
    _pretend_avx512(model)
    loaded = method().load(model, folder)
    assert {layer.support_avx512bf16_for_cpu for layer in quantisation.quantised(loaded).values()} == {False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluation_leaves_gradients_bit_equal(published: Folder, family: str, kind: str) -> None:
    import torch

    model = load(published, family, method(quantisation=kind))
    if kind == "nf4":
        _pretend_avx512(model)
    model = attach(model, method(quantisation=kind))
    before = gradients(model)
    logits(model)
    after = gradients(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(bool(gradient.any()) for gradient in before.values())


def test_canary_bitsandbytes_repacks_in_evaluation(published: Folder) -> None:
    """When this fails, the flag is no longer needed."""
    import torch

    model = attach(load(published, "llama", method()), method())
    before, said = gradients(model), logits(model)
    _pretend_avx512(model)
    assert not torch.equal(logits(model), said)  # noise on other CPUs; on these right to bf16, so that nothing tells
    after = gradients(model)
    assert max(float((before[name] - after[name]).norm() / before[name].norm()) for name in before) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_dequantised_model(published: Folder, kind: str, dtype: str) -> None:
    """Also where the published type is shorter than that of computation, to which bitsandbytes rounds going back."""
    qlora = method(quantisation=kind)
    model = load(published, "llama", qlora, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    attached = attach(model, qlora)
    found = gradients(attached)
    quantisation.dequantise(attached)
    expected = gradients(attached)
    assert max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in found) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_loss_falls_and_nothing_frozen_moves(published: Folder, family: str, kind: str) -> None:
    import re

    import torch

    qlora = method(quantisation=kind)
    model = attach(load(published, family, qlora), qlora)
    codes = quantisation.fingerprint(model.get_base_model())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < 0.9 * losses[0]
    assert quantisation.fingerprint(model.get_base_model()) == codes
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad == bool(re.fullmatch(LEARNING["lora"], name)), name


def test_biases_do_not_move_where_frozen_and_compute_types_differ(published: Folder) -> None:
    import torch

    model = attach(load(published, "gpt2", method(), compute="bf16"), method())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        loss(model).backward()
    assert all(before[name].dtype == p.dtype and torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(published: Folder, kind: str) -> None:
    import torch

    qlora = method(quantisation=kind)
    expected = gradients(attach(load(published, "llama", qlora), qlora))
    model = attach(load(published, "llama", qlora), qlora)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_int8_obeys_autocast(published: Folder) -> None:
    import torch

    layer = next(iter(quantisation.quantised(load(published, "bert", method(quantisation="int8"))).values()))
    x = torch.randn(2, 5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert torch.allclose(x.grad[0, 0], quantisation.weight_of(layer).sum(dim=0), atol=0.05)
    assert torch.allclose(y.float(), x @ quantisation.weight_of(layer).T + layer.bias, atol=0.05)


def test_trainable_parameters_on_the_meta_device_are_the_closed_form() -> None:
    import torch

    for block in ({}, {"init": "loftq"}, {"dora": True}):
        qlora = method(**block).skeleton()
        with torch.device("meta"):
            model = auto("llama").from_config(builtin.config("llama")).requires_grad_(False)
        expected = qlora.trainable_parameters(qlora.target_shapes(model))
        attached = qlora.attach(model, builtin.tokenizer())
        assert sum(p.numel() for p in attached.parameters() if p.requires_grad) == expected
        assert not quantisation.quantised(attached)


# Artefacts


@pytest.mark.parametrize(
    ("family", "block"),
    [
        *[(family, {"quantisation": kind}) for family in ("llama", "gpt2", "t5") for kind in KINDS],
        ("llama", {"double_quantisation": False}),
        ("llama", {"dora": True}),
        ("gpt2", {"dora": True}),
        ("llama", {"init": "loftq"}),
        ("gpt2", {"init": "loftq", "quantisation": "int8"}),
        ("llama", {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3.0}}),
        ("llama", {"new_tokens": ["<call>", *(f"<{i}>" for i in range(12))]}),
        ("qwen3", {"new_tokens": ["<call>"]}),
    ],
    ids=str,
)
def test_saved_loaded_and_merged_are_the_trained_function(
    published: Folder, tmp_path: Path, family: str, block: dict[str, Any]
) -> None:
    import torch

    qlora = method(**block)
    model = attach(load(published, family, qlora), qlora)
    train(model, steps=3)
    trained = logits(model)
    folder = saved(model, qlora, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", RECORD}
    loaded = qlora.load(load(published, family, qlora), folder)
    assert torch.equal(logits(loaded), trained)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    merged = qlora.merge(loaded)
    scale = float(trained.abs().max())
    assert float((logits(merged) - trained).abs().max()) < 1e-5 * scale  # the law asks for 1e-3
    merged.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    opened = auto(family).from_pretrained(tmp_path / "merged")
    assert [type(m) for m in opened.modules()] == [type(m) for m in plain(family).modules()]
    assert torch.equal(logits(opened), logits(merged))


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "bart"])
def test_classifiers_are_saved_loaded_and_merged(published: Folder, tmp_path: Path, family: str) -> None:
    import torch

    head = "SequenceClassification"
    model = attach(load(published, family, method(), head=head), method())
    outputs = model(**batch(model.get_base_model())).logits
    outputs.logsumexp(dim=-1).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    trained = logits(model)
    folder = saved(model, method(), tmp_path / "adapter")
    fresh = load(published, family, method(), head=head)
    for name in targets.head_modules(fresh):
        for parameter in fresh.get_submodule(name).parameters():
            parameter.data.zero_()
    loaded = method().load(fresh, folder)
    assert torch.equal(logits(loaded), trained)
    merged = method().merge(loaded)
    assert torch.allclose(logits(merged), trained, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(auto(family, head).from_pretrained(tmp_path / "merged")), logits(merged))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_opens_it_and_a_base_may_be_published_quantised(published: Folder, tmp_path: Path, family: str) -> None:
    """As docs/methods.md shows it."""
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    model = attach(load(published, family, method()), method())
    folder, said = saved(model, method(), tmp_path / "adapter"), logits(model)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = auto(family).from_pretrained(published(family), quantization_config=config)
    base.save_pretrained(tmp_path / "quantised")
    for layer in quantisation.quantised(base).values():
        layer.support_avx512bf16_for_cpu = False
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder)), said)
    ready = auto(family).from_pretrained(tmp_path / "quantised", **method().load_options(torch.float32))
    assert torch.equal(logits(method().load(ready, folder)), said)


def _one_weight(weight: Any) -> None:
    weight[3, 5] += 0.5


def _one_constant(weight: Any) -> None:
    """Every code stays as it is."""
    weight.mul_(1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused(published: Folder, tmp_path: Path, kind: str) -> None:
    qlora = method(quantisation=kind)
    folder = saved(attach(load(published, "llama", qlora), qlora), qlora, tmp_path / "adapter")
    recorded = json.loads((folder / RECORD).read_text())
    assert recorded["layers"] == 14
    assert recorded["quantisation"] == kind
    for change in (_one_weight, _one_constant):
        other = plain("llama")
        change(other.model.layers[1].mlp.down_proj.weight)
        with pytest.raises(ArtifactError, match="was trained on the quantised weights") as error:
            qlora.load(other, folder)
        assert recorded["sha256"][:16] in str(error.value)
    with pytest.raises(ArtifactError, match="was trained on the quantised weights"):
        method(quantisation="int8" if kind == "nf4" else "nf4").load(plain("llama"), folder)
    (folder / RECORD).unlink()
    with pytest.raises(ArtifactError, match=r"quantised_base\.json.*cannot be read"):
        qlora.load(plain("llama"), folder)


def test_a_missing_weight_is_refused(published: Folder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(attach(load(published, "llama", method()), method()), method(), tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[3])
    save_file(weights, path)
    with pytest.raises(ArtifactError, match="does not fit"):
        method().load(load(published, "llama", method()), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_done_with_lets_go_of_its_memory(published: Folder, kind: str) -> None:
    model = attach(load(published, "gpt2", method(quantisation=kind)), method(quantisation=kind))
    shapes = {name: targets.shape_of(layer) for name, layer in quantisation.quantised(model).items()}
    quantisation.release(model)
    model.to("meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(targets.shape_of(model.get_submodule(name)) == shape for name, shape in shapes.items())


def test_what_learns_can_be_put_back(published: Folder) -> None:
    """As a checkpoint does it: by name, into a freshly attached method."""
    import torch

    model = attach(load(published, "llama", method()), method())
    train(model, steps=2)
    state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    again = attach(load(published, "llama", method()), method())
    for name, parameter in again.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(state.pop(name))
    assert not state
    assert torch.equal(logits(again), logits(model))
    assert train(again, steps=2) == train(model, steps=2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_adapter_on_the_original_base(published: Folder, tmp_path: Path, family: str) -> None:
    import torch

    qlora = method(target_modules=["up_proj", "q_proj"] if family == "llama" else ["c_attn"])
    model = attach(load(published, family, qlora), qlora)
    folder = saved(model, qlora, tmp_path / "adapter")
    lora = qlora.on_original_base()
    assert type(lora) is Lora
    assert lora.rank == 4
    loaded = lora.load(plain(family), folder)
    said = logits(loaded)
    merged = lora.merge(loaded)
    assert torch.allclose(logits(merged), said, atol=1e-5)
    assert float((said - logits(model)).abs().max()) > 0.01  # the drift
    wanted = qlora.merge(model)
    for name, layer in quantisation.layers(plain(family)).items():
        change = merged.get_submodule(name).weight - plain(family).get_submodule(name).weight
        rounding = wanted.get_submodule(name).weight - change - layer.weight
        assert float(rounding.norm() / layer.weight.norm()) < 0.1, name


# Starts


def test_loftq_takes_up_the_rounding(published: Folder) -> None:
    """For every layer; of the possible reduction, nearly all. The base stays the one of plain QLoRA."""
    import torch

    qlora = method(init="loftq", rank=8, alpha=32)
    original, model = plain("llama"), load(published, "llama", qlora)
    assert quantisation.fingerprint(model) == quantisation.fingerprint(load(published, "llama", method()))
    attached = attach(model, qlora)
    for name, layer in attached.get_base_model().named_modules():
        if not hasattr(layer, "lora_A") or not quantisation.is_quantised(layer.get_base_layer()):
            continue
        base = quantisation.weight_of(layer.get_base_layer())
        rest = original.get_submodule(name).weight - base
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        best, left = torch.linalg.svdvals(rest)[8:].norm(), (rest - update).detach().norm()
        assert float(best) <= float(left) * 1.0001
        assert float(left) < float(best) + 0.02 * float(rest.norm() - best)
        assert layer.get_base_layer().original is None
    start, base = logits(attached), logits(load(published, "llama", method()))
    whole = logits(original)
    assert float((start - whole).norm()) < 0.8 * float((base - whole).norm())


def test_loftq_needs_weights_that_are_not_rounded_yet(published: Folder) -> None:
    with pytest.raises(RecipeError, match=r"method\.init: loftq needs the weights before they were rounded"):
        attach(load(published, "llama", method()), method(init="loftq"))


def test_loftq_cannot_go_onto_the_original_base() -> None:
    with pytest.raises(NotMergeable, match="LoftQ"):
        method(init="loftq").on_original_base()


@pytest.mark.parametrize("block", [{}, {"quantisation": "int8"}, {"dora": True}, {"init": "gaussian"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_the_start_is_the_quantised_model(published: Folder, family: str, block: dict[str, Any]) -> None:
    qlora = method(**block)
    model = load(published, family, qlora)
    before = logits(model)
    attached = qlora.attach(model, builtin.tokenizer())
    assert qlora.identity_at_start
    assert float((logits(attached) - before).abs().max()) <= (1e-5 if qlora.dora else 0)
    assert not method(init="loftq").identity_at_start


def test_eva_reads_the_inputs_of_quantised_layers(published: Folder) -> None:
    import torch

    qlora = method(init="eva")
    model = qlora.attach(load(published, "llama", qlora), builtin.tokenizer())
    start = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_A." in name}
    qlora.prepare(model, [batch(model.get_base_model())] * 3, lambda module, inputs: module(**inputs))
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start)


# Refusals


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"init": "pissa"}, "init"),
        ({"init": "olora"}, "init"),
        ({"quantisation": "int8", "double_quantisation": False}, "double_quantisation"),
        ({"quantisation": "int8", "dora": True}, "dora"),
        ({"init": "loftq", "dora": True}, "dora"),
        ({"new_tokens": ["<a>", "<a>"]}, "new_tokens"),
    ],
)
def test_contradictions(block: dict[str, Any], field: str) -> None:
    assert [found for found, _ in method(**block).problems()] == [field]


def test_no_contradiction() -> None:
    for block in ({}, {"quantisation": "int8"}, {"dora": True}, {"init": "loftq"}, {"init": "eva"}):
        qlora = method(**block)
        assert qlora.problems() == []
        assert QLora.model_validate(qlora.model_dump()).problems() == []  # as a run stores and reads it


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MachineError, match=r"pip install bitsandbytes") as error:
        method().load_options(torch.float32)
    assert error.value.exit_code == 10
    with pytest.raises(MachineError, match=r"pip install bitsandbytes"):
        method().attach(plain("llama"), builtin.tokenizer())
