"""Next-token prediction on the supervised tokens of each row.

Tensors: B rows, T positions, V vocabulary, N targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ftune.cross_entropy import sums_of_rows, token_losses
from ftune.objectives import TEXT_METRICS, Encoding, Objective
from ftune.objectives._packed import packed_losses

if TYPE_CHECKING:
    import torch

    from ftune.data.encode import Example
    from ftune.objectives import Batch


class CausalLM(Objective):
    """Cross-entropy of each supervised token given all tokens before it."""

    name: Literal["causal_lm"] = "causal_lm"

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    families: ClassVar[frozenset[str]] = frozenset({"decoder"})
    packs: ClassVar[bool] = True
    predicts_tokens: ClassVar[bool] = True
    encoding: ClassVar[Encoding] = "next_token"
    generation_metrics: ClassVar[tuple[str, ...]] = TEXT_METRICS

    @property
    def formats(self) -> frozenset[str]:
        """Plain text, and anything with an answer."""
        return frozenset({"text", "prompt_completion", "instruction", "chat", "pairs", "multiple_choice", "tokens"})

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """The loss in three units."""
        return ("loss", "perplexity", "bits_per_byte")

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Pad to the longest example. Pads are known by length, never by their id.

        Returns:
            `input_ids`, `attention_mask`, `position_ids` int64 and `is_target` bool, each [B, T];
            `is_target[b, t]` says that token t of row b is to be predicted from tokens 0..t-1.
        """
        import torch

        longest = max(len(example.ids) for example in examples)
        shape = (len(examples), longest)
        input_ids = torch.full(shape, pad_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        is_target = torch.zeros(shape, dtype=torch.bool)
        for row, example in enumerate(examples):
            length = len(example.ids)
            columns = slice(longest - length, longest) if left else slice(0, length)
            input_ids[row, columns] = torch.from_numpy(example.ids).long()
            attention_mask[row, columns] = 1
            is_target[row, columns] = torch.from_numpy(example.is_target)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            "is_target": is_target,
        }

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of -log p(token) over each row's targets, in fp32, and their number; both [B]."""
        if "lengths" in batch:
            return packed_losses(model, batch, ahead=1, chunk=self._chunk)
        is_target = batch["is_target"][:, 1:]  # position t predicts token t+1
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        rows, columns = is_target.nonzero(as_tuple=True)  # [N]
        labels = batch["input_ids"][:, 1:][is_target]
        losses = token_losses(model, {**inputs, "use_cache": False}, (rows, columns), labels, chunk=self._chunk)
        return sums_of_rows(losses, rows, len(is_target)), is_target.sum(dim=1)


OBJECTIVE = CausalLM
