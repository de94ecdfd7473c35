"""A 5-gram model over tokens, the baseline that `builtin:starter` must beat: interpolated modified Kneser-Ney.

    p_n(w | h) = max(0, c(hw) - D(c(hw))) / c(h) + g(h) p_(n-1)(w | h')        p_0 = 1 / V
    g(h) = sum_k D(k) N_k(h) / c(h)        k = 1, 2, 3 or more

c counts the longest n-grams, and for shorter ones the different tokens before them; h' is h without its first token,
and N_k(h) the tokens that follow h k times. Discounts D are equations 23 to 25 of Chen and Goodman 1999, "An empirical
study of smoothing techniques for language modeling".

An n-gram is one 64-bit number, 12 bits a token, so that all of them are sorted arrays: W of order n, C contexts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

BITS = 12
ORDER = 5
"""The longest that 64 bits hold."""


@dataclass(frozen=True)
class Level:
    """N-grams of one order.

    Args:
        grams, taken: int64 [W] sorted, and max(0, c - D) of each, float64 [W].
        contexts: their different histories, int64 [C] sorted.
        totals, backoff: c(h) and g(h) of each, float64 [C].
    """

    grams: np.ndarray
    taken: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    backoff: np.ndarray


def fit(documents: Iterable[Sequence[int]], start: int) -> list[Level]:
    """Levels of order 1 to 5.

    Args:
        documents: token ids of each, all below 4096, with the token that ends it.
        start: id of the token that stands before each document, four times.
    """
    grams, counts = np.unique(np.concatenate([packed(ids, start, ORDER) for ids in documents]), return_counts=True)
    levels = [_level(grams, counts)]
    for order in range(ORDER - 1, 0, -1):
        grams, counts = np.unique(grams & ((1 << (BITS * order)) - 1), return_counts=True)
        levels.append(_level(grams, counts))
    return levels[::-1]


def packed(ids: Sequence[int], start: int, order: int) -> np.ndarray:
    """For each token the n-gram that ends in it, int64 [tokens]."""
    padded = np.concatenate([np.full(order - 1, start, np.int64), np.asarray(ids, np.int64)])
    found = np.zeros(len(ids), np.int64)
    for place in range(order):
        found = (found << BITS) | padded[place : place + len(ids)]
    return found


def _level(grams: np.ndarray, counts: np.ndarray) -> Level:
    discounts = _discounts(counts)
    each = discounts[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> BITS, return_index=True)
    totals = np.add.reduceat(counts, first).astype(np.float64)
    return Level(grams, np.maximum(0, counts - each), contexts, totals, np.add.reduceat(each, first) / totals)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D(0), D(1), D(2) and D(3 or more), from how many n-grams occur once to four times."""
    n = [max(1, int((counts == k).sum())) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    return np.clip([0.0, *(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))], 0, [0, 1, 2, 3])


def bits(levels: list[Level], ids: Sequence[int], start: int, vocabulary: int) -> float:
    """Bits that a document takes, the token that ends it included."""
    probability = np.full(len(ids), 1 / vocabulary)
    for order, level in enumerate(levels, 1):
        grams = packed(ids, start, order)
        place, known = _find(level.contexts, grams >> BITS)
        exact, seen = _find(level.grams, grams)
        own = np.where(seen, level.taken[exact], 0.0)
        better = own / level.totals[place] + level.backoff[place] * probability
        probability = np.where(known, better, probability)
    return float(-np.log2(probability).sum())


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted number is among sorted keys, and whether it is there at all."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted
