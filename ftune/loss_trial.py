"""A trial, before anything is planned: do chunks of targets give a model's own losses and gradients?

A random model of the same layers, but narrow, with the method attached, reads a few rows both ways.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ftune.data.encode import Example
from ftune.errors import FtuneError
from ftune.shrink import shrunken

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from ftune.methods import Method
    from ftune.objectives import Objective

    Learned = tuple[torch.Tensor, dict[str, torch.Tensor]]
    """Losses of the rows, and gradients by name."""

LENGTHS = (9, 5, 7)
"""Tokens of the rows."""
FEW_LAYERS, FEW_WORDS = 2, 512
"""Size of the model, where that is enough: what lies between body and head does not depend on it."""
CHUNK = 4
"""Targets at once: chunks end within rows, and the last is short."""
TOLERANCE = 1e-5
"""Largest difference, in parts of the largest loss and the largest gradient; fp32 rounding is 1e-6."""
NOISE = 0.02
"""Standard deviation of what is added to the weights that learn: many methods begin at zeros, which hide mistakes."""


def chunking_refusal(
    config: PreTrainedConfig, auto_class: Any, objective: Objective, method: Method, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Why losses need the logits of all tokens, or None: those of a few targets at a time give the same.

    Args:
        config: of the model, with the head's settings.
        auto_class: transformers' auto class for its head.
        objective: of the recipe, which `predicts_tokens`.
        method: of the recipe.
        tokenizer: with the tokens that the method adds.
    """
    reason = ""
    for small in (_with_few_words(shrunken(config, max(FEW_LAYERS, method.layers_named))), shrunken(config, None)):
        small._name_or_path = config._name_or_path
        try:
            return _difference(*_both_ways(small, auto_class, objective, method, tokenizer), config.model_type)
        except (FtuneError, NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError, KeyError,
                IndexError, AssertionError) as error:  # fmt: skip
            # a recipe may name a deeper layer or a later token: the second model has all of them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
    return f"chunks of targets could not be tried on {config.model_type}: {reason}"


def _with_few_words(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with a small vocabulary, changed in place; special tokens that lie outside become the first."""
    words = config.get_text_config()
    if words.vocab_size > FEW_WORDS:
        words.vocab_size = FEW_WORDS
        for part in (config, words):
            for key, value in part.to_dict().items():
                if key.endswith("_token_id") and isinstance(value, int) and value >= FEW_WORDS:
                    setattr(part, key, 0)
    return config


def _both_ways(
    config: PreTrainedConfig, auto_class: Any, objective: Objective, method: Method, tokenizer: PreTrainedTokenizerBase
) -> tuple[Learned, Learned]:
    """What a random model learns from whole rows, and from chunks of their targets."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = auto_class.from_config(config).float().requires_grad_(False)
        attached = method.skeleton().attach(model, tokenizer).train()
        with torch.no_grad():
            for parameter in attached.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=NOISE)
        batch = objective.collate(_rows(objective, config.get_text_config().vocab_size), 0)
        return _learned(objective, attached, batch), _learned(objective.in_chunks(CHUNK), attached, batch)


def _rows(objective: Objective, vocabulary: int) -> list[Example]:
    """Rows in the objective's encoding, with targets here and there."""
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = ((np.arange(length) * 7 + number * 13 + 3) % min(vocabulary, 200)).astype(np.int32)
        row = Example(ids, np.arange(length) % 3 != 0, 1, "trial", number)
        if objective.encoding == "hidden_tokens":
            row = replace(row, labels=ids[::-1].copy())
        if objective.encoding == "pairs":
            row = replace(row, answer=ids[::-1].copy(), is_target=np.ones(length, dtype=bool))
        rows.append(row)
    return rows


def _learned(objective: Objective, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Learned:
    """What `model` learns from `batch`; dropout is the same each time."""
    import torch

    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    sums, _ = objective.loss(model, batch)
    sums.sum().backward()  # type: ignore[no-untyped-call]
    return sums.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _difference(whole: Learned, chunks: Learned, kind: str) -> str | None:
    if not float((whole[0] - chunks[0]).abs().max()) <= TOLERANCE * float(whole[0].abs().max()):
        return f"{kind} gives chunks of targets other losses than whole rows"
    if whole[1].keys() != chunks[1].keys():
        return f"{kind} learns other weights from chunks of targets than from whole rows"
    largest = max((float(gradient.abs().max()) for gradient in whole[1].values()), default=0.0)
    worst = max((float((g - chunks[1][name]).abs().max()) for name, g in whole[1].items()), default=0.0)
    if not worst <= TOLERANCE * largest:
        return f"{kind} gives chunks of targets other gradients than whole rows"
    return None
