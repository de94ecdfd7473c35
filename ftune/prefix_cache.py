"""Log-probabilities of targets whose rows begin alike: what they share is computed once, its keys and values kept.

    rows       [shared by all | shared by the options of a row | an option]
    computed    once            once a row                       each

Only models whose cache holds every token of every layer can be continued so: a sliding window forgets, recurrent states
cannot be cut, and virtual tokens stand in no cache of ours. The others compute each row whole.

Tensors: B rows, S cached slots, L new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ftune.compiled import uncompiled
from ftune.data.encode import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prefix:
    """Tokens that were read once.

    Args:
        ids: of the tokens, [S].
        cache: their keys and values, of one row.
    """

    ids: tuple[int, ...]
    cache: Any

    def repeated(self, count: int) -> Any:
        """A cache of `count` equal rows, which may be written to."""
        import torch

        device = self.cache.layers[0].keys.device
        return _picked(self.cache, torch.zeros(count, dtype=torch.int64, device=device))


class _Seen(NamedTuple):
    """What was read of some rows: keys and values, and which slots [B, S] hold tokens instead of pads."""

    cache: Any
    mask: torch.Tensor


@dataclass
class PrefixCache:
    """Computes rows that begin alike.

    Args:
        model: on its device, in evaluation mode.
        autocast: the context that the model runs in.
        pad_id: id that fills short rows; masked by length.
        batch_size: rows of a forward; never changes results.
    """

    model: torch.nn.Module
    autocast: Callable[[], AbstractContextManager[Any]]
    pad_id: int
    batch_size: int
    _kept: Prefix | None = field(default=None, init=False)

    def prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Read `ids` [S], or take them from the last call; None where the model's cache cannot be continued."""
        import torch

        if not ids:
            return None
        if self._kept is None or self._kept.ids != tuple(ids):
            device = next(self.model.parameters()).device
            tokens = torch.tensor([list(ids)], device=device)
            _, seen = self._read(None, tokens, torch.ones_like(tokens))
            if not _holds_all(seen.cache, len(ids)):
                return None
            self._kept = Prefix(tuple(ids), seen.cache)
        return self._kept

    def nats(
        self, examples: Sequence[Example], groups: Sequence[int], tick: Callable[[int], None]
    ) -> np.ndarray | None:
        """-log p of the targets of each example, float64 [N], in nats.

        Args:
            examples: N rows of tokens with targets, at least one each.
            groups: [N]; neighbours of one number, such as the options of a question, share more than all do.
            tick: called with the number of examples done; may raise to stop.

        Returns:
            None where the model's cache cannot be continued, or there is nothing to share.
        """
        import torch

        shared = _shared(examples, range(len(examples)))
        parts = [list(part) for _, part in groupby(range(len(examples)), key=lambda i: groups[i])]
        if not shared and (len(parts) == len(examples) or not all(_shared(examples, part) for part in parts)):
            return None
        # without a common beginning, any token tells whether the cache can be continued
        prefix = self.prefix(examples[0].ids[: max(1, shared)].tolist())
        if prefix is None:
            return None
        prefix = prefix if shared else None
        found = np.zeros(len(examples))
        parts.sort(key=lambda part: -len(examples[part[0]].ids))
        done = 0
        with torch.no_grad(), uncompiled():
            for start in range(0, len(parts), self.batch_size):
                some = parts[start : start + self.batch_size]
                self._score(prefix, [(i, row) for row, part in enumerate(some) for i in part], examples, found)
                done += sum(map(len, some))
                tick(done)
        return found

    def _score(
        self, prefix: Prefix | None, pairs: list[tuple[int, int]], examples: Sequence[Example], found: np.ndarray
    ) -> None:
        """Fill `found` at the examples of some groups, given as (example, group)."""
        import torch

        first = 0 if prefix is None else len(prefix.ids)
        members = [[i for i, owner in pairs if owner == row] for row in range(1 + max(row for _, row in pairs))]
        ends = [_shared(examples, part) for part in members]
        device = next(self.model.parameters()).device
        seen = None
        if prefix is not None:
            mask = torch.ones((len(members), first), dtype=torch.int64, device=device)
            seen = _Seen(prefix.repeated(len(members)), mask)
        if seen is not None and (len(pairs) == len(members) or min(ends) == first):  # there is nothing more to share
            ends = [first] * len(members)
        else:
            rows = [examples[part[0]].ids[first:end] for part, end in zip(members, ends, strict=True)]
            _, seen = self._read(seen, *self._padded(rows, device))
        for start in range(0, len(pairs), self.batch_size):
            some = pairs[start : start + self.batch_size]
            owners = torch.tensor([row for _, row in some], device=device)
            rows = [examples[i].ids[ends[row] :] for i, row in some]
            picked = _Seen(_picked(seen.cache, owners), seen.mask[owners])
            logits, _ = self._read(picked, *self._padded(rows, device))
            for line, (i, row) in enumerate(some):
                places = np.flatnonzero(examples[i].is_target)
                predicting = torch.from_numpy(places - 1 - ends[row]).to(device)
                wanted = torch.from_numpy(examples[i].ids[places].astype(np.int64)).to(device)
                said = logits[line, predicting].float().log_softmax(dim=-1)  # [targets, V]
                found[i] = -float(said.gather(1, wanted[:, None]).double().sum())

    def _padded(self, rows: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, L], with pads behind."""
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for line, row in enumerate(rows):
            ids[line, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
            mask[line, : len(row)] = 1
        return ids.to(device), mask.to(device)

    def _read(self, seen: _Seen | None, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, _Seen]:
        """Logits [B, L, V] of new tokens, and what was seen with them."""
        import torch

        whole = mask if seen is None else torch.cat([seen.mask, mask], dim=1)  # [B, S + L]
        positions = (whole.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        cached = {} if seen is None else {"past_key_values": seen.cache}
        with torch.no_grad(), uncompiled(), self.autocast():
            output = self.model(input_ids=ids, attention_mask=whole, position_ids=positions, use_cache=True, **cached)
        return output.logits, _Seen(output.get("past_key_values"), whole)


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    return _common([np.asarray(row) for row in rows], [max(0, len(row) - 1) for row in rows]) if rows else 0


def _shared(examples: Sequence[Example], some: Sequence[int]) -> int:
    """How many tokens some examples begin with that may be read ahead."""
    return max(0, _common([examples[i].ids for i in some], [_limit(examples[i]) for i in some]))


def _common(rows: Sequence[np.ndarray], limits: Sequence[int]) -> int:
    """Length of what all rows begin with, at most each row's limit."""
    # what the first and the last in order share, all share
    low, high = min(rows, key=lambda row: row.tolist()), max(rows, key=lambda row: row.tolist())
    size = min(len(low), len(high))
    differs = np.flatnonzero(low[:size] != high[:size])
    return min(int(differs[0]) if len(differs) else size, *limits, size)


def _limit(example: Example) -> int:
    """Tokens that may be read ahead: the one before the first target must be read again, for what it predicts."""
    return int(np.flatnonzero(example.is_target)[0]) - 1


def _holds_all(cache: Any, length: int) -> bool:
    """Whether every layer keeps keys and values of every token."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not isinstance(cache, DynamicCache) or not cache.layers:
        return False
    return all(type(layer) is DynamicLayer and layer.keys.shape[2] == length for layer in cache.layers)


def _picked(cache: Any, rows: torch.Tensor) -> Any:
    """A cache of its own with some rows of another."""
    from transformers import DynamicCache

    new = DynamicCache()
    for number, layer in enumerate(cache.layers):
        new.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), number)
    return new
