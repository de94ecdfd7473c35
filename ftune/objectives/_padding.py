"""Examples of one batch, side by side. Pads are known by length, never by their id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from ftune.data.encode import Example


def padded(
    examples: list[Example], pad_id: int, left: bool, of: Literal["ids", "answer", "labels"] = "ids"
) -> dict[str, torch.Tensor]:
    """One sequence of each example, filled up to the longest on the right or, with `left`, on the left.

    Returns:
        `input_ids`, `attention_mask` int64 and `is_target` bool, each [B, T]; `is_target` only where it has the
        sequence's length, as it does unless the label is one of the whole row. With `left` also `position_ids`.
    """
    import torch

    rows = [getattr(example, of) for example in examples]
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    is_target = torch.zeros(ids.shape, dtype=torch.bool)
    of_tokens = all(len(example.is_target) == len(row) for example, row in zip(examples, rows, strict=True))
    for number, (example, row) in enumerate(zip(examples, rows, strict=True)):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, columns] = torch.from_numpy(row).long()
        mask[number, columns] = 1
        if of_tokens:
            is_target[number, columns] = torch.from_numpy(example.is_target)
    batch = {"input_ids": ids, "attention_mask": mask}
    if left and of == "ids":  # pads before a text must not move it
        batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return batch | ({"is_target": is_target} if of_tokens else {})
