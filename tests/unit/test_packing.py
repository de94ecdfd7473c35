"""Law 10: rows end to end give the losses and gradients of rows side by side, and never see each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bench import bench, two_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import BLOCKS, recipe
from tiny_models import HEADS

from ftune import attention, builtin
from ftune.attention import packed_arguments, packing_refusal, use_packed_attention
from ftune.data.encode import Example
from ftune.data.order import window
from ftune.data.pack import Cut, first_fit, least_padded
from ftune.errors import RecipeError
from ftune.objectives._packed import end_to_end

DECODERS = ("llama", "gpt2", "qwen3", "gemma3")
PAIRS = [("causal", family) for family in DECODERS] + [("masked", "bert"), ("token", "bert"), ("token", "qwen3")]
SPECIAL = {"llama": {}, "gpt2": {}, "qwen3": {}, "gemma3": {"sliding_window": 4}, "bert": {}}
"""Windows shorter than the rows."""


def example(length: int, number: int = 0) -> Example:
    ids = (np.arange(length) * 7 + number * 13 + 3).astype(np.int32) % 250
    return Example(ids, np.arange(length) > 0, length, "rows.jsonl", number)


def tiny(head: str, family: str, **changed: Any) -> Any:
    config = builtin.config(family)
    for key, value in {**SPECIAL[family], **changed}.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    model = getattr(transformers, HEADS[head]).from_config(config).eval()
    use_packed_attention(model)
    return model


def said_of(model: Any, rows: list[Example]) -> torch.Tensor:
    """Logits of every token, rows end to end."""
    batch = end_to_end(rows)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        return model(**inputs, **packed_arguments(batch["lengths"], torch.device("cpu"))).logits[0]


# the model


@pytest.mark.parametrize(("head", "family"), PAIRS)
def test_rows_end_to_end_equal_rows_alone(head: str, family: str) -> None:
    model = tiny(head, family)
    rows = [example(length, number) for number, length in enumerate((9, 9, 9, 2, 6, 1, 9))]
    packed = said_of(model, rows)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.from_numpy(r.ids).long()[None]).logits[0] for r in rows])
    assert float((packed - alone).abs().max()) <= 2e-6 * float(alone.abs().max())


@pytest.mark.parametrize(("head", "family"), PAIRS)
def test_a_token_of_one_row_changes_no_bit_of_the_others(head: str, family: str) -> None:
    model = tiny(head, family)
    rows = [example(length, number) for number, length in enumerate((8, 8, 5, 8, 3))]
    before = said_of(model, rows).split([len(row.ids) for row in rows])
    for changed in range(len(rows)):
        ids = rows[changed].ids.copy()
        ids[0] += 1
        others = [*rows[:changed], Example(ids, rows[changed].is_target, 1, "f", 1), *rows[changed + 1 :]]
        after = said_of(model, others).split([len(row.ids) for row in rows])
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(one, other) == (number != changed)


def test_a_model_that_understands_segments_reads_plain_batches_as_before() -> None:
    plain = transformers.AutoModelForCausalLM.from_config(builtin.config("llama")).eval()
    ids = torch.arange(24).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        wanted = plain(input_ids=ids, attention_mask=mask).logits
        use_packed_attention(plain)
        assert torch.equal(plain(input_ids=ids, attention_mask=mask).logits, wanted)
        assert plain.generate(ids[:1], max_new_tokens=4, do_sample=False).shape == (1, 16)
    assert "ftune" not in plain.config.to_json_string()


# the trial


@pytest.mark.parametrize(("head", "family"), PAIRS)
def test_a_trial_finds_the_families_isolated(head: str, family: str) -> None:
    assert packing_refusal(builtin.config(family), getattr(transformers, HEADS[head])) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("qwen3_next", "linear_attention"),
        ("jamba", "linear_attention"),
        ("gemma2", "softcap"),
        ("bloom", "bloom could not be run"),
        ("gpt_oss", "s_aux"),
        ("modernbert", "window on both sides"),
    ],
)
def test_models_that_do_not_isolate_rows_are_found(kind: str, reason: str) -> None:
    settings = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "modernbert":
        settings |= {"cls_token_id": 1, "sep_token_id": 2}
    head = "masked" if kind == "modernbert" else "causal"
    config = transformers.AutoConfig.for_model(kind, **settings)
    assert reason in str(packing_refusal(config, getattr(transformers, HEADS[head])))


def test_what_attention_computes_backward_grows_with_tokens_and_not_with_tokens_times_rows() -> None:
    allocated = []
    for lengths in ([400], [3, 5] * 50):
        states = torch.randn(1, 2, 400, 8, requires_grad=True)
        arguments = packed_arguments(torch.tensor(lengths), torch.device("cpu"))
        out, _ = attention._attention(torch.nn.Module(), states, states, states, **without_cache(arguments))
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
            out.sum().backward()
        allocated.append(sum(max(0, event.self_cpu_memory_usage) for event in seen.events()))
    assert allocated[1] <= 3 * allocated[0]


@pytest.mark.parametrize("turned", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [attention.SHORT - 1, attention.SHORT])
def test_short_rows_in_bf16_are_attended_to_in_fp32(length: int, turned: torch.dtype) -> None:
    """Whatever autocast says, and alone as beside others: what is rounded is the result.

    Where weights are kept in fp32, queries and keys are so too, since rotations are.
    """
    torch.manual_seed(0)
    states = torch.randn(1, 2, length + 9, 8).bfloat16().requires_grad_()
    arguments = without_cache(packed_arguments(torch.tensor([length, 9]), torch.device("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = attention._attention(torch.nn.Module(), states.to(turned), states.to(turned), states, **arguments)
    exact, _ = attention._attention(torch.nn.Module(), *[states.float()] * 3, **arguments)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed[:, :length], exact[:, :length].bfloat16()) == (length < attention.SHORT)
    assert torch.equal(mixed[:, length:], exact[:, length:].bfloat16())
    mixed.sum().backward()
    assert states.grad is not None and states.grad.dtype == torch.bfloat16


def without_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "use_cache"}


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose attention gets no segments sees the whole sequence."""
    from ftune import attention

    def blind(lengths: torch.Tensor, device: torch.device) -> dict[str, Any]:
        return packed_arguments(lengths.sum(dim=0, keepdim=True), device)

    attention._probed.cache_clear()
    monkeypatch.setattr(attention, "packed_arguments", blind)
    refusal = packing_refusal(builtin.config("llama"), transformers.AutoModelForCausalLM)
    attention._probed.cache_clear()
    assert refusal is not None and "other answers" in refusal


# packs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 80))
def test_packs_hold_every_example_once_and_no_more_than_they_may(lengths: list[int], capacity: int) -> None:
    rows = [example(length, number) for number, length in enumerate(sorted(lengths, reverse=True))]
    packs = first_fit(rows, capacity)
    assert sorted(row.number for pack in packs for row in pack) == list(range(len(rows)))
    assert all(sum(row.num_tokens for row in pack) <= capacity for pack in packs)
    fewest = -(-sum(lengths) // capacity)
    assert len(packs) <= 11 / 9 * fewest * 1.7 + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 3))
def test_a_window_holds_the_same_rows_packed_or_not(count: int, batch_size: int, seed: int) -> None:
    rows = [example(1 + number * 5 % 11, number) for number in range(count)]
    for step in range(4):
        cuts = (Cut(2), Cut(9, 16, packed=True), Cut(9, 16), Cut(9, 16, 4))
        plain, *others = (window(rows, step, batch_size=batch_size, cut=cut, seed=seed) for cut in cuts)
        numbers = [sorted(e.number for batch in work.micro_batches for e in batch) for work in (plain, *others)]
        assert numbers == [numbers[0]] * 4
        assert all((plain.num_tokens, plain.num_targets) == (work.num_tokens, work.num_targets) for work in others)
        assert all(sum(e.num_tokens for e in batch) <= 16 for batch in others[0].micro_batches)
        padded = [len(batch) * batch[0].num_tokens for work in others[1:] for batch in work.micro_batches]
        assert max(padded) <= 16


def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put rows into groups."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for groups in partitions(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


def padded_cost(groups: Iterable[Sequence[Example]], overhead: int) -> int:
    """Tokens with pads of rows side by side, and what each forward costs by itself."""
    return sum(
        overhead
        + len(group)
        * (max(len(e.ids) for e in group) + max(len(e.answer) if e.answer is not None else 0 for e in group))
        for group in groups
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 40), st.sampled_from([0, 3, 50]))
def test_no_way_to_pad_rows_costs_less(lengths: list[int], capacity: int, overhead: int) -> None:
    """Against every way to put rows into groups, neighbours or not."""
    rows = [example(length, number) for number, length in enumerate(sorted(lengths, reverse=True))]
    found = [rows[part] for part in least_padded(rows, capacity, overhead)]
    assert [row.number for group in found for row in group] == list(range(len(rows)))

    def fits(group: list[int]) -> bool:
        return len(group) == 1 or len(group) * max(lengths_of[i] for i in group) <= capacity

    lengths_of = sorted(lengths, reverse=True)
    assert all(fits([row.number for row in group]) for group in found)
    possible = [groups for groups in partitions(list(range(len(rows)))) if all(map(fits, groups))]
    assert padded_cost(found, overhead) == min(
        padded_cost([[rows[i] for i in g] for g in groups], overhead) for groups in possible
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.integers(1, 60))
def test_texts_and_answers_are_padded_apart(lengths: list[tuple[int, int]], capacity: int) -> None:
    """Against every way to cut the sorted rows of an encoder-decoder."""
    rows = [
        replace(example(text, number), answer=np.zeros(answer, dtype=np.int32))
        for number, (text, answer) in enumerate(sorted(lengths, key=sum, reverse=True))
    ]
    found = [rows[part] for part in least_padded(rows, capacity, 5)]
    costs = []
    for marks in itertools.product([False, True], repeat=len(rows) - 1):
        edges = [0, *(i for i, mark in enumerate(marks, 1) if mark), len(rows)]
        groups = [rows[one:other] for one, other in itertools.pairwise(edges)]
        if all(len(group) == 1 or padded_cost([group], 0) <= capacity for group in groups):
            costs.append(padded_cost(groups, 5))
    assert padded_cost(found, 5) == min(costs)


def test_forwards_are_large_where_they_cost_much_by_themselves() -> None:
    rows = [example(length, number) for number, length in enumerate([40, 12, 11, 10, 3, 2])]
    lengths = {
        overhead: [[row.num_tokens for row in rows[part]] for part in least_padded(rows, 1000, overhead)]
        for overhead in (0, 8, 10_000)
    }
    assert lengths[0] == [[40], [12], [11], [10], [3], [2]]
    assert lengths[8] == [[40], [12, 11, 10], [3, 2]]
    assert lengths[10_000] == [[40, 12, 11, 10, 3, 2]]
    assert [rows[part] for part in least_padded(rows, 30, 10_000)][0] == [rows[0]], "above the capacity: alone"


def test_an_explicit_number_of_rows_is_obeyed() -> None:
    rows = [example(length, number) for number, length in enumerate([9, 7, 5, 3, 1])]
    assert [len(group) for group in Cut(2).of(rows)] == [2, 2, 1]
    assert [len(group) for group in Cut(2, None, 4, packed=False).of(rows)] == [2, 2, 1]


def test_rows_end_to_end_begin_at_position_0() -> None:
    batch = end_to_end([example(3), example(1, 1), example(2, 2)])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["lengths"].tolist() == [3, 1, 2]
    assert batch["is_target"].tolist() == [[False, True, True, False, False, True]]
    assert batch["labels"].tolist() == batch["input_ids"].tolist()


# training


def packed_and_not(folder: Path, **sections: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = {
        "train": {"duration": "2 steps", "batch_size": 8, "micro_batch_size": 4, "optimizer": "sgd",
                  "learning_rate": 1e-2, "max_grad_norm": None},
    }  # fmt: skip
    data = sections.pop("data", {})
    found = []
    for packing in (True, False):
        named = {**shared, **sections, "data": {**data, "packing": packing}}
        found.append(two_steps(recipe(folder / str(packing), **named)))
    return found[0], found[1]


def assert_equal_steps(packed: dict[str, Any], plain: dict[str, Any]) -> None:
    for step in ("first/", "second/"):
        names = [name for name in plain if name.startswith(step)]
        largest = max(float(plain[name].abs().max()) for name in names)
        assert largest > 1e-4
        assert max(float((packed[name] - plain[name]).abs().max()) for name in names) <= 2e-6 * largest
    assert torch.allclose(packed["losses"], plain["losses"], rtol=1e-6, atol=0)
    assert torch.allclose(packed["nats"], plain["nats"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_law_10_gradients_of_decoders(tmp_path: Path, method: str, family: str) -> None:
    block = {"name": method, **BLOCKS.get(method, {})}
    assert_equal_steps(*packed_and_not(tmp_path, model=f"builtin:tiny-{family}", method=block))


def test_law_10_with_recomputed_activations(tmp_path: Path) -> None:
    train = {"duration": "2 steps", "batch_size": 8, "micro_batch_size": 4, "optimizer": "sgd", "learning_rate": 1e-2,
             "max_grad_norm": None, "activation_checkpointing": True}  # fmt: skip
    assert_equal_steps(*packed_and_not(tmp_path, train=train))


@pytest.mark.parametrize("objective", ["masked_lm", "token_classification"])
def test_law_10_gradients_of_encoders(tmp_path: Path, objective: str) -> None:
    if objective == "masked_lm":
        rows = [{"text": f"row {i} " + "of some words " * (1 + i % 4)} for i in range(11)]
        data: dict[str, Any] = {"template": None}
    else:
        rows = [{"tokens": [f"w{j}" for j in range(2 + i % 5)], "tags": ["O", "B-x"] * ((2 + i % 5) // 2)
                 + ["O"] * (i % 5 % 2)} for i in range(11)]  # fmt: skip
        data = {"template": None}
    sections = {"model": "builtin:tiny-bert", "objective": objective, "method": "full", "rows": rows}
    assert_equal_steps(*packed_and_not(tmp_path, data=data, **sections))


def test_packing_is_planned(tmp_path: Path) -> None:
    plan = bench(recipe(tmp_path)).plan
    assert plan.packing and "isolated" in plan.sources["packing"]
    assert plan.micro_batch_tokens is not None
    longest = max(e.num_tokens for e in bench(recipe(tmp_path)).prepared.dataset.train.examples)
    assert plan.micro_batch_tokens == 2 * longest
    off = bench(recipe(tmp_path, data={"packing": False})).plan
    assert not off.packing and off.micro_batch_tokens is None


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"method": {"name": "prefix", "length": 2}}, "method prefix"),
        ({"method": {"name": "prompt", "length": 2}}, "method prompt"),
        ({"model": "builtin:tiny-t5", "objective": "seq2seq_lm"}, "objective seq2seq_lm"),
    ],
)
def test_packing_is_refused_where_rows_would_mix(tmp_path: Path, sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=f"data.packing: {reason}"):
        recipe(tmp_path, data={"packing": True}, **sections)
    plan = bench(recipe(tmp_path, **sections)).plan
    assert not plan.packing and reason in plan.sources["packing"]
