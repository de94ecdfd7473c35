"""Prefix tuning on tiny random models: the same function with pads, caches and recomputed activations, and in peft."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import distance, learn, model
from virtual_tokens import (
    CELLS,
    GENERATING,
    OTHERS,
    alone,
    assert_same,
    attached,
    by_row,
    furthest,
    gradients,
    greedy,
    in_peft,
    learning,
    other,
    padded,
    positions,
    rows,
)

from ftune import builtin, prefix_attention, targets
from ftune.errors import ArtifactError, NotMergeable, RecipeError
from ftune.methods.prefix import OWN, Prefix, load_prefix

LEARNING = re.compile(r".+\.prefix\.(keys|values|embedding|hidden\.weight|hidden\.bias|output\.weight)")
SHORT = Prefix(length=7)
ABSOLUTE = [("sequence", "bert"), ("sequence", "t5"), ("sequence", "bart"), ("seq2seq", "bart")]
"""Models that read a row with pads on the left differently, with a prefix or without: they count or pool pads."""
IN_PEFT = [cell for cell in CELLS if cell[1] not in ("t5", "bart")]
WIDTHS = {"llama": 32, "gpt2": 64, "qwen3": 32, "gemma3": 48, "bert": 64, "t5": 64, "bart": 64}
"""Heads of keys times channels, written down by hand."""
LAYERS = {"t5": 6, "bart": 6}
"""Attention layers where it is not 2: two of the encoder, and two with cross-attention of the decoder."""


def inputs(head: str, family: str, *, left: bool = False) -> dict[str, torch.Tensor]:
    return padded(rows(head, family), left=left)


# ----------------------------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_prefix_that_starts_as_tokens_is_those_tokens_as_context(family: str) -> None:
    text = "Answer:"
    ids = torch.tensor(builtin.tokenizer()(text)["input_ids"])
    question = rows("causal", family)[2][None]
    with torch.no_grad():
        expected = model("causal", family)(input_ids=torch.cat([ids[None], question], dim=1)).logits[:, len(ids) :]
        method = Prefix(length=len(ids), init="text", init_text=text)
        built = method.attach(model("causal", family), builtin.tokenizer())
        assert distance(built(input_ids=question).logits, expected) < 1e-5
        assert distance(built(input_ids=question, attention_mask=torch.ones_like(question)).logits, expected) < 1e-5


@pytest.mark.parametrize("head, family", CELLS)
def test_what_learns_is_the_prefix_and_the_head(head: str, family: str) -> None:
    for method, width in ((SHORT, 0), (Prefix(length=7, projection=8), 8)):
        built = model(head, family)
        shapes = method.target_shapes(built)
        assert set(shapes.values()) == {(2, WIDTHS[family])}
        heads = targets.head_modules(built)
        built = method.attach(built, builtin.tokenizer())
        found = learning(built)
        of_head = {name for name in found if any(name.startswith(f"{h}.") for h in heads)}
        assert {name for name in found if LEARNING.fullmatch(name)} == set(found) - of_head
        assert bool(of_head) == (head in ("sequence", "token"))
        layers = (2 if head == "token" else LAYERS.get(family, 2)) * 2 * WIDTHS[family]
        count = sum(parameter.numel() for name, parameter in found.items() if name not in of_head)
        assert count == 7 * layers + (0 if not width else 7 * width + width * width + width + width * layers)
        assert count == method.trainable_parameters(shapes)
        assert all(parameter.dtype == torch.float32 for parameter in found.values())
        with torch.device("meta"):
            skeleton = model(head, family)
        planned = method.skeleton().attach(skeleton, builtin.tokenizer())
        assert {n: p.shape for n, p in learning(planned).items()} == {n: p.shape for n, p in found.items()}


@pytest.mark.parametrize("head, family", CELLS)
def test_five_steps_move_all_that_learns_and_nothing_else(head: str, family: str) -> None:
    for method in (SHORT, Prefix(length=7, projection=8)):
        built = method.attach(model(head, family), builtin.tokenizer())
        before = {name: parameter.detach().clone() for name, parameter in built.named_parameters()}
        one_row = padded(rows(head, family), left=False)
        answer = {"decoder_input_ids": one_row["input_ids"]} if head == "seq2seq" else {}
        learn(built, {**one_row, **answer}, steps=5)
        for name, parameter in built.named_parameters():
            assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


@pytest.mark.parametrize("head, family", CELLS)
def test_every_layer_reads_its_prefix(head: str, family: str) -> None:
    built, given = attached(SHORT, head, family), inputs(head, family)
    before = by_row(built, head, given)
    for name in learning(built):
        if ".prefix." in name:
            changed = copy.deepcopy(built)
            changed.get_parameter(name).data.mul_(-2.0)
            # without position bias in its scores, cross-attention to one row of a batch may hardly move
            assert furthest(by_row(changed, head, given), before) > 1e-6, name


# ----------------------------------------------------------------------------------------- pads, caches, recomputation


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("head, family", CELLS)
def test_a_row_does_not_depend_on_its_pads(head: str, family: str, left: bool) -> None:
    built, given = attached(SHORT, head, family), inputs(head, family, left=left)
    expected = alone(built, head, rows(head, family))
    if left and (head, family) in ABSOLUTE:
        plain = model(head, family)
        assert furthest(by_row(plain, head, given), alone(plain, head, rows(head, family))) > 1e-3
        return
    if left and family == "bert":
        given = positions(given)
    assert furthest(by_row(built, head, given), expected) < 1e-5
    if head == "causal":
        assert furthest(by_row(built, head, positions(given)), expected) < 1e-5


@pytest.mark.parametrize("head, family", CELLS)
def test_recomputed_activations_leave_logits_and_gradients_as_they_are(head: str, family: str) -> None:
    for method in (SHORT, Prefix(length=7, projection=8)):
        built, given = attached(method, head, family), inputs(head, family)
        plain, logits = gradients(built, head, given), by_row(built, head, given)
        built.activation_checkpointing_enable({"use_reentrant": False})
        recomputed = gradients(built, head, given)
        assert set(plain) == set(recomputed)
        assert max(distance(plain[name], recomputed[name]) for name in plain) < 1e-6
        assert all(bool(gradient.any()) for gradient in recomputed.values())
        built.train()
        assert furthest(by_row(built, head, given), logits) < 1e-6


@pytest.mark.parametrize("head, family", GENERATING)
def test_generation_is_the_same_cached_or_not_alone_or_in_a_batch(head: str, family: str) -> None:
    built, found = attached(SHORT, head, family), rows(head, family)
    left = head == "causal"
    batch = greedy(built, head, padded(found, left=left))
    assert_same(batch, greedy(built, head, padded(found, left=left), use_cache=False))
    single = [greedy(built, head, padded([row], left=left)) for row in found]
    assert_same(batch, (torch.cat([ids for ids, _ in single]), torch.cat([logits for _, logits in single])))
    assert distance(batch[1], greedy(model(head, family), head, padded(found, left=left))[1]) > 1e-2


def test_a_sliding_window_never_loses_the_prefix() -> None:
    built = attached(SHORT, "causal", "gemma3")
    long = torch.randint(0, 250, (1, 90), generator=torch.Generator().manual_seed(3))  # the window is 32
    changed = copy.deepcopy(built)
    changed.model.layers[0].self_attn.prefix.values.data.mul_(-1.0)
    changed.model.layers[1].self_attn.prefix.values.data.zero_()
    built.model.layers[1].self_attn.prefix.values.data.zero_()
    with torch.no_grad():
        moved = (built(input_ids=long).logits - changed(input_ids=long).logits).abs().amax(dim=(0, 2))
    assert float(moved[60:].min()) > 1e-3


def test_rows_laid_end_to_end_each_see_the_prefix() -> None:
    for family in ("llama", "gpt2", "qwen3", "gemma3"):
        built, found = attached(SHORT, "causal", family), rows("causal", family)
        packed = {
            "input_ids": torch.cat(found)[None],
            "position_ids": torch.cat([torch.arange(len(row)) for row in found])[None],
        }
        with torch.no_grad():
            logits = built(**packed, use_cache=False).logits[0].split([len(row) for row in found])
        assert furthest(list(logits), alone(built, "causal", found)) < 1e-5


def test_two_models_in_one_process_do_not_meet() -> None:
    plain, given = model("causal", "llama"), inputs("causal", "llama")
    before = by_row(plain, "causal", given)
    one, other = (attached(SHORT, "causal", "llama", seed=seed) for seed in (1, 2))
    apart = [by_row(each, "causal", given) for each in (one, other)]
    assert furthest(*apart) > 1e-2 and furthest(apart[0], before) > 1e-2
    assert furthest(by_row(plain, "causal", given), before) == 0.0
    assert plain.config._attn_implementation == model("causal", "llama").config._attn_implementation == "sdpa"
    again = [by_row(each, "causal", given) for each in (one, other)]
    assert furthest(again[0], apart[0]) == furthest(again[1], apart[1]) == 0.0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert", "t5"])
def test_the_models_own_plain_attention_computes_the_same(family: str) -> None:
    head = {"bert": "sequence", "t5": "seq2seq"}.get(family, "causal")
    given = inputs(head, family)
    usual = by_row(attached(SHORT, head, family), head, given)
    built = model(head, family)
    built.set_attn_implementation("eager")
    torch.manual_seed(5)
    built = SHORT.attach(built, builtin.tokenizer())
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    assert furthest(by_row(built, head, given), usual) < 1e-5


def test_what_learns_stays_fp32_over_a_bf16_base() -> None:
    for head, family in (("causal", "llama"), ("sequence", "bert"), ("seq2seq", "t5")):
        base = model(head, family).bfloat16()
        built = Prefix(length=4, projection=8).attach(base, builtin.tokenizer())
        assert {parameter.dtype for parameter in learning(built).values()} == {torch.float32}
        found = gradients(built, head, inputs(head, family))
        assert all(bool(gradient.isfinite().all()) for gradient in found.values())
        assert {p.dtype for p in built.parameters() if not p.requires_grad} == {torch.bfloat16}


# --------------------------------------------------------------------------------------------------------- the artefact


@pytest.mark.parametrize("head, family", CELLS)
def test_the_artefact_holds_what_the_projection_made(tmp_path: Path, head: str, family: str) -> None:
    method = Prefix(length=7, projection=8)
    built, given = attached(method, head, family), inputs(head, family)
    method.save(built, tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    stored = load_file(weights)
    assert not [name for name in stored if "hidden" in name or "output" in name and "prefix" in name]
    head_size = sum(p.numel() for name, p in learning(built).items() if ".prefix." not in name)
    layers = (2 if head == "token" else LAYERS.get(family, 2)) * 2 * WIDTHS[family]
    assert sum(tensor.numel() for tensor in stored.values()) == 7 * layers + head_size
    fresh = Prefix().load(model(head, family, seed=9), tmp_path)
    assert not learning(fresh)
    assert furthest(by_row(fresh, head, given), by_row(built, head, given)) == 0.0
    with pytest.raises(ArtifactError, match="has a prefix already"):
        load_prefix(fresh, tmp_path)


@pytest.mark.parametrize("head, family", [("sequence", "llama"), ("sequence", "t5"), ("causal", "gpt2")])
def test_an_artefact_that_does_not_fit_is_refused(tmp_path: Path, head: str, family: str) -> None:
    SHORT.save(attached(SHORT, head, family), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = load_file(path)
    for name in [*sorted(whole)[:2], *sorted(whole)[-2:]]:
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(ArtifactError, match=f"Missing: .*{re.escape(name)}"):
            load_prefix(model(head, family), tmp_path)
        save_file({**whole, name: whole[name][..., :-1].contiguous()}, path)
        with pytest.raises(ArtifactError, match=re.escape(name.removeprefix("base_model."))):
            load_prefix(model(head, family), tmp_path)
    save_file({**whole, "more": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="unexpected: .*more"):
        load_prefix(model(head, family), tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_prefix(model(head, family), tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_prefix(model(head, family), tmp_path)


@pytest.mark.parametrize("head, family", IN_PEFT)
def test_plain_peft_computes_the_same(tmp_path: Path, head: str, family: str) -> None:
    built, found = attached(SHORT, head, family), rows(head, family)
    SHORT.save(built, tmp_path)
    theirs = in_peft(tmp_path, head, family)
    right, left = padded(found, left=False), positions(padded(found, left=True))
    assert furthest(by_row(theirs, head, right), by_row(built, head, right)) < 1e-6
    assert furthest(by_row(theirs, head, left), by_row(built, head, left)) < 1e-6
    if head == "causal":
        batch = padded(found, left=True)
        assert_same(greedy(theirs, head, batch), greedy(built, head, batch))


def test_peft_cannot_read_the_prefix_of_an_encoder_decoder(tmp_path: Path) -> None:
    for head, family in (("seq2seq", "t5"), ("seq2seq", "bart"), ("token", "t5")):
        folder = tmp_path / f"{head}-{family}"
        folder.mkdir()
        SHORT.save(attached(SHORT, head, family), folder)
        assert [path.name for path in folder.iterdir()] == [OWN]
        with pytest.raises(ValueError, match="adapter_config.json"):
            in_peft(folder, head, family)


def test_a_checkpoint_of_what_learns_goes_on_from_there() -> None:
    method = Prefix(length=7, projection=8)
    built, given = attached(method, "sequence", "llama"), inputs("sequence", "llama")
    state = {name: parameter.detach().clone() for name, parameter in learning(built).items()}
    again = attached(method, "sequence", "llama", seed=77)
    assert furthest(by_row(again, "sequence", given), by_row(built, "sequence", given)) > 1e-2
    again.load_state_dict(state, strict=False)
    assert furthest(by_row(again, "sequence", given), by_row(built, "sequence", given)) == 0.0


@pytest.mark.parametrize("kind", OTHERS)
def test_architectures_that_have_surprises(tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    head, settings = OTHERS[kind]
    found = rows(head, kind)
    torch.manual_seed(5)
    built = SHORT.attach(other(kind), builtin.tokenizer())
    given = padded(found, left=False, pad=settings["pad_token_id"])
    ours = by_row(built, head, given)
    assert furthest(ours, alone(built, head, found)) < 1e-5
    assert furthest(ours, by_row(other(kind), head, given)) > 1e-4
    SHORT.save(built, tmp_path)
    assert furthest(by_row(load_prefix(other(kind), tmp_path), head, given), ours) == 0.0
    assert (tmp_path / OWN).exists() == (kind in ("albert", "modernbert"))
    if not (tmp_path / OWN).exists():
        theirs = PeftModel.from_pretrained(other(kind), str(tmp_path)).eval()
        assert furthest(by_row(theirs, head, given), ours) < 1e-6


# ------------------------------------------------------------------------------------------------------- starts, errors


def test_a_random_start_has_the_size_of_real_keys_and_values() -> None:
    starts = {}
    for init in ("vocabulary", "random"):
        torch.manual_seed(3)
        built = Prefix(length=50, init=init).attach(model("causal", "llama"), builtin.tokenizer())
        starts[init] = prefix_attention.prefixes(built)
    for name, pair in starts["vocabulary"].items():
        for real, drawn in zip(pair, starts["random"][name], strict=True):
            assert distance(real, drawn) > 0.1
            assert 0.9 < float((drawn.std() / real.std()).detach()) < 1.1


def test_the_start_is_drawn_from_the_global_generator() -> None:
    for settings in ({}, {"init": "random"}, {"projection": 4}):
        built = [learning(attached(Prefix(length=5, **settings), "causal", "gpt2", seed=s)) for s in (1, 1, 2)]
        assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
        assert not all(torch.equal(built[0][name], built[2][name]) for name in built[0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"init": "text"}, "init_text: is missing"),
        ({"init_text": "Answer"}, "init_text: has no effect with init: vocabulary"),
        ({"init": "random", "init_text": "Answer"}, "init_text: has no effect with init: random"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    ((field, text),) = Prefix(**fields).problems()
    assert message in f"{field}: {text}"
    assert not Prefix(init="text", init_text="Answer").problems() and not Prefix().problems()


def test_a_prefix_merges_into_no_weight() -> None:
    built = attached(SHORT, "causal", "llama")
    assert not Prefix.mergeable and not SHORT.identity_at_start
    with pytest.raises(NotMergeable, match="change no weight of the model"):
        SHORT.merge(built)


def test_attention_that_cannot_be_extended_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bloom", vocab_size=272, hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(RecipeError, match=r"BloomForCausalLM computes it in a way that cannot be extended. Use lora"):
        SHORT.attach(AutoModelForCausalLM.from_config(config), builtin.tokenizer())


# ----------------------------------------------------------------------- canaries: what peft 0.21 cannot do, and we can


def test_canary_peft_refuses_recomputed_activations(tmp_path: Path) -> None:
    SHORT.save(attached(SHORT, "causal", "llama"), tmp_path)
    from peft import PeftModel

    before = model("causal", "llama")
    before.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        PeftModel.from_pretrained(before, str(tmp_path))
    after = in_peft(tmp_path, "causal", "llama").train()
    after.base_model.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(RuntimeError, match="must match the size"):
        after(**inputs("causal", "llama"))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_canary_peft_cannot_generate_without_a_cache(tmp_path: Path, family: str) -> None:
    SHORT.save(attached(SHORT, "causal", family), tmp_path)
    with pytest.raises(RuntimeError, match=r"must match the size|cannot be multiplied"):
        greedy(in_peft(tmp_path, "causal", family), "causal", inputs("causal", family, left=True), use_cache=False)


def test_canary_peft_counts_pads_on_the_left_as_positions(tmp_path: Path) -> None:
    SHORT.save(attached(SHORT, "causal", "llama"), tmp_path)
    theirs, given = in_peft(tmp_path, "causal", "llama"), inputs("causal", "llama", left=True)
    assert furthest(by_row(theirs, "causal", given), alone(theirs, "causal", rows("causal", "llama"))) > 1e-2


def test_canary_peft_loses_the_prefix_behind_a_sliding_window(tmp_path: Path) -> None:
    built = attached(SHORT, "causal", "gemma3")
    SHORT.save(built, tmp_path)
    long = rows("causal", "gemma3", (60,))
    ours, theirs = (alone(each, "causal", long)[0] for each in (built, in_peft(tmp_path, "causal", "gemma3")))
    assert distance(ours[:25], theirs[:25]) < 1e-5 and distance(ours[25:], theirs[25:]) > 1e-2


def test_canary_peft_has_no_prefix_for_classifiers_with_a_decoder() -> None:
    from peft import PrefixTuningConfig, get_peft_model

    for family in ("t5", "bart"):
        theirs = get_peft_model(
            model("sequence", family), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
        )
        with pytest.raises((ValueError, AttributeError, RuntimeError)):  # T5's mask, BART's name of the head
            theirs(**inputs("sequence", family))
