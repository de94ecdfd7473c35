"""What is frozen costs no backward pass: no gradient is computed below the first weight that learns."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from torch.utils.flop_counter import FlopCounterMode

from ftune import builtin, methods, objectives
from ftune.data.encode import Example


def example(length: int) -> Example:
    import numpy as np

    return Example((np.arange(length) % 200).astype(np.int32), np.arange(length) > 0, length, "rows", 1)


def backward_products(block: dict[str, Any], chunk: int | None) -> int:
    """Multiplications and additions of the backward pass of one batch."""
    kind = methods.load(block["name"])
    model = tiny_models.model("causal", "llama")
    attached = kind(**block).attach(model, builtin.tokenizer()).train()
    objective = objectives.load("causal_lm")(name="causal_lm").in_chunks(chunk)
    batch = objective.collate([example(10), example(10)], 0)
    with FlopCounterMode(display=False) as forward:
        sums, _ = objective.loss(attached, batch)
    with FlopCounterMode(display=False) as backward:
        sums.sum().backward()
    assert forward.get_total_flops() > 0
    return int(backward.get_total_flops())


@pytest.mark.parametrize("chunk", [None, 7])
def test_only_what_lies_above_the_first_adapter_is_computed_backward(chunk: int | None) -> None:
    """Rank 1 on the last layer's output projection: its own products and the MLP above it, none of layer 0."""
    block = {"name": "lora", "rank": 1, "target_modules": ["layers.1.self_attn.o_proj"]}
    tokens, width, inner, vocabulary = 20, 64, 128, builtin.VOCABULARY
    mlp = 3 * 2 * tokens * width * inner
    adapter = 2 * tokens * width * (1 + 1 + 1)  # dB, d(A x), dA; the input's own is not needed
    head = 0 if chunk else 2 * tokens * width * vocabulary  # with chunks it was computed while the logits were there
    assert backward_products(block, chunk) == mlp + adapter + head


@pytest.mark.parametrize("name", ["lora", "ia3", "adapter"])
def test_nothing_flows_into_frozen_embeddings(name: str) -> None:
    model = tiny_models.model("causal", "llama")
    attached = methods.load(name)(name=name).attach(model, builtin.tokenizer()).train()
    seen: list[bool] = []
    model.get_input_embeddings().register_forward_hook(lambda m, i, output: seen.append(output.requires_grad))
    objective = objectives.load("causal_lm")(name="causal_lm").in_chunks(7)
    objective.loss(attached, objective.collate([example(10)], 0))[0].sum().backward()
    assert seen == [False]
