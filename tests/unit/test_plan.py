"""The plan: a pure function of recipe and facts, checked on facts made by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from facts import FACTS, GIB, facts, plan_of, recipe_of

from ftune.data.pack import Cut
from ftune.decide import make_plan
from ftune.errors import MachineError, RecipeError
from ftune.facts import Facts, asked_threads
from ftune.memory import estimate_memory
from ftune.plan import MACHINE_CHOICES, Plan, accumulation


def gpu(**changes: Any) -> Facts:
    """A machine with one graphics card of 24 GiB."""
    return facts(**{"device": "cuda", "memory_bytes": 24 * GIB, "fast_bf16": True, **changes})


def test_every_value_has_a_source_and_survives_json() -> None:
    for known in (FACTS, gpu(), facts(eval_examples=0)):
        for method in ("full", {"name": "lora", "init": "pissa"}):
            recipe = recipe_of(method=method, data={"train": "t.jsonl"})
            plan = make_plan(recipe, known, lambda key: f"recipe.yaml:3:1 {key}")
            assert plan.sources.keys() == set(Plan.model_fields) - {"sources"}
            assert all(plan.sources.values())
            assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
            assert plan.sources["batch_size"] == "recipe.yaml:3:1 train.batch_size"


def test_the_plan_is_a_function_of_its_arguments() -> None:
    assert plan_of() == plan_of()
    assert plan_of(seed=1).seed == 1 and plan_of(seed=1) != plan_of()


@pytest.mark.parametrize(
    ("duration", "batch_size", "steps"),
    [
        ("1 epochs", 32, 4),  # 100 examples: 32, 32, 32, 4
        ("3 epochs", 32, 12),
        ("3 epochs", 100, 3),
        ("3 epochs", 1000, 3),
        ("0.5 epochs", 32, 2),
        ("0.1 epochs", 32, 1),
        ("0.001 epochs", 32, 1),
        ("1.1 epochs", 10, 11),
        ("0.07 epochs", 1, 7),  # 0.07 * 100 is 7.000000000000001
        ("7 steps", 32, 7),
        ("5000 tokens", 32, 4),
        ("5001 tokens", 32, 5),
        ("15000 tokens", 34, 9),  # three steps an epoch of 5000 tokens
        ("1 tokens", 32, 1),
    ],
)
def test_durations(duration: str, batch_size: int, steps: int) -> None:
    plan = plan_of(train={"duration": duration, "batch_size": batch_size})
    assert plan.steps == steps
    assert plan.steps_per_epoch == math.ceil(100 / batch_size)


@pytest.mark.parametrize(
    ("batch_size", "micro", "processes", "expected"),
    [(8, 8, 1, 1), (8, 1, 1, 8), (8, 2, 1, 4), (8, 4, 2, 1), (8, 3, 1, 3), (8, 3, 2, 2), (7, 2, 2, 2), (1, 1, 1, 1)],
)
def test_accumulation(batch_size: int, micro: int, processes: int, expected: int) -> None:
    assert accumulation(batch_size, micro, processes) == expected
    train = {"batch_size": batch_size, "micro_batch_size": micro}
    plan = plan_of(train=train, distributed={"devices": processes})
    assert plan.accumulation == expected
    assert plan.accumulation * plan.micro_batch_size * plan.num_processes >= batch_size


@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
@pytest.mark.parametrize("known", [gpu(), gpu(memory_bytes=2 * GIB), facts(longest=512, memory_bytes=GIB // 4)])
def test_an_automatic_micro_batch_is_as_many_of_the_longest_as_fit(batch_size: int, known: Facts) -> None:
    section = {"batch_size": batch_size}
    plan = plan_of(known, train=section)
    longest = known.data.longest
    assert plan.micro_batch_tokens is not None and plan.micro_batch_tokens % longest == 0
    size = plan.micro_batch_tokens // longest
    assert size & (size - 1) == 0 and size <= batch_size

    def needed(micro: int) -> int:
        return sum(plan_of(known, train={**section, "micro_batch_size": micro}).memory_bytes.values())

    assert sum(plan.memory_bytes.values()) == needed(size)
    if size > 1:
        assert needed(size) <= 0.6 * known.machine.memory_bytes
    if size * 2 <= min(64, batch_size):
        assert needed(size * 2) > 0.6 * known.machine.memory_bytes


@pytest.mark.parametrize(
    ("changes", "batch_size", "tokens", "rows"),
    [
        ({}, 32, 1024, 20),  # rows of 50 tokens in the mean
        ({}, 8, 640, 8),  # all eight, should they all be as long as the longest
        ({"longest": 1500}, 8, 1500, 8),
        ({"longest": 64, "tokens": 1600}, 64, 1024, 64),
        ({"longest": 1024, "tokens": 60_000, "memory_bytes": GIB // 4}, 8, 1024, 1),
    ],
)
def test_an_automatic_micro_batch_on_a_cpu_holds_a_thousand_tokens(
    changes: dict[str, Any], batch_size: int, tokens: int, rows: int
) -> None:
    for refusal in (None, "rows side by side here"):
        data = {"train": "t", "eval": "10%", "max_length": 2000}
        plan = plan_of(facts(**changes, packing_refusal=refusal), train={"batch_size": batch_size}, data=data)
        assert (plan.micro_batch_tokens, plan.micro_batch_size, plan.eval_batch_size) == (tokens, rows, rows)
        assert plan.cut == Cut(rows, tokens, 48, packed=refusal is None)
        assert plan.padded_cut == Cut(rows, tokens, 48)


def test_an_automatic_micro_batch_is_shared_by_the_processes() -> None:
    shared = {"train": {"batch_size": 32}, "distributed": {"devices": 4}}
    plan = plan_of(gpu(num_devices=4), **shared)
    assert plan.micro_batch_tokens == 8 * 50, "a quarter of a step, at 50 tokens a row"
    assert plan_of(gpu(num_devices=4, longest=500), **shared).micro_batch_tokens == 500, "or the longest"
    assert plan.forward_overhead == 1024
    uneven = facts(memory_bytes=GIB // 4, longest=400, tokens=40_000)
    lone = plan_of(uneven, train={"batch_size": 64})
    two = plan_of(uneven, train={"batch_size": 64}, distributed={"devices": 2})
    assert (lone.micro_batch_tokens, two.micro_batch_tokens) == (800, 400), "two processes on one CPU share its memory"


def test_heads_over_features_count_examples() -> None:
    """Their tokens were read before, so pads cost nothing."""
    plan = plan_of(method="feature_based", objective="sequence_classification")
    assert (plan.micro_batch_tokens, plan.micro_batch_size, plan.accumulation) == (None, 20, 2)


def test_an_explicit_micro_batch_counts_examples() -> None:
    plan = plan_of(train={"micro_batch_size": 3})
    assert plan.cut == plan.padded_cut == Cut(3, None, 48)
    packed = plan_of(facts(packing_refusal=None), train={"micro_batch_size": 3})
    assert packed.cut == Cut(3, 240, 48, packed=True) and packed.padded_cut == Cut(3, 240, 48)


def test_activation_checkpointing_is_switched_on_by_memory_only() -> None:
    long = {"longest": 1024, "tokens": 102_400}
    full = sum(plan_of(facts(**long), train={"micro_batch_size": 1}).memory_bytes.values())
    assert not plan_of(facts(memory_bytes=round(full / 0.79), **long)).activation_checkpointing
    assert plan_of(facts(memory_bytes=round(full / 0.81), **long)).activation_checkpointing
    for asked in (True, False):
        train = {"activation_checkpointing": asked}
        assert plan_of(facts(memory_bytes=1 if not asked else GIB), train=train).activation_checkpointing is asked
    two = plan_of(facts(memory_bytes=round(1.5 * full), **long), distributed={"devices": 2})
    assert two.activation_checkpointing, "two processes on one CPU share its memory"


def test_precision_follows_the_machine() -> None:
    assert plan_of(FACTS).precision == plan_of(FACTS).frozen_dtype == "fp32"
    assert plan_of(gpu()).precision == plan_of(gpu()).frozen_dtype == "bf16"
    assert plan_of(gpu(fast_bf16=False)).precision == "fp32"
    assert plan_of(FACTS, train={"precision": "bf16"}).precision == "bf16"
    assert plan_of(gpu(), method="full").frozen_dtype == "fp32", "what learns is fp32"
    assert plan_of(gpu(), method={"name": "lora", "init": "pissa"}).frozen_dtype == "fp32"
    assert plan_of(gpu(), model={"name": "m", "dtype": "fp16"}).frozen_dtype == "fp16"


def test_cpu_runs_are_always_deterministic() -> None:
    assert plan_of(FACTS).deterministic
    assert not plan_of(gpu()).deterministic
    assert plan_of(gpu(), train={"deterministic": True}).deterministic


def test_threads_are_shared_by_processes() -> None:
    assert plan_of(FACTS).num_threads == 4
    assert plan_of(FACTS, distributed={"devices": 2}).num_threads == 2
    assert plan_of(FACTS, distributed={"devices": 8}).num_threads == 1


@pytest.mark.parametrize(
    ("asked", "processes", "threads", "source"),
    [
        (None, 1, 4, "4 cores / 1 processes"),
        (1, 1, 1, "environment: OMP_NUM_THREADS=1, fewer than 4 cores / 1 processes"),
        (3, 1, 3, "environment: OMP_NUM_THREADS=3, fewer than 4 cores / 1 processes"),
        (4, 1, 4, "4 cores / 1 processes"),
        (64, 1, 4, "4 cores / 1 processes"),
        (1, 2, 1, "environment: OMP_NUM_THREADS=1, fewer than 4 cores / 2 processes"),
        (3, 2, 2, "4 cores / 2 processes"),
        (1, 8, 1, "4 cores / 8 processes"),
    ],
)
def test_the_environment_bounds_threads(asked: int | None, processes: int, threads: int, source: str) -> None:
    plan = plan_of(facts(asked_threads=asked), distributed={"devices": processes})
    assert (plan.num_threads, plan.sources["num_threads"]) == (threads, source)


@pytest.mark.parametrize(
    ("text", "asked"),
    [("1", 1), (" 6 ", 6), ("4,2,1", 4), ("", None), ("0", None), ("-2", None), ("many", None), ("2.5", None)],
)
def test_the_number_of_threads_that_the_environment_asks_for(text: str, asked: int | None) -> None:
    assert asked_threads({"OMP_NUM_THREADS": text}) == asked
    assert asked_threads({}) is None


def test_what_cannot_be_done_here() -> None:
    with pytest.raises(MachineError, match="asks for 3 devices; there are 1"):
        plan_of(gpu(), distributed={"devices": 3})
    with pytest.raises(RecipeError, match="data.max_length: 4096 exceeds the model's 2048 positions"):
        plan_of(data={"train": "t", "eval": "10%", "max_length": 4096})


@pytest.mark.parametrize(
    ("asked", "limit", "expected"), [("auto", 2048, 1024), ("auto", 512, 512), ("auto", None, 1024), (2048, None, 2048)]
)
def test_max_length(asked: Any, limit: int | None, expected: int) -> None:
    assert plan_of(facts(max_positions=limit), data={"train": "t", "max_length": asked}).max_length == expected


def test_learning_rate_and_its_evidence() -> None:
    """Narrower models get higher rates, down to the narrowest that was tried."""
    for method, width, rate in (
        ("lora", 4096, 2e-4), ("full", 4096, 2e-5), ("lora", 384, 2.1e-3), ("lora", 256, 3.2e-3), ("lora", 64, 3.2e-3),
        ("lora", 100_000, 1e-4), ("adapter", 384, 5.1e-3),
    ):  # fmt: skip
        plan = plan_of(facts(width=width), method=method)
        assert plan.learning_rate == rate
        assert plan.sources["learning_rate"].startswith(f"auto: default of method {method} at width {width} (")
    assert plan_of(train={"learning_rate": 0.5}).learning_rate == 0.5


def test_cadences() -> None:
    train = {"duration": "200 steps"}
    plan = plan_of(train=train, eval={"every": "5%"}, checkpoint={"every": 7, "keep": 3})
    assert (plan.eval_every, plan.checkpoint_every, plan.keep, plan.best) == (10, 7, 3, "eval_loss")
    assert plan_of(train={"duration": "3 steps"}, eval={"every": "5%"}).eval_every == 1
    assert plan_of(train={**train, "warmup": "3%"}).warmup_steps == 6
    assert plan_of(train={**train, "warmup": 999}).warmup_steps == 200
    nothing_held = plan_of(facts(eval_examples=0), data={"train": "t"})
    assert nothing_held.eval_every is nothing_held.generate_every is nothing_held.best is None


def test_metrics() -> None:
    assert plan_of().metrics == ("loss", "perplexity", "bits_per_byte")
    assert plan_of(eval={"metrics": ["exact_match", "exact_match"]}).metrics == ("loss", "exact_match")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_grows_with_everything_it_should_grow_with(method: str) -> None:
    """And falls with checkpointing and half precision."""
    base = {"micro_batch_size": 2, "activation_checkpointing": False, "precision": "fp32"}

    def total(known: Facts = FACTS, **train: Any) -> int:
        return sum(plan_of(known, method=method, train={**base, **train}).memory_bytes.values())

    start = total()
    larger = {
        "micro batch": total(micro_batch_size=4), "longest row": total(facts(longest=160)),
        "width": total(facts(width=512)), "layers": total(facts(num_layers=8)),
        "vocabulary": total(facts(vocabulary=9000)), "frozen": total(facts(total_parameters=20_000_000)),
        "trainable": total(facts(trainable_parameters=1_000_000)),
    }  # fmt: skip
    assert all(size > start for size in larger.values()), larger
    assert total(activation_checkpointing=True) < start
    assert total(optimizer="sgd") < start and total(optimizer="adafactor") < total(optimizer="sgd")
    if method == "lora":
        assert total(precision="bf16") < start
    assert total(facts(longest=5000)) == total(facts(longest=1024)), "rows are never longer than max_length"


def test_memory_by_hand() -> None:
    known = facts(total_parameters=1000, trainable_parameters=100, width=8, num_layers=2, vocabulary=50, longest=10)
    plan = plan_of(known, train={"micro_batch_size": 3, "activation_checkpointing": False})
    tokens = 3 * 10
    assert plan.memory_bytes == {
        "frozen weights": 900 * 4,
        "trainable weights": 400,
        "copies in the type of computation": 0,
        "gradients": 400,
        "optimizer": 800,
        "activations": tokens * 8 * 2 * 30 * 4,
        "logits": tokens * 50 * 8,
    }
    again = estimate_memory(
        recipe_of(), known, precision=plan.precision, frozen_dtype=plan.frozen_dtype, tokens=tokens,
        loss_chunk=plan.loss_chunk,
        checkpointing=plan.activation_checkpointing,
    )  # fmt: skip
    assert again == plan.memory_bytes


def test_logits_of_a_few_targets_at_a_time() -> None:
    shape = {"vocabulary": 2**20, "longest": 80}
    train = {"micro_batch_size": 3, "activation_checkpointing": False}
    plan = plan_of(facts(**shape), train=train)
    assert plan.loss_chunk == 16 and "a trial" in plan.sources["loss_chunk"]
    assert plan.memory_bytes["logits"] == 16 * 2**20 * 8
    refused = plan_of(facts(**shape, chunking_refusal="opt goes around its body"), train=train)
    assert refused.loss_chunk is None and refused.sources["loss_chunk"] == "auto: opt goes around its body"
    assert refused.memory_bytes["logits"] == 240 * 2**20 * 20
    assert plan_of(facts(**shape, device="cuda"), train=train).loss_chunk == 128


@pytest.mark.parametrize(
    ("card", "method", "optimizer", "checkpointing", "micro_batch"),
    [
        (24, "lora", "adamw", True, 1), (80, "lora", "adamw", False, 4), (24, "qlora", "adamw", False, 1),
        (80, "qlora", "adamw", False, 4), (80, "full", "adamw_8bit", True, 1),
        (80, "full", "adamw", True, 1), (141, "full", "adamw", True, 1),
    ],
)  # fmt: skip
def test_a_7b_model_fits_the_cards_it_is_tuned_on_or_the_plan_says_that_it_does_not(
    card: int, method: str, optimizer: str, checkpointing: bool, micro_batch: int
) -> None:
    """Llama 2 7B, rows of up to 1024 tokens; rank 16 on all linear layers is 40 million numbers."""
    total, adapter, linear = 6_738_415_616, 39_976_960, 6_476_005_376
    learning = total if method == "full" else adapter
    known = gpu(
        memory_bytes=card * GIB, num_layers=32, width=4096, vocabulary=32000, longest=1024, tokens=50_000,
        total_parameters=total if method == "full" else total + adapter, trainable_parameters=learning,
        quantised_parameters=linear if method == "qlora" else 0,
    )  # fmt: skip
    plan = plan_of(known, method=method, train={"optimizer": optimizer, "batch_size": 16})
    assert (plan.activation_checkpointing, plan.micro_batch_size) == (checkpointing, micro_batch)
    fits = (card, method) != (80, "full")
    assert (sum(plan.memory_bytes.values()) < 0.95 * card * GIB) == fits, "and some is left for the libraries"
    assert ("this will hardly fit" in plan.sources["memory_bytes"]) == (not fits)


def test_a_layer_that_is_recomputed_is_there_once_and_learning_weights_have_a_copy_in_half_precision() -> None:
    known = gpu(total_parameters=1000, trainable_parameters=100, width=8, num_layers=6, vocabulary=50, longest=10)
    plan = plan_of(known, train={"micro_batch_size": 1, "activation_checkpointing": True})
    assert plan.memory_bytes["activations"] == 10 * 8 * (6 * 2 + 30) * 2
    assert plan.memory_bytes["copies in the type of computation"] == 200


def test_a_run_that_goes_on_keeps_what_its_first_machine_chose() -> None:
    small = facts(memory_bytes=GIB // 16, num_threads=2)
    recipe = recipe_of(train={"duration": "10 steps", "batch_size": 64})
    stored = make_plan(recipe, small)
    longer = recipe_of(train={"duration": "20 steps", "batch_size": 64}, checkpoint={"every": 3})
    fresh = make_plan(longer, gpu(num_threads=16))
    plan = fresh.continuing(stored, longer)
    assert all(getattr(plan, name) == getattr(stored, name) for name in MACHINE_CHOICES)
    assert any(getattr(fresh, name) != getattr(stored, name) for name in MACHINE_CHOICES)
    assert stored.micro_batch_tokens is not None
    assert plan.accumulation == accumulation(64 * 50, stored.micro_batch_tokens, 1)
    assert plan.cut == stored.cut
    assert plan.eval_batch_size == stored.micro_batch_size, "its evaluations are the same to the bit"
    assert plan.memory_bytes == stored.memory_bytes
    assert (plan.steps, plan.checkpoint_every) == (20, 3), "what the recipe says anew is obeyed"
    assert plan.sources["micro_batch_size"] == stored.sources["micro_batch_size"]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_run_that_goes_on_with_more_processes_keeps_its_batch() -> None:
    train = {"batch_size": 64, "micro_batch_size": 8}
    stored = plan_of(train=train)
    recipe = recipe_of(train=train, distributed={"devices": 2})
    plan = make_plan(recipe, FACTS).continuing(stored, recipe)
    assert (plan.num_processes, plan.micro_batch_size, plan.accumulation) == (2, 8, 4)


def test_a_run_that_goes_on_with_more_processes_shares_the_cores_anew() -> None:
    """Threads are cores divided by processes: with another number of processes the old figure would be wrong."""
    recipe = recipe_of(distributed={"devices": 2})
    plan = make_plan(recipe, FACTS).continuing(plan_of(), recipe)
    assert (plan_of().num_threads, plan.num_threads) == (4, 2)
    assert plan.sources["num_threads"] == "4 cores / 2 processes"


# packing


PACKED = facts(packing_refusal=None)


def test_packs_on_a_cpu_hold_a_thousand_tokens_or_the_longest_example() -> None:
    plan = plan_of(PACKED)
    assert plan.packing and plan.micro_batch_tokens == 1024
    assert plan.accumulation == math.ceil(32 * 50 / 1024) == 2
    assert (
        plan_of(facts(packing_refusal=None, longest=1500), data={"train": "t", "max_length": 2000}).micro_batch_tokens
        == 1500
    )


def test_packs_of_a_named_size_hold_as_much_as_so_many_of_the_longest() -> None:
    plan = plan_of(PACKED, train={"micro_batch_size": 4})
    assert (plan.micro_batch_tokens, plan.accumulation) == (4 * 80, 5)
    assert sum(plan.memory_bytes.values()) == sum(plan_of(train={"micro_batch_size": 4}).memory_bytes.values())


def test_packing_is_as_asked_or_as_the_model_allows() -> None:
    off = plan_of(PACKED, data={"train": "t.jsonl", "packing": False})
    assert (off.packing, off.micro_batch_tokens) == (False, 1024)
    refused = plan_of()
    assert not refused.packing and "rows side by side here" in refused.sources["packing"]
    with pytest.raises(RecipeError, match="data.packing: rows side by side here"):
        plan_of(data={"train": "t.jsonl", "packing": True})


def test_a_resumed_run_packs_as_it_began() -> None:
    stored = plan_of(PACKED)
    same = plan_of(facts(packing_refusal=None, memory_bytes=2 * GIB)).continuing(stored, recipe_of())
    assert (same.packing, same.micro_batch_tokens, same.accumulation) == (True, 1024, 2)
    recipe = recipe_of(data={"train": "t.jsonl", "packing": False})
    other = make_plan(recipe, PACKED).continuing(stored, recipe)
    assert (other.packing, other.micro_batch_tokens, other.accumulation) == (False, 1024, 2)
    smaller = recipe_of(train={"micro_batch_size": 2})
    assert make_plan(smaller, PACKED).continuing(stored, smaller).micro_batch_tokens == 160


def test_a_run_that_goes_on_keeps_the_default_rate_it_began_with() -> None:
    """Another version of ftune may have another default; what the recipe names is the recipe's."""
    begun, now = plan_of(method="lora").model_copy(update={"learning_rate": 0.125}), plan_of(method="lora")
    assert now.continuing(begun, recipe_of(method="lora")).learning_rate == 0.125
    named = {"learning_rate": 0.5}
    assert plan_of(train=named).continuing(begun, recipe_of(train=named)).learning_rate == 0.5
