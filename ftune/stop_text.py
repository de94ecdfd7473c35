"""A text at which answers end, where no token says so: the blank line after each demonstration of a few-shot prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL = 16
"""Tokens at the end of an answer that are looked at after each step."""


@dataclass(frozen=True)
class StopText:
    """Ends answers.

    Args:
        text: that ends them, and is no part of them.
        tokenizer: spells them.
    """

    text: str
    tokenizer: PreTrainedTokenizerBase

    def cut(self, answer: str) -> str:
        """An answer up to the text."""
        return answer.partition(self.text)[0]

    def criterion(self, start: int) -> Any:
        """For transformers' `generate`: a row is done once its answer, from token `start` on, holds the text."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        text, tokenizer = self.text, self.tokenizer

        class Holds(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                tails = tokenizer.batch_decode(input_ids[:, max(start, input_ids.shape[1] - TAIL) :])
                return torch.tensor([text in tail for tail in tails], device=input_ids.device)

        return StoppingCriteriaList([Holds()])
