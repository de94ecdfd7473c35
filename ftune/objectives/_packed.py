"""Rows laid end to end in one sequence, without pads, and their losses.

Tensors: B rows, S tokens of all of them, N targets, V outputs of the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftune.attention import packed_arguments
from ftune.cross_entropy import sums_of_rows, token_losses

if TYPE_CHECKING:
    import torch

    from ftune.data.encode import Example
    from ftune.objectives import Batch


def end_to_end(examples: list[Example]) -> Batch:
    """One sequence of all examples, in which the positions of each begin at 0.

    Returns:
        `input_ids`, `position_ids`, `labels` int64 and `is_target` bool, each [1, S]; `lengths` int64 [B]. `labels` are
        of tokens; without any, the ids.
    """
    import numpy as np
    import torch

    lengths = np.array([len(example.ids) for example in examples], dtype=np.int64)
    ids = np.concatenate([example.ids for example in examples]).astype(np.int64)
    given = [example.ids if example.labels is None else example.labels for example in examples]
    rows = {
        "input_ids": ids,
        "position_ids": np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths),
        "labels": np.concatenate(given).astype(np.int64),
        "is_target": np.concatenate([example.is_target for example in examples]),
    }
    batch = {name: torch.from_numpy(values)[None] for name, values in rows.items()}
    return {**batch, "lengths": torch.from_numpy(lengths)}


def packed_losses(
    model: torch.nn.Module, batch: Batch, ahead: int, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p(label) over each row's targets, in fp32, and their number; both [B].

    Without chunks, outputs are computed at the targets only where the model can do that.

    Args:
        model: understands `segments`, see `ftune.attention`.
        batch: of `end_to_end`.
        ahead: how many places before a target its prediction stands: 1 for the next token, 0 for a label.
        chunk: how many targets have outputs at once, see `ftune.cross_entropy`; None is all.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets = batch["is_target"][0].nonzero()[:, 0]  # [N]
    lengths, labels = batch["lengths"], batch["labels"][0, targets]
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        **packed_arguments(lengths, targets.device),
    }
    if chunk is not None:
        places = (torch.zeros_like(targets), targets - ahead)
        losses = token_losses(model, inputs, places, labels, chunk=chunk)
    else:
        said = model(**inputs, logits_to_keep=targets - ahead).logits[0]  # [N, V], or [S, V] without `logits_to_keep`
        if len(said) != len(targets):
            said = said[targets - ahead]
        losses = cross_entropy(said.float(), labels, reduction="none")  # [N]
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)[targets]
    counts = torch.bincount(rows, minlength=len(lengths))
    return sums_of_rows(losses, rows, len(lengths)), counts
