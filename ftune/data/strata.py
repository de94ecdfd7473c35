"""Hold out whole groups so that each label keeps its share.

A greedy form of iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011) for groups. Groups with rare labels
are asked first, and one is taken if its rarest label still lacks rows. Then the groups that harm least are added or
given back, until the number of rows is as near as it can be, and groups are exchanged while that helps. The harm is the
sum over labels of (held - wanted)^2 / wanted: a row too many of a rare label weighs more than one of a common label.
Rows with one label, each a group of its own, come out exact after the first step.
R rows, G groups, K labels, P pairs of a row and a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ftune.errors import DataError

BINS = 10
"""Numbers of regression rows are stratified by tenths: equal shares of the rows between one bound and the next."""
SEARCH = 200_000_000
"""Pairs of a group and a label that are looked at for exchanges: a few seconds. Larger sets come out near without."""
NO_LABEL = "(no label)"


@dataclass(frozen=True)
class Strata:
    """Labels of rows as numbers.

    Args:
        pairs: (row, label) of every label of every row, int64[P, 2].
        names: of the labels, [K].
    """

    pairs: np.ndarray
    names: tuple[str, ...]

    def once(self, group: np.ndarray) -> list[str]:
        """Labels that only one group has, so that it stays in train.

        Args:
            group: digest of each row's group, uint64[R].
        """
        found = np.unique(np.stack([self.pairs[:, 1].astype(np.uint64), group[self.pairs[:, 0]]], axis=1), axis=0)
        counts = np.bincount(found[:, 0].astype(np.int64), minlength=len(self.names))
        return [name for name, count in zip(self.names, counts, strict=True) if count == 1]


def strata_of(labels: Iterable[str | tuple[str, ...] | float | None]) -> Strata:
    """What a split by labels keeps the shares of: each label, tag, or tenth of the numbers.

    Args:
        labels: of each row, in order: one, several, a number, or None for a row that has none.
    """
    codes: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    numbers: list[float] = []
    for row, label in enumerate(labels):
        if isinstance(label, float):
            numbers.append(label)
            continue
        names = (label,) if isinstance(label, str) else tuple(dict.fromkeys(label or ())) or (NO_LABEL,)
        pairs += [(row, codes.setdefault(name, len(codes))) for name in names]
    if not numbers:
        return Strata(np.array(pairs, dtype=np.int64).reshape(-1, 2), tuple(codes))
    values = np.array(numbers)
    bounds = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    tenths, found = np.unique(np.searchsorted(bounds, values, side="right"), return_inverse=True)
    return Strata(np.stack([np.arange(len(values)), found], axis=1), tuple(f"tenth {tenth + 1}" for tenth in tenths))


def nearest_strata(
    group_of_row: np.ndarray, sizes: np.ndarray, order: np.ndarray, share: float, pairs: np.ndarray
) -> np.ndarray:
    """Groups to hold out, bool[G].

    Args:
        group_of_row: number of each row's group, int64[R].
        sizes: rows of each group, int64[G].
        order: in which groups are asked where nothing else decides, int64[G].
        share: of the rows, and of each label.
        pairs: (row, label) of every label of every row, int64[P, 2].

    Raises:
        DataError: every group has a label that no other group has.
    """
    table = _Table(group_of_row, sizes, order, share, pairs)
    table.take_labels()
    table.level()
    table.exchange()
    if not table.held.any():
        table.take_one()
    return table.held


class _Table:
    """Which groups are held out, and how many rows of each label that makes."""

    def __init__(
        self, group_of_row: np.ndarray, sizes: np.ndarray, order: np.ndarray, share: float, pairs: np.ndarray
    ) -> None:
        num_labels = int(pairs[:, 1].max()) + 1
        cells, self.counts = np.unique(group_of_row[pairs[:, 0]] * num_labels + pairs[:, 1], return_counts=True)
        self.groups, self.labels = np.divmod(cells, num_labels)  # rows of group groups[i] with label labels[i]
        self.starts = np.searchsorted(self.groups, np.arange(len(sizes) + 1))
        totals = np.bincount(self.labels, self.counts, num_labels)
        self.wanted, self.have = share * totals, np.zeros(num_labels)
        self.left = np.bincount(self.labels, minlength=num_labels)  # groups with each label that are trained on
        self.locked = np.zeros(len(sizes), dtype=bool)
        self.locked[self.groups[self.left[self.labels] == 1]] = True
        rarest = np.full(len(sizes), np.inf)
        np.minimum.at(rarest, self.groups, totals[self.labels])
        rank = np.empty(len(sizes), dtype=np.int64)
        rank[order] = np.arange(len(sizes))
        self.rank, self.asked = rank, np.lexsort((rank, rarest))
        self.sizes, self.held = sizes, np.zeros(len(sizes), dtype=bool)
        self.missing = share * float(sizes.sum())

    def take_labels(self) -> None:
        """Ask each group once, those with the rarest labels first."""
        wanted, have, left = self.wanted.tolist(), self.have.tolist(), self.left.tolist()  # lists: no array overhead
        labels, counts, starts = self.labels.tolist(), self.counts.tolist(), self.starts.tolist()
        for group in self.asked.tolist():
            own = range(starts[group], starts[group + 1])
            if any(left[labels[i]] < 2 for i in own):
                continue
            gain = sum(
                counts[i] * (2 * (wanted[labels[i]] - have[labels[i]]) - counts[i]) / wanted[labels[i]] for i in own
            )
            if gain > 0:
                self.held[group] = True
                for i in own:
                    have[labels[i]] += counts[i]
                    left[labels[i]] -= 1
        self.have, self.left = np.array(have), np.array(left)
        self.missing -= float(self.sizes[self.held].sum())

    def level(self) -> None:
        """Add groups, or give some back, while that brings the number of rows nearer: the least harmful first."""
        while self.missing:
            sign = 1 if self.missing > 0 else -1
            free = (~self.held & ~self.locked) if sign > 0 else self.held
            fitting = np.flatnonzero(free & (self.sizes < 2 * abs(self.missing)))
            order = fitting[np.lexsort((self.rank[fitting], -self._gains(sign)[fitting]))]
            moved = 0
            for group in order.tolist():  # many at once while much is missing, else one
                if moved and moved + self.sizes[group] > abs(self.missing) / 8:
                    break
                moved += self._move(group, sign)
            if not moved:
                return
            self.missing -= sign * moved

    def exchange(self) -> None:
        """Exchange a group for a better one of about its size, the most harmful first, until no exchange helps."""
        left, better = SEARCH // len(self.groups), True
        while better and (np.abs(self.have - self.wanted) >= 1).any():
            better, gains = False, self._gains(-1)
            for group in sorted(np.flatnonzero(self.held).tolist(), key=lambda one: (-gains[one], self.rank[one])):
                if left == 0:
                    return
                left -= 1
                better |= self._exchanged(group)

    def _exchanged(self, group: int) -> bool:
        """Whether there was a better group than this one."""
        gain = self._gains(-1)[group]
        self._move(group, -1)
        gains, missing = self._gains(1), self.missing + self.sizes[group]
        open_to = ~self.held & ~self.locked & (np.abs(missing - self.sizes) <= abs(self.missing) + 1e-9)
        gains[~open_to] = -np.inf
        best = gains.max()
        equal = np.flatnonzero(gains == best)
        other = int(equal[np.argmin(self.rank[equal])]) if best + gain > 1e-9 else group
        if other == group or not self._move(other, 1):
            self._move(group, 1)
            return False
        self.missing = missing - self.sizes[other]
        return True

    def take_one(self) -> None:
        """Hold out the smallest group that may be, the least harmful of its size.

        Raises:
            DataError: there is none.
        """
        for group in np.lexsort((self.rank, -self._gains(1), self.sizes)).tolist():
            if not self.locked[group] and self._move(group, 1):
                return
        raise DataError(
            "cannot hold out a share by labels: every group has a label that no other group has. "
            "Set data.stratify to false, or name a file in data.eval."
        )

    def _gains(self, sign: int) -> np.ndarray:
        """How much nearer the labels come to their shares when a group is added (1) or given back (-1), [G]."""
        open_by = sign * (self.wanted - self.have)[self.labels]
        gains = self.counts * (2 * open_by - self.counts) / self.wanted[self.labels]
        return np.bincount(self.groups, gains, minlength=len(self.sizes))

    def _move(self, group: int, sign: int) -> int:
        """Add a group, or give it back; returns its rows, or 0 where train would lose a label."""
        own = slice(self.starts[group], self.starts[group + 1])
        labels = self.labels[own]
        if sign > 0 and (self.left[labels] < 2).any():
            return 0
        self.have[labels] += sign * self.counts[own]
        self.left[labels] -= sign
        self.held[group] = sign > 0
        return int(self.sizes[group])
