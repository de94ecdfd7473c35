"""How much memory training needs on one device: an estimate from shapes, by item."""

from __future__ import annotations

from typing import Literal

from ftune.facts import Facts
from ftune.recipe import Recipe

Dtype = Literal["fp32", "bf16", "fp16"]
BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
SAVED_PER_LAYER = 30
"""Numbers that the backward pass needs per token, width and layer of a decoder with LoRA on all linear layers;
Korthikanti et al. 2022 count 17 (eq. 2, without the attention matrix) for a plain one. See docs/results.md."""
_EIGHT_BIT = 2 * (1 / 4 + 1 / 256)
"""Two codes of a byte, and a scale in fp32 for each block of 256 of them."""
OPTIMIZER_STATES = {
    "adamw": 2.0, "muon": 2.0, "adafactor": 0.05, "sgd": 1.0, "adamw_8bit": _EIGHT_BIT, "paged_adamw_8bit": _EIGHT_BIT,
}  # fmt: skip
"""fp32 numbers of optimizer state per trainable parameter; of `muon` at most, its matrices have one."""


def memory_of_a_process(facts: Facts, num_processes: int) -> float:
    """Bytes that there are; processes on a CPU share its memory."""
    return facts.machine.memory_bytes / (num_processes if facts.machine.device == "cpu" else 1)


def estimate_memory(
    recipe: Recipe,
    facts: Facts,
    *,
    precision: Dtype,
    frozen_dtype: Dtype,
    loss_chunk: int | None,
    tokens: int,
    checkpointing: bool,
) -> dict[str, int]:
    """Bytes on one device, by item.

    Activations are counted as `SAVED_PER_LAYER` numbers a token, width and layer, or two when they are recomputed or
    not needed, besides those of the layer that is being recomputed. What learns is fp32; where the computation is not,
    autocast keeps a copy of each weight from its first use in a forward pass on. Logits of all tokens are counted as
    themselves, their gradient and the copies that picking the supervised positions makes, in fp32; logits of a chunk
    of targets as themselves, whose memory becomes their gradient's, and a copy.

    Args:
        recipe: what was asked.
        facts: shapes and counts.
        precision: type of computation.
        frozen_dtype: of weights that do not learn.
        loss_chunk: targets with logits at once; None is all tokens.
        tokens: of one forward, pads included.
        checkpointing: whether activations are recomputed.
    """
    model = facts.model
    element = BYTES[precision]
    trainable = model.trainable_parameters
    bits = recipe.learner.quantised_bits or 0.0
    plain = model.total_parameters - trainable - model.quantised_parameters
    logits = tokens * (element + 16) if loss_chunk is None else min(tokens, loss_chunk) * 2 * element
    kept = model.num_layers * SAVED_PER_LAYER
    if not recipe.learner.backpropagates:
        kept = model.num_layers * 2
    elif checkpointing:
        kept = model.num_layers * 2 + SAVED_PER_LAYER  # one layer at a time is computed again
    cast = 0 if precision == "fp32" else trainable * element
    return {
        "frozen weights": int(plain * BYTES[frozen_dtype] + model.quantised_parameters * bits / 8),
        "trainable weights": trainable * 4,
        "copies in the type of computation": cast,
        "gradients": trainable * 4,
        "optimizer": int(trainable * 4 * OPTIMIZER_STATES[recipe.train.optimizer]),
        "activations": int(tokens * model.width * element * kept),
        "logits": logits * model.vocabulary if recipe.objective.predicts_tokens else 0,
    }
