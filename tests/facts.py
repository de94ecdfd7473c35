"""Facts made by hand: a small machine, a small model, a hundred rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ftune.decide import make_plan
from ftune.facts import DataFacts, Facts, Machine, ModelFacts
from ftune.load import parse_recipe
from ftune.plan import Plan
from ftune.recipe import Recipe

GIB = 2**30
FACTS = Facts(
    machine=Machine(
        device="cpu", num_devices=1, memory_bytes=16 * GIB, fast_bf16=False, num_threads=4, asked_threads=None,
        allocator=("huge pages", "THP_MEM_ALLOC_ENABLE"), compile_refusal=None,
        disk_free_bytes=100 * GIB
    ),
    model=ModelFacts(
        architecture="llama", num_layers=4, width=256, vocabulary=1000, max_positions=2048, stored_dtype="bfloat16",
        total_parameters=10_000_000, trainable_parameters=100_000, fingerprint="sha256:0",
        packing_refusal="rows side by side here",
    ),
    data=DataFacts(
        rows=100, examples=100, tokens=5000, targets=2000, longest=80, eval_examples=10, test_examples=0,
        formats=("prompt_completion",), template="text as it is", fingerprint="0",
    ),
)  # fmt: skip


def facts(**changes: Any) -> Facts:
    """`FACTS` with some numbers of machine, model or data replaced, whichever has a field of that name."""
    parts = {"machine": FACTS.machine, "model": FACTS.model, "data": FACTS.data}
    for name, value in changes.items():
        part = next(key for key, old in parts.items() if hasattr(old, name))
        parts[part] = replace(parts[part], **{name: value})  # type: ignore[type-var]
    return Facts(**parts)  # type: ignore[arg-type]


def recipe_of(**sections: Any) -> Recipe:
    """A valid recipe with these sections."""
    values = {"model": "m", "method": "lora", "data": {"train": "t.jsonl", "eval": "10%"}, **sections}
    recipe, problems = parse_recipe(values)
    assert recipe is not None and not problems, problems
    return recipe


def plan_of(known: Facts = FACTS, **sections: Any) -> Plan:
    """The plan for such a recipe."""
    return make_plan(recipe_of(**sections), known)
