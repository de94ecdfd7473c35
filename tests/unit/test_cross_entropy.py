"""Losses from the logits of a few targets at a time: those of the whole, gradients included, and never more logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from bench import bench, two_steps
from laws import recipe, train

from ftune import builtin, cross_entropy, loss_trial, methods, objectives
from ftune.base import family_of
from ftune.cross_entropy import token_losses
from ftune.loss_trial import chunking_refusal
from ftune.model import auto_class
from ftune.scoring import evaluate

CELLS = [(head, family) for head in ("causal", "masked", "seq2seq") for family in tiny_models.FAMILIES[head]]
OBJECTIVES = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "seq2seq_lm"}
SPECIAL = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def learned(
    model: Any, head: str, inputs: dict[str, Any], weights: str = "alike", **options: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses at some places of three rows, and the gradients of their weighted sum."""
    positions = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
    generator = torch.Generator().manual_seed(2)
    places = (torch.rand(3, positions, generator=generator) < 0.6).nonzero(as_tuple=True)
    labels = torch.randint(0, 250, places[0].shape, generator=generator)
    given = inputs if head == "masked" else {**inputs, "use_cache": False}
    model.zero_grad(set_to_none=True)
    losses = token_losses(model, given, places, labels, **options)
    factor = torch.full_like(losses, 0.3) if weights == "alike" else torch.linspace(0.1, 1, len(losses))
    (losses * factor).sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(one: Any, other: Any, tolerance: float = 2e-6) -> None:
    assert torch.allclose(one[0], other[0], rtol=1e-6, atol=0)
    assert one[1].keys() == other[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    assert largest > 0
    assert max(float((one[1][n] - other[1][n]).abs().max()) for n in one[1]) <= tolerance * largest


@pytest.mark.parametrize("weights", ["alike", "unlike"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("head", "family"), CELLS)
def test_chunks_equal_the_whole(head: str, family: str, smoothing: float, weights: str) -> None:
    model = tiny_models.model(head, family).requires_grad_(True)
    inputs = tiny_models.batch(head, family)
    whole, chunks = (learned(model, head, inputs, weights, chunk=c, smoothing=smoothing) for c in (None, 5))
    assert_alike(whole, chunks)
    named = [name for name, _ in model.named_modules()]
    assert named == [name for name, _ in tiny_models.model(head, family).named_modules()], "the model is as it was"


@pytest.mark.parametrize(("head", "family"), CELLS)
def test_a_frozen_head_gets_no_gradient(head: str, family: str) -> None:
    model = tiny_models.model(head, family)
    layer = next(m for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm) or n.endswith("norm"))
    learns = list(layer.parameters())[0].requires_grad_(True)
    whole, chunks = (learned(model, head, tiny_models.batch(head, family), chunk=c) for c in (None, 5))
    assert_alike(whole, chunks)
    assert learns.grad is not None and len(chunks[1]) == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_no_zeros_as_large_as_the_logits_and_no_copy_of_the_head(family: str) -> None:
    """A product of a batch copies its weights for each item where they are kept in bf16."""
    model = tiny_models.model("causal", family)
    model.base_model.norm.weight.requires_grad_(True)
    head, inputs = model.get_output_embeddings().weight, {**tiny_models.batch("causal", family), "use_cache": False}
    places, labels = (torch.zeros(7, dtype=torch.int64), torch.arange(7)), torch.arange(7)
    with torch.profiler.profile(record_shapes=True) as profiled:
        token_losses(model, inputs, places, labels, chunk=7).sum().backward()
    seen = [(event.name, math.prod(event.input_shapes[-1 if "bmm" in event.name else 0]))
            for event in profiled.events() if event.input_shapes]  # fmt: skip
    assert ("aten::zero_", 7 * len(head)) not in seen
    assert ("aten::bmm", head.numel()) not in seen


def test_no_more_logits_than_a_chunk_of_targets() -> None:
    model = tiny_models.model("causal", "llama").requires_grad_(True)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 0].numel()))
    inputs = tiny_models.batch("causal", "llama")
    learned(model, "causal", inputs, chunk=5)
    assert max(seen) == 5 and sum(seen) == 23 + 1, "and one position while the body runs"
    seen.clear()
    with torch.no_grad():
        places = (torch.arange(3), torch.arange(3))
        token_losses(model, inputs, places, places[0], chunk=2)
    assert seen == [1, 2, 1]


def test_losses_in_half_precision_are_summed_in_fp32() -> None:
    model = tiny_models.model("causal", "qwen3").requires_grad_(True)
    inputs = tiny_models.batch("causal", "qwen3")
    exact = learned(model, "causal", inputs, chunk=None)
    model.bfloat16()
    whole, chunks = (learned(model, "causal", inputs, chunk=c) for c in (None, 5))
    assert whole[0].dtype == chunks[0].dtype == torch.float32
    errors = []
    for found in (whole, chunks):
        errors.append(sum(float((found[1][n].float() - g).square().sum()) for n, g in exact[1].items()) ** 0.5)
    assert errors[1] <= 1.1 * errors[0]


def test_losses_under_autocast() -> None:
    model = tiny_models.model("causal", "qwen3").requires_grad_(True)
    inputs = tiny_models.batch("causal", "qwen3")
    exact = learned(model, "causal", inputs, chunk=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, chunks = (learned(model, "causal", inputs, chunk=c) for c in (None, 5))
    errors = [sum(float((f[1][n] - g).square().sum()) for n, g in exact[1].items()) ** 0.5 for f in (whole, chunks)]
    assert errors[1] <= 1.1 * errors[0]


def test_rows_without_targets_give_gradients_of_zero() -> None:
    model = tiny_models.model("causal", "llama").requires_grad_(True)
    none = torch.zeros(0, dtype=torch.int64)
    losses = token_losses(model, tiny_models.batch("causal", "llama"), (none, none), none, chunk=5)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert not model.lm_head.weight.grad.any() and not model.model.norm.weight.grad.any()


# the trial


def refusal(kind: str, method: str = "full", **settings: Any) -> str | None:
    known = dict(transformers.AutoConfig.for_model(kind).to_dict())
    small = {"num_hidden_layers": 2} if "num_hidden_layers" in known else {}
    config = transformers.AutoConfig.for_model(kind, **{**SPECIAL, **small, **settings})
    name = OBJECTIVES[family_of(config)]
    objective = objectives.load(name)(name=name)
    block = methods.load(method)(name=method)
    return chunking_refusal(config, auto_class(objective.head((), 0), config), objective, block, builtin.tokenizer())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("cohere", {"logit_scale": 3.0}),
        ("granite", {"logits_scaling": 7.0}),
        ("gpt_neox", {}),
        ("mistral", {}),
        ("roberta", {}),
        ("modernbert", {"cls_token_id": 1, "sep_token_id": 2}),
        ("distilbert", {}),
        ("blenderbot", {"decoder_start_token_id": 1}),
        ("t5", {"decoder_start_token_id": 0, "tie_word_embeddings": True}),
    ],
)
def test_a_trial_finds_caps_scales_biases_and_transforms_kept(kind: str, settings: dict[str, Any]) -> None:
    assert refusal(kind, **settings) is None


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "adapter", "qlora"])
@pytest.mark.parametrize(("kind", "settings"), [("llama", {}), ("t5", {"decoder_start_token_id": 0})])
def test_a_trial_with_every_method(kind: str, settings: dict[str, Any], method: str) -> None:
    assert refusal(kind, method, **settings) is None


def test_a_model_that_goes_around_its_body_is_refused() -> None:
    assert "could not be tried on opt" in str(refusal("opt"))


@pytest.mark.parametrize(("what", "factor"), [("losses", 1.001), ("gradients", 1.0)])
def test_a_trial_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, what: str, factor: float) -> None:
    true = cross_entropy._into_slopes

    def wrong(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, slopes: bool) -> torch.Tensor:
        losses = true(logits, labels, smoothing, slopes) * factor
        if what == "gradients" and slopes:
            logits *= 1.001
        return losses

    monkeypatch.setattr(cross_entropy, "_into_slopes", wrong)
    assert f"other {what}" in str(refusal("llama"))


def test_a_wrapped_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    true = loss_trial._learned

    def wrapped(objective: Any, model: Any, batch: Any) -> Any:
        model.forward = model.forward
        return true(objective, model, batch)

    monkeypatch.setattr(loss_trial, "_learned", wrapped)
    assert "was replaced" in str(refusal("llama"))


# training


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["full", {"name": "lora", "rank": 4, "new_tokens": ["<call>"]}])
def test_training_takes_the_same_steps(tmp_path: Any, monkeypatch: Any, method: Any, packing: bool) -> None:
    from ftune import decide

    found = []
    for chunk in (5, None):
        monkeypatch.setattr(decide, "choose_loss_chunk", lambda *known, chunk=chunk: (chunk, "for a test"))
        train = {"duration": "2 steps", "batch_size": 8, "micro_batch_size": 4, "optimizer": "sgd",
                 "learning_rate": 1e-2, "max_grad_norm": None}  # fmt: skip
        sections = {"model": "builtin:tiny-qwen3", "method": method, "train": train, "data": {"packing": packing}}
        found.append(two_steps(recipe(tmp_path / str(chunk), **sections)))
    chunks, whole = found
    for step in ("first/", "second/"):
        names = [name for name in whole if name.startswith(step)]
        largest = max(float(whole[name].abs().max()) for name in names)
        assert max(float((chunks[name] - whole[name]).abs().max()) for name in names) <= 2e-6 * largest
    assert torch.allclose(chunks["losses"], whole["losses"], rtol=1e-6, atol=0)
    assert torch.allclose(chunks["nats"], whole["nats"], rtol=1e-5, atol=0)


def test_the_plan_says_how_losses_are_computed(tmp_path: Any) -> None:
    plan = bench(recipe(tmp_path)).plan
    assert plan.loss_chunk == 2**24 // builtin.VOCABULARY and "a trial" in plan.sources["loss_chunk"]


@pytest.mark.parametrize("target", ["run", "recipe.yaml"])
def test_scoring_computes_them_so_too(tmp_path: Any, monkeypatch: Any, target: str) -> None:
    """Of a run, as its plan has it; of a base model, after a trial of its own."""
    loaded = recipe(tmp_path, data={"eval": "rows.jsonl"}, train={"duration": "1 steps", "batch_size": 4})
    if target == "run":
        train(loaded)
    asked = []

    def noted(*given: Any, chunk: int | None, **options: Any) -> Any:
        asked.append(chunk)
        return token_losses(*given, chunk=chunk, **options)

    monkeypatch.setattr(objectives.causal_lm, "token_losses", noted)
    scored = evaluate(
        loaded.output_dir if target == "run" else loaded.path, split="eval", data_file=None, metrics=None,
        max_rows=None, batch_size=4, overrides=(), tick=lambda *_: None,
    )  # fmt: skip
    assert scored.rows == 11
    in_trial = {None, loss_trial.CHUNK} if target != "run" else set()
    assert set(asked) == {2**24 // builtin.VOCABULARY} | in_trial
