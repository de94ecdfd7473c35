"""Prompt tuning on tiny random models: outputs cover the text alone, whatever pads, caches and heads there are."""

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

from ftune import builtin, targets, virtual
from ftune.errors import ArtifactError, NotMergeable, RecipeError
from ftune.methods.prompt import Prompt, load_prompt

LEARNING = re.compile(r".+\.soft_prompt\.weight")
SHORT = Prompt(length=7)
ABSOLUTE = [("sequence", "t5"), ("sequence", "bart"), ("seq2seq", "bart")]
"""Models that read a row with pads on the left differently, with a prompt or without: they count or pool pads."""
IN_PEFT = [cell for cell in CELLS if cell[0] != "sequence" or cell[1] == "bert"]
"""Where peft pools a pad or refuses embeddings, it computes another function."""


def inputs(head: str, family: str, *, left: bool = False) -> dict[str, torch.Tensor]:
    return padded(rows(head, family), left=left)


# ----------------------------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_prompt_that_starts_as_text_is_that_text_as_context(family: str) -> None:
    text = "Answer:"
    ids = torch.tensor(builtin.tokenizer()(text)["input_ids"])
    question = rows("causal", family)[2][None]
    method = Prompt(length=len(ids), init="text", init_text=text)
    with torch.no_grad():
        expected = model("causal", family)(input_ids=torch.cat([ids[None], question], dim=1)).logits[:, len(ids) :]
        built = method.attach(model("causal", family), builtin.tokenizer())
        for given in ({}, {"attention_mask": torch.ones_like(question)}, {"use_cache": False}):
            assert distance(built(input_ids=question, **given).logits, expected) < 1e-6


def test_text_of_another_length_is_repeated_or_cut() -> None:
    tokenizer, base = builtin.tokenizer(), model("causal", "llama")
    for length, text in ((7, "abcabca"), (3, "abc"), (2, "ab")):
        ids = virtual.real_tokens(base, tokenizer, length, "abc")
        assert tokenizer.decode(ids) == text
    drawn = virtual.real_tokens(base, tokenizer, 300, None)
    assert len(drawn) == 300 and not set(drawn.tolist()) & set(tokenizer.all_special_ids)
    assert len(set(drawn[:256].tolist())) == 256


@pytest.mark.parametrize("head, family", CELLS)
def test_what_learns_is_the_prompt_and_the_head(head: str, family: str) -> None:
    built = model(head, family)
    shapes, heads = SHORT.target_shapes(built), targets.head_modules(built)
    embeddings = built.get_input_embeddings().weight.clone()
    torch.manual_seed(4)
    built = SHORT.attach(built, builtin.tokenizer())
    found = learning(built)
    of_head = {name for name in found if any(name.startswith(f"{h}.") for h in heads)}
    (prompt,) = set(found) - of_head
    assert LEARNING.fullmatch(prompt) and bool(of_head) == (head in ("sequence", "token"))
    assert found[prompt].numel() == 7 * 64 == SHORT.trainable_parameters(shapes)
    assert all(parameter.dtype == torch.float32 for parameter in found.values())
    scale = 8.0 if family == "gemma3" else 1.0  # it multiplies embeddings by the root of the width
    apart = (found[prompt].detach()[:, None] - scale * embeddings[None]).abs().amax(dim=2).min(dim=1).values
    assert float(apart.max()) < 1e-6
    with torch.device("meta"):
        skeleton = model(head, family)
    planned = SHORT.skeleton().attach(skeleton, builtin.tokenizer())
    assert {n: p.shape for n, p in learning(planned).items()} == {n: p.shape for n, p in found.items()}


@pytest.mark.parametrize("head, family", CELLS)
def test_five_steps_move_all_that_learns_and_nothing_else(head: str, family: str) -> None:
    built = SHORT.attach(model(head, family), builtin.tokenizer())
    before = {name: parameter.detach().clone() for name, parameter in built.named_parameters()}
    given = inputs(head, family)
    answer = {"decoder_input_ids": given["input_ids"]} if head == "seq2seq" else {}
    learn(built, {**given, **answer}, steps=5)
    for name, parameter in built.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


@pytest.mark.parametrize("head, family", CELLS)
def test_every_virtual_token_counts(head: str, family: str) -> None:
    built, given = attached(SHORT, head, family), inputs(head, family)
    before = by_row(built, head, given)
    for token in range(7):
        changed = copy.deepcopy(built)
        virtual.soft_prompt(changed).data[token] *= -2.0
        assert furthest(by_row(changed, head, given), before) > 1e-6, token


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


def test_pads_on_the_left_do_not_push_the_prompt_out_of_a_window() -> None:
    built, found = attached(SHORT, "causal", "gemma3"), rows("causal", "gemma3", (20, 60))  # the window is 32
    given = padded(found, left=True)
    assert furthest(by_row(built, "causal", given), alone(built, "causal", found)) < 1e-5


def test_token_types_of_the_text_stay_with_it() -> None:
    built, found = attached(SHORT, "token", "bert"), rows("token", "bert")
    given = inputs("token", "bert")
    kinds = (torch.arange(14) % 2).expand(3, -1)
    with torch.no_grad():
        marked = built(**given, token_type_ids=kinds).logits
        single = [built(input_ids=row[None], token_type_ids=kinds[:1, : len(row)]).logits[0] for row in found]
    assert furthest([marked[i, : len(row)] for i, row in enumerate(found)], single) < 1e-5
    assert furthest(list(marked), by_row(built, "token", {**given, "attention_mask": torch.ones(3, 14)})) > 1e-3


@pytest.mark.parametrize("head, family", CELLS)
def test_recomputed_activations_leave_logits_and_gradients_as_they_are(head: str, family: str) -> None:
    built, given = attached(SHORT, head, family), inputs(head, family)
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
    assert distance(batch[1], greedy(model(head, family), head, padded(found, left=left))[1]) > 1e-3


def test_hidden_states_cover_the_text_alone() -> None:
    built, given = attached(SHORT, "causal", "llama"), inputs("causal", "llama")
    with torch.no_grad():
        found = built(**given, output_hidden_states=True)
    assert [states.shape[1] for states in found.hidden_states] == [14, 14, 14]
    assert built(**given, logits_to_keep=1).logits.shape == (3, 1, 272)


def test_packed_rows_are_refused() -> None:
    built = attached(SHORT, "causal", "llama")
    packed = {"input_ids": torch.ones(1, 6).long(), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
    with pytest.raises(RecipeError, match="data.packing: a soft prompt stands before each row"):
        built(**packed, use_cache=False)
    with pytest.raises(RecipeError, match="method.name: a soft prompt needs an attention mask of rows and columns"):
        built(input_ids=packed["input_ids"], attention_mask=torch.ones(1, 1, 6, 6).bool())


def test_two_models_in_one_process_do_not_meet() -> None:
    plain, given = model("causal", "gpt2"), inputs("causal", "gpt2")
    before = by_row(plain, "causal", given)
    one, other = (attached(SHORT, "causal", "gpt2", seed=seed) for seed in (1, 2))
    assert furthest(by_row(one, "causal", given), by_row(other, "causal", given)) > 1e-2
    assert furthest(by_row(plain, "causal", given), before) == 0.0


def test_what_learns_stays_fp32_over_a_bf16_base() -> None:
    for head, family in (("causal", "llama"), ("sequence", "bert"), ("sequence", "t5"), ("token", "gpt2")):
        base = model(head, family).bfloat16()
        built = Prompt(length=4).attach(base, builtin.tokenizer())
        assert {parameter.dtype for parameter in learning(built).values()} == {torch.float32}
        found = gradients(built, head, inputs(head, family))
        assert all(bool(gradient.isfinite().all()) for gradient in found.values())
        assert {p.dtype for p in built.parameters() if not p.requires_grad} == {torch.bfloat16}


# --------------------------------------------------------------------------------------------------------- the artefact


@pytest.mark.parametrize("head, family", CELLS)
def test_the_artefact_gives_the_same_logits_on_a_fresh_base(tmp_path: Path, head: str, family: str) -> None:
    built, given = attached(SHORT, head, family), inputs(head, family)
    SHORT.save(built, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in learning(built).values())
    fresh = Prompt(length=3).load(model(head, family, seed=9), tmp_path)
    assert not learning(fresh)
    assert furthest(by_row(fresh, head, given), by_row(built, head, given)) == 0.0
    with pytest.raises(ArtifactError, match="has a soft prompt already"):
        load_prompt(fresh, tmp_path)


@pytest.mark.parametrize("head, family", [("sequence", "llama"), ("sequence", "t5"), ("causal", "gpt2")])
def test_an_artefact_that_does_not_fit_is_refused(tmp_path: Path, head: str, family: str) -> None:
    SHORT.save(attached(SHORT, head, family), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    for name in whole:
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(ArtifactError, match=f"Missing: .*{re.escape(name)}"):
            load_prompt(model(head, family), tmp_path)
        save_file({**whole, name: whole[name][..., :-1].contiguous()}, path)
        with pytest.raises(ArtifactError, match=re.escape(name.removeprefix("base_model."))):
            load_prompt(model(head, family), tmp_path)
    save_file({**whole, "more": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="unexpected: .*more"):
        load_prompt(model(head, family), tmp_path)
    save_file({**whole, "prompt_embeddings": torch.ones(64)}, path)
    with pytest.raises(ArtifactError, match="has 1 dimensions, not 2"):
        load_prompt(model(head, family), tmp_path)


@pytest.mark.parametrize("head, family", IN_PEFT)
def test_plain_peft_computes_the_same(tmp_path: Path, head: str, family: str) -> None:
    built, found = attached(SHORT, head, family), rows(head, family)
    SHORT.save(built, tmp_path)
    theirs, given = in_peft(tmp_path, head, family), padded(found, left=False)
    with torch.no_grad():
        seen = theirs(**given, **({"decoder_input_ids": given["input_ids"]} if head == "seq2seq" else {})).logits
        ours = built(**given, **({"decoder_input_ids": given["input_ids"]} if head == "seq2seq" else {})).logits
    if head in ("causal", "token"):
        keep = given["attention_mask"].bool()
        seen, ours = seen[:, 7:][keep], ours[keep]
    assert distance(seen, ours) < 1e-6
    if head in ("causal", "seq2seq"):
        for row in found:
            assert_same(greedy(theirs, head, padded([row], left=True)), greedy(built, head, padded([row], left=True)))


def test_a_checkpoint_of_what_learns_goes_on_from_there() -> None:
    built, given = attached(SHORT, "sequence", "gpt2"), inputs("sequence", "gpt2")
    state = {name: parameter.detach().clone() for name, parameter in learning(built).items()}
    again = attached(SHORT, "sequence", "gpt2", seed=77)
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
    assert furthest(by_row(load_prompt(other(kind), tmp_path), head, given), ours) == 0.0
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(other(kind), str(tmp_path)).eval()(**given).logits
    if head != "sequence":
        keep = given["attention_mask"].bool()
        theirs = [row[7:][real] for row, real in zip(theirs, keep, strict=True)]
    apart = furthest(list(theirs), ours)
    assert apart > 1e-3 if kind == "modernbert" else apart < 1e-6  # peft counts virtual tokens into the mean


# ------------------------------------------------------------------------------------------------------- starts, errors


def test_a_random_start_has_the_size_of_real_embeddings() -> None:
    starts = {}
    for init in ("vocabulary", "random"):
        torch.manual_seed(3)
        built = Prompt(length=100, init=init).attach(model("causal", "llama"), builtin.tokenizer())
        starts[init] = virtual.soft_prompt(built).detach()
    assert distance(starts["vocabulary"], starts["random"]) > 0.1
    assert 0.9 < float(starts["random"].std() / starts["vocabulary"].std()) < 1.1


def test_the_start_is_drawn_from_the_global_generator() -> None:
    for settings in ({}, {"init": "random"}):
        built = [learning(attached(Prompt(length=5, **settings), "causal", "gpt2", seed=s)) for s in (1, 1, 2)]
        assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
        assert not any(torch.equal(built[0][name], built[2][name]) for name in built[0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"init": "text"}, "init_text: is missing"),
        ({"init_text": "Answer"}, "init_text: has no effect with init: vocabulary"),
        ({"init": "random", "init_text": "Answer"}, "init_text: has no effect with init: random"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    ((field, text),) = Prompt(**fields).problems()
    assert message in f"{field}: {text}"
    assert not Prompt(init="text", init_text="Answer").problems() and not Prompt().problems()


def test_a_prompt_merges_into_no_weight() -> None:
    built = attached(SHORT, "causal", "llama")
    assert not Prompt.mergeable and not SHORT.identity_at_start
    with pytest.raises(NotMergeable, match="changes no weight of the model"):
        SHORT.merge(built)


def test_a_head_that_goes_around_the_body_is_refused() -> None:
    built = model("causal", "llama")
    with pytest.raises(RecipeError, match="needs a place before the text, and LlamaForCausalLM has none"):
        virtual.check_reached(built, torch.nn.Identity())


# ----------------------------------------------------------------------- canaries: what peft 0.21 cannot do, and we can


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_canary_peft_pools_a_pad_on_the_right(tmp_path: Path, family: str) -> None:
    SHORT.save(attached(SHORT, "sequence", family), tmp_path)
    theirs, given = in_peft(tmp_path, "sequence", family), inputs("sequence", family)
    assert furthest(by_row(theirs, "sequence", given), alone(theirs, "sequence", rows("sequence", family))) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_canary_peft_ignores_the_positions_of_rows_with_pads_on_the_left(tmp_path: Path, family: str) -> None:
    SHORT.save(attached(SHORT, "causal", family), tmp_path)
    theirs, found = in_peft(tmp_path, "causal", family), rows("causal", family)
    batch = greedy(theirs, "causal", padded(found, left=True))[1]
    single = torch.cat([greedy(theirs, "causal", padded([row], left=True))[1] for row in found])
    assert distance(batch[0], single[0]) > 1e-2 and distance(batch[2], single[2]) < 1e-5


def test_canary_peft_returns_logits_of_virtual_tokens_too(tmp_path: Path) -> None:
    SHORT.save(attached(SHORT, "causal", "llama"), tmp_path)
    given = inputs("causal", "llama")
    assert in_peft(tmp_path, "causal", "llama")(**given).logits.shape[1] == given["input_ids"].shape[1] + 7


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_canary_peft_has_no_prompt_for_classifiers_with_a_decoder(tmp_path: Path, family: str) -> None:
    SHORT.save(attached(SHORT, "sequence", family), tmp_path)
    with pytest.raises(NotImplementedError, match="Passing input embeddings is currently not supported"):
        in_peft(tmp_path, "sequence", family)(**inputs("sequence", family))
