"""What two systems need to be compared on the same rows: their metrics on the same bootstrap resamples.

Resamples depend on the number of rows only (`ftune.metrics.bootstrap`), so the r-th resample of one system holds the
rows of the r-th of every other that was scored on the same rows in the same order. Differences between the two are
then a paired bootstrap (Efron & Tibshirani 1993, chapter 16; Koehn 2004, https://aclanthology.org/W04-3250). A digest
says which rows they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ftune.data.encode import Example
from ftune.data.read import Row
from ftune.metrics import Score

RESAMPLES = "resamples.json"
"""Name of the file in a run folder."""


def rows_digest(scored: Sequence[Example] | Sequence[Row]) -> str:
    """Which rows, in which order: files by their names, rows by their numbers."""
    places = [(Path(one.file).name, one.number) for one in scored]
    return f"sha256:{sha256(json.dumps(places).encode()).hexdigest()}"


def evidence(scores: Mapping[str, Score], rows: str) -> dict[str, Any]:
    """For JSON: the rows' digest, and each metric on each resample, null where it has no value.

    Args:
        scores: by name of the metric; those without resamples are left out.
        rows: of `rows_digest`.
    """
    kept = {name: score for name, score in scores.items() if score.resamples is not None}
    return {
        "rows": rows,
        "metrics": {
            name: [None if np.isnan(value) else float(f"{value:.9g}") for value in score.resamples]
            for name, score in kept.items()
        },
    }


def read_evidence(found: Mapping[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """The digest, and by metric float64 [R] with NaN for null, of what `evidence` made."""
    metrics = {
        name: np.array([np.nan if v is None else v for v in values]) for name, values in found["metrics"].items()
    }
    return found["rows"], metrics
