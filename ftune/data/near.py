"""Near duplicates: texts that share most of their words.

A text becomes the set of its words and of its pairs of neighbouring words, without case and punctuation. Two texts are
as alike as their sets: Jaccard similarity, shared / all. Comparing each with each is too slow, so MinHash with
locality-sensitive hashing (Broder, 1997; Indyk and Motwani, 1998; datasketch) finds candidates, and the exact
similarity of the sets decides. A pair at the threshold is missed with a chance of at most 1 in 1000.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 64
"""Hash functions of a MinHash; datasketch draws them from SEED, so that results repeat."""
SEED = 1
MISSED = 1e-3
"""Largest chance that a pair at the threshold is no candidate."""
MIN_WORDS = 5
"""A text with fewer different words is not compared: half a greeting is like half of all greetings."""
RUN = 6
"""Words in a row that make a template, if enough texts have them. Fewer cannot make texts near by themselves."""
RUN_SHARE, RUN_TEXTS = 0.05, 5
"""Texts with the same run of words, as a share and in number, from which on it counts as a template."""
LOOKED_AT = 2000
"""Texts in which templates are looked for."""
BLOCK = 8192
"""Members of a set that are hashed at once: [BLOCK, PERMUTATIONS] uint32 are 2 MiB."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
"""A run of letters and digits; in scripts that put no spaces between words, each character."""
_APOSTROPHES = str.maketrans("", "", "'\u2019")

Shingle = str | tuple[str, str]
Run = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of a text. Case, punctuation and white space make no difference."""
    return _WORD.findall(text.casefold().translate(_APOSTROPHES))


def shingles_of(words: Sequence[str]) -> list[Shingle] | None:
    """The set that stands for a text: each word and each pair of words once. None for a short text."""
    single = dict.fromkeys(words)  # in the order of the text: that of a set is another in each process
    return None if len(single) < MIN_WORDS else [*single, *dict.fromkeys(itertools.pairwise(words))]


def templates_in(texts: Iterable[Sequence[str]]) -> frozenset[Run]:
    """Runs of words that so many texts have that they come from a template.

    Args:
        texts: words of each.
    """
    counts: Counter[Run] = Counter()
    total = 0
    for words in itertools.islice(texts, LOOKED_AT):
        total += 1
        counts.update(set(_runs(words)))
    least = max(RUN_TEXTS, RUN_SHARE * total)
    return frozenset(run for run, count in counts.items() if count >= least)


def without_templates(words: Sequence[str], templates: frozenset[Run]) -> Sequence[str]:
    """The words that belong to no template."""
    if not templates:
        return words
    own = [True] * len(words)
    for start, run in enumerate(_runs(words)):
        if run in templates:
            own[start : start + RUN] = [False] * RUN
    return list(itertools.compress(words, own))


def _runs(words: Sequence[str]) -> Iterable[Run]:
    return zip(*(words[offset:] for offset in range(RUN)), strict=False)


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of a band: as few candidates as go with a miss of at most MISSED at the threshold."""
    choices = ((PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS // 2, 0, -1))
    return next(((b, r) for b, r in choices if (1 - threshold**r) ** b <= MISSED), (PERMUTATIONS, 1))


class NearIndex:
    """Sets of one side, to be looked up with those of the other. Memory: some 200 bytes for each different member."""

    def __init__(self, threshold: float) -> None:
        """Start empty.

        Args:
            threshold: least Jaccard similarity of a match, above 0 and at most 1.
        """
        from datasketch import MinHash, MinHashLSH

        self._threshold = threshold
        self._numbers: dict[Shingle, int] = {}
        self._sets: dict[int, np.ndarray] = {}
        self._minhash = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))

    def add(self, key: int, words: Sequence[str]) -> None:
        """Put a text in, under a key of its own; a short one is left out."""
        shingles = shingles_of(words)
        if shingles is None:
            return
        numbers = [self._numbers.setdefault(member, len(self._numbers)) for member in shingles]
        self._sets[key] = np.array(numbers, dtype=np.int32)
        self._index.insert(key, self._hashed(numbers), check_duplication=False)

    def matches(self, words: Sequence[str]) -> list[tuple[int, float]]:
        """Key and similarity of every text in the index that is as near as the threshold, by key."""
        own: set[Shingle] = {*words, *itertools.pairwise(words)}
        unknown = own.difference(self._numbers)
        if len(own) - len(unknown) < self._threshold * len(own) or len({*words}) < MIN_WORDS:
            return []  # as for most texts: too few of its members are in any set of the index
        known = {self._numbers[member] for member in own - unknown}
        found = []
        for key in sorted(self._index.query(self._hashed([*known]))):  # without the others, it only looks more alike
            shared = len(known.intersection(self._sets[key].tolist()))
            similarity = shared / (len(own) + len(self._sets[key]) - shared)
            if similarity >= self._threshold:
                found.append((key, similarity))
        return found

    def _hashed(self, numbers: list[int]) -> MinHash:
        """The MinHash of a set, good until the next one: a new object costs more than the hashes."""
        self._minhash.clear()
        for start in range(0, len(numbers), BLOCK):
            self._minhash.update_batch(numbers[start : start + BLOCK])
        return self._minhash
