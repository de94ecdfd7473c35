"""Hold out part of the training rows: whole groups, after exact duplicates are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftune.data.encode import Example
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.errors import DataError


def without_duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The first of each set of equal samples, and the others."""
    seen: set[tuple[object, ...]] = set()
    kept: list[Sample] = []
    duplicates: list[Sample] = []
    for sample in samples:
        (duplicates if sample.content in seen else kept).append(sample)
        seen.add(sample.content)
    return kept, duplicates


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split into training and held-out samples.

    Groups (rows with the same first question, or the same document) stay together. Which groups are held out depends
    on their content and the seed only, not on the order of the file. A single document is cut near a line end, and
    its last part is held out.

    Raises:
        DataError: there is too little to split.
    """
    if len(samples) == 1 and not samples[0].turns:
        return _cut_document(samples[0], share)
    groups = sorted({sample.group for sample in samples}, key=lambda group: _rank(seed, group))
    if len(groups) < 2:
        raise DataError(
            f"cannot hold out a share of {len(samples)} rows that are one group (same first question). "
            "Name a file in data.eval, or set it to null."
        )
    held = set(groups[: max(1, round(share * len(groups)))])
    train = [sample for sample in samples if sample.group not in held]
    if not train:
        raise DataError(f"holding out {share:.0%} leaves no row to train on. Lower data.eval.")
    return train, [sample for sample in samples if sample.group in held]


def subset(samples: Sequence[Sample], max_rows: int | None, seed: int) -> list[Sample]:
    """At most `max_rows` samples, drawn by the seed, in the order of the file.

    A row is known by its file's name and its number, so that moving a project does not change what is measured.
    """
    if max_rows is None or len(samples) <= max_rows:
        return list(samples)
    places = [f"{Path(sample.row.file).name}:{sample.row.number}" for sample in samples]
    ranked = sorted(range(len(samples)), key=lambda i: _rank(seed, places[i]))
    return [samples[i] for i in sorted(ranked[:max_rows])]


def weighted(examples: Sequence[Example], weights: Mapping[tuple[str, int], float], seed: int) -> list[Example]:
    """Each example as often as the weight of its row says; of what is left of a weight, that share, drawn by the seed.

    0.25 takes a quarter of a source's examples, 2.5 takes all twice and a half of them once more.

    Args:
        examples: of all sources.
        weights: of rows by file and number, where it is not 1.
        seed: of the draw.
    """
    chosen: list[int] = []
    groups: dict[float, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(weights.get((example.file, example.number), 1.0), []).append(i)
    for weight, members in groups.items():
        whole, rest = int(weight), weight - int(weight)
        ranked = sorted(members, key=lambda i: _rank(seed, f"{Path(examples[i].file).name}:{examples[i].number}:{i}"))
        chosen += members * whole + ranked[: round(rest * len(members))]
    return [examples[i] for i in sorted(chosen)]


def overlap(train: Sequence[Sample], held: Sequence[Sample]) -> int:
    """How many held-out samples are also trained on, word for word."""
    seen = {sample.content for sample in train}
    return sum(sample.content in seen for sample in held)


def _rank(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{text}".encode(errors="surrogatepass"), digest_size=16).digest()


def _cut_document(sample: Sample, share: float) -> tuple[list[Sample], list[Sample]]:
    text = sample.text
    wanted = round(len(text) * (1 - share))
    cut = text.find("\n", wanted, len(text.rstrip())) + 1 or wanted  # the last line's end would hold nothing out
    if not (text[:cut].strip() and text[cut:].strip()):
        raise DataError(f"{sample.row.file}: the document is too short to hold out {share:.0%} of it.")
    in_file = Path(sample.row.file).suffix.lower() in (".txt", ".md")
    line = sample.row.number + (text.count("\n", 0, cut) if in_file else 0)
    return [Sample(sample.row, text=text[:cut])], [Sample(Row(sample.row.file, line, {}), text=text[cut:])]
