"""Masked-language modelling: guess hidden tokens from both sides, Devlin et al. 2019, https://arxiv.org/abs/1810.04805.

Tensors: B rows, T positions, V vocabulary, N targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ftune.cross_entropy import sums_of_rows, token_losses
from ftune.errors import Problem, RecipeError
from ftune.objectives import Encoding, Objective
from ftune.objectives._packed import packed_losses
from ftune.objectives._padding import padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ftune.data.encode import Example
    from ftune.data.order import Draw
    from ftune.objectives import Batch


class MaskedLM(Objective):
    """Cross-entropy of hidden tokens. What is hidden is a function of (seed, epoch, row)."""

    name: Literal["masked_lm"] = "masked_lm"

    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are to be guessed; at least one of each window."""
    keep_probability: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of those that are left as they are, so that the model cannot trust what it reads."""
    random_probability: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of those that a random token replaces; all others become the mask token."""

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    families: ClassVar[frozenset[str]] = frozenset({"encoder"})
    packs: ClassVar[bool] = True
    predicts_tokens: ClassVar[bool] = True
    encoding: ClassVar[Encoding] = "hidden_tokens"

    @property
    def formats(self) -> frozenset[str]:
        """Plain text."""
        return frozenset({"text"})

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """Per hidden token."""
        return ("loss", "perplexity")

    def problems(self) -> list[tuple[str, str]]:
        """The two shares may fill a whole, not more."""
        total = self.keep_probability + self.random_probability
        message = f"and random_probability add up to {total:g}. Expected at most 1."
        return [("keep_probability", message)] if total > 1 else []

    def drawer(self, tokenizer: PreTrainedTokenizerBase) -> Draw:
        """Hide tokens as BERT does."""
        mask_id, size = tokenizer.mask_token_id, len(tokenizer)
        if mask_id is None:
            message = "the tokenizer of this model has no mask token. Use a model that was pretrained with one."
            raise RecipeError([Problem("objective.name", message)])
        special = frozenset(tokenizer.all_special_ids)
        ordinary = [i for i in range(size) if i not in special]

        def draw(example: Example, seed: int) -> Example:
            import numpy as np

            random = np.random.Generator(np.random.Philox(key=seed))
            places = np.flatnonzero(example.is_target)
            chosen = places[random.random(len(places)) < self.mask_probability]
            if len(chosen) == 0:
                chosen = places[random.integers(len(places), size=1)]
            ids = example.ids.copy()
            fate = random.random(len(chosen))
            substitutes = np.array(ordinary, dtype=ids.dtype)[random.integers(len(ordinary), size=len(chosen))]
            hidden = fate >= self.keep_probability + self.random_probability
            swapped = (fate >= self.keep_probability) & ~hidden
            ids[chosen[hidden]] = mask_id
            ids[chosen[swapped]] = substitutes[swapped]
            is_target = np.zeros(len(ids), dtype=bool)
            is_target[chosen] = True
            return replace(example, ids=ids, is_target=is_target, labels=example.ids)

        return draw

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Pad to the longest example.

        Returns:
            `input_ids`, `attention_mask`, `labels` int64 and `is_target` bool, each [B, T]; `labels` are the tokens as
            they were before some were hidden.
        """
        batch = padded(examples, pad_id, left)
        return {**batch, "labels": padded(examples, pad_id, left, of="labels")["input_ids"]}

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of -log p(token) over each row's hidden tokens, in fp32, and their number; both [B]."""
        if "lengths" in batch:
            return packed_losses(model, batch, ahead=0, chunk=self._chunk)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "is_target")}
        is_target = batch["is_target"]
        places = is_target.nonzero(as_tuple=True)  # [N]
        losses = token_losses(model, inputs, places, batch["labels"][is_target], chunk=self._chunk)
        return sums_of_rows(losses, places[0], len(is_target)), is_target.sum(dim=1)


OBJECTIVE = MaskedLM
