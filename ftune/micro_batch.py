"""How much goes into one forward: a formula over shapes and memory, never a timing. Part of deciding the plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ftune.facts import Facts
from ftune.memory import estimate_memory, memory_of_a_process
from ftune.plan import accumulation
from ftune.recipe import Recipe

TOKENS_ON_CPU = 1024
"""Tokens per micro-batch that a CPU works best with; see docs/results.md."""
ROWS_ELSEWHERE = 64
"""The most of the longest example in a micro-batch on other devices."""
FORWARD_OVERHEAD = {"cpu": 48, "accelerator": 1024}
"""What a forward and its backward cost besides their tokens, in tokens. On a CPU measured, see docs/results.md."""

Decide = Callable[[str, Any, str], Any]
Where = Callable[[str], str]


def decide_micro_batch(
    recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any], checkpointing: bool
) -> None:
    """How much goes into one forward: so many tokens, pads included, or so many examples where the recipe says so."""
    asked, longest, device = recipe.train.micro_batch_size, longest_of(facts, values), values["device"]
    kind = "cpu" if device == "cpu" else "accelerator"
    decide("forward_overhead", FORWARD_OVERHEAD[kind], f"tokens that a forward costs by itself, {device}")
    if asked != "auto":
        decide("micro_batch_size", asked, source("train.micro_batch_size"))
        if values["packing"]:
            decide("micro_batch_tokens", asked * longest, f"{asked} examples as long as the longest, of {longest}")
        else:
            decide("micro_batch_tokens", None, "examples are counted, as train.micro_batch_size says")
        return
    rows, room = _rows_that_fit(recipe, facts, values, checkpointing)
    tokens, why = rows * longest, f"auto: {rows} of the longest, {longest}; {room}"
    if device == "cpu" and (fewer := tokens_on_cpu(rows, longest)) < tokens:
        tokens, why = fewer, f"auto: {TOKENS_ON_CPU} on CPU, or the longest, {longest}"
    share = math.ceil(recipe.train.batch_size * facts.data.tokens / facts.data.examples / values["num_processes"])
    if values["num_processes"] > 1 and tokens > max(longest, share):
        tokens, why = (
            max(longest, share),
            f"auto: a process's share of a step, {share}, or the longest, {longest}",
        )
    if recipe.learner.backpropagates:
        decide("micro_batch_tokens", tokens, why)
    else:
        decide("micro_batch_tokens", None, "examples are counted: a frozen model has read their tokens before")
    mean = max(1, min(rows, tokens * facts.data.examples // facts.data.tokens))
    decide("micro_batch_size", mean, f"auto: rows of mean length in {tokens} tokens, at most {rows}")


def tokens_on_cpu(rows: int, longest: int) -> int:
    """Tokens of a forward on a processor, where `rows` of the longest example would fit."""
    return max(longest, min(TOKENS_ON_CPU, rows * longest))


def decide_accumulation(recipe: Recipe, facts: Facts, decide: Decide, values: dict[str, Any]) -> None:
    """How often until a step is full; in tokens an estimate, since the rows of a step differ."""
    batch, processes = recipe.train.batch_size, values["num_processes"]
    size, most = values["micro_batch_size"], values["micro_batch_tokens"]
    if most is None:
        why = f"batch_size {batch} / (micro_batch_size {size} x {processes} processes), rounded up"
        decide("accumulation", accumulation(batch, size, processes), why)
        return
    tokens = math.ceil(batch * facts.data.tokens / facts.data.examples)
    why = f"about {tokens} tokens a step / ({most} x {processes} processes), rounded up"
    decide("accumulation", accumulation(tokens, most, processes), why)


def _rows_that_fit(recipe: Recipe, facts: Facts, values: dict[str, Any], checkpointing: bool) -> tuple[int, str]:
    """How many of the longest example: the largest power of two, of a process's share of the batch and of 64 where
    the device is no CPU, whose memory estimate fills under 60% of the device.
    """
    budget = 0.6 * memory_of_a_process(facts, values["num_processes"])
    most = max(1, math.ceil(recipe.train.batch_size / values["num_processes"]))
    if facts.machine.device != "cpu":
        most = min(ROWS_ELSEWHERE, most)
    size = 1
    while size * 2 <= most:
        tokens = size * 2 * longest_of(facts, values)
        memory = estimate_memory(recipe, facts, **types_of(values), tokens=tokens, checkpointing=checkpointing)
        if sum(memory.values()) > budget:
            break
        size *= 2
    return size, f"largest power of two <= {most} within 60% of {budget / 0.6 / 2**30:.1f} GiB"


def types_of(values: dict[str, Any]) -> dict[str, Any]:
    """Number types of computation and of frozen weights, and targets with logits at once."""
    return {name: values[name] for name in ("precision", "frozen_dtype", "loss_chunk")}


def longest_of(facts: Facts, values: dict[str, Any]) -> int:
    """Tokens of the longest example."""
    return int(min(facts.data.longest, values["max_length"]))
