"""What a frozen body says of the rows of a split, computed once and kept in a cache on disk.

A cache folder has one entry for each set of layers and poolings that was computed in one pass over a split:

    <cache>/<fingerprint of base, texts, number types>/<layers and poolings>/{mean.npy, ..., MANIFEST.json}

Entries are published whole, verified when they are taken, and mapped into memory. Whoever needs an entry first computes
it, other processes wait. Any entry that holds what is asked for will do.

Tensors: R rows of the split or, per token, its labelled tokens; L layers, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ftune.data.cache import alone
from ftune.data.encode import Example
from ftune.errors import ArtifactError, DivergedError
from ftune.manifest import MANIFEST, read_manifest, verify
from ftune.methods._feature_model import TOKEN, hidden_states, pooled, width_of
from ftune.store import OnOperation, Store

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VERSION = 1
"""Of the code that computes features: entries of another version are not taken."""


@dataclass(frozen=True)
class FeatureSource:
    """Features of examples, from the cache or from the body.

    Args:
        body: the frozen model, on its device.
        cache: folder of all entries.
        identity: of the body's weights, with everything that shapes its numbers.
        batch_size: rows per forward; never changes a feature beyond rounding.
        pad_id: fills short rows.
        autocast: the context that the body runs in.
        tick: called with (rows done, of all) as the body runs; may raise to stop.
        on_operation: fault injection for tests, see `Store`.
    """

    body: PreTrainedModel
    cache: Path
    identity: Mapping[str, str]
    batch_size: int
    pad_id: int
    autocast: Callable[[], AbstractContextManager[Any]]
    tick: Callable[[int, int], None]
    on_operation: OnOperation | None = None

    def __call__(
        self, examples: Sequence[Example], layers: tuple[int, ...], poolings: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """For each pooling float32 [R, L, D], mapped from the disk.

        Raises:
            DiskError: the cache cannot be written.
            DivergedError: the body's numbers are not finite.
        """
        folder = self.cache / self._fingerprint(examples, per_token=TOKEN in poolings)
        found = _find(folder, layers, poolings)
        if found is None:
            with alone(folder, lambda: self.tick(0, len(examples))):
                found = _find(folder, layers, poolings) or self._computed(folder, examples, layers, poolings)
        return found

    def _fingerprint(self, examples: Sequence[Example], *, per_token: bool) -> str:
        head = {"version": VERSION, "per_token": per_token, **self.identity}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for example in examples:
            digest.update(len(example.ids).to_bytes(4, "little") + example.ids.tobytes())
            digest.update(example.is_target.tobytes() if per_token else b"")
        return digest.hexdigest()[:40]

    def _computed(
        self, folder: Path, examples: Sequence[Example], layers: tuple[int, ...], poolings: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """Run the body over all rows and publish the entry. Called under the lock."""
        store = Store(folder, self.on_operation)
        store.sweep()
        sizes = [example.num_targets if TOKEN in poolings else 1 for example in examples]
        row_bytes = 4 * len(layers) * width_of(self.body)
        store.require_space(sum(sizes) * row_bytes * len(poolings), "the features of the rows")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        name = hashlib.sha256(json.dumps([layers, poolings]).encode()).hexdigest()[:16]
        entry = store.publish(
            name,
            lambda temp: self._write(temp, examples, sizes, layers, poolings),
            {"layers": list(layers), "poolings": list(poolings), "rows": sum(sizes), "made": made},
        )
        return _open(entry, list(layers), layers, poolings)

    def _write(
        self,
        temp: Path,
        examples: Sequence[Example],
        sizes: Sequence[int],
        layers: tuple[int, ...],
        poolings: tuple[str, ...],
    ) -> None:
        """One array for each pooling, in the order of the examples; batches go by length, so that little is padded."""
        starts = np.concatenate([[0], np.cumsum(sizes)])
        order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
        files: dict[str, _Array] = {}
        try:
            for first in range(0, len(order), self.batch_size):
                self.tick(first, len(order))
                rows = order[first : first + self.batch_size]
                for pooling, parts in self._features([examples[i] for i in rows], layers, poolings).items():
                    if pooling not in files:
                        shape = (int(starts[-1]), *parts[0].shape[1:])
                        files[pooling] = _Array.create(temp / f"{pooling}.npy", shape)
                    for row, part in zip(rows, parts, strict=True):
                        files[pooling].put(int(starts[row]), part)
        finally:
            for file in files.values():
                file.stream.close()
        self.tick(len(order), len(order))

    def _features(
        self, examples: Sequence[Example], layers: tuple[int, ...], poolings: tuple[str, ...]
    ) -> dict[str, list[np.ndarray]]:
        """For each pooling one array for each example: [1, L, D], or [targets, L, D].

        Raises:
            DivergedError: a number is not finite; names the rows.
        """
        ids, mask = _padded(examples, self.pad_id)
        device = self.body.device
        with self.autocast():
            states = hidden_states(self.body, ids.to(device), mask.to(device), layers)  # [B, L, T, D]
        found: dict[str, list[np.ndarray]] = {}
        for pooling in poolings:
            if pooling == TOKEN:
                tokens = states.transpose(1, 2).cpu().numpy()  # [B, T, L, D]
                found[pooling] = [t[: len(e.ids)][e.is_target] for t, e in zip(tokens, examples, strict=True)]
            else:
                vectors = pooled(states, mask.to(device), pooling).cpu().numpy()
                found[pooling] = list(vectors[:, None])
        odd = [e.place for i, e in enumerate(examples) if not all(np.isfinite(f[i]).all() for f in found.values())]
        if odd:
            message = f"what the frozen model says of {', '.join(odd[:8])} is not finite. Set model.dtype: fp32."
            raise DivergedError(message)
        return found


@dataclass(frozen=True)
class _Array:
    """A `.npy` file whose rows are written in any order, as plain writes: a full disk is an error, not a crash.

    Args:
        stream: open for writing.
        begin: where the rows start, in bytes.
        row_bytes: size of one.
    """

    stream: BinaryIO
    begin: int
    row_bytes: int

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...]) -> _Array:
        """An array of float32 zeros."""
        stream = path.open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        begin, row_bytes = stream.tell(), 4 * int(np.prod(shape[1:]))
        stream.truncate(begin + shape[0] * row_bytes)
        return cls(stream, begin, row_bytes)

    def put(self, row: int, values: np.ndarray) -> None:
        """Write some rows from number `row` on."""
        self.stream.seek(self.begin + row * self.row_bytes)
        self.stream.write(np.ascontiguousarray(values, dtype="<f4").tobytes())


def _padded(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [B, T], with pads behind each text."""
    import torch

    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids).long()
        mask[row, : len(example.ids)] = 1
    return ids, mask


def _find(folder: Path, layers: tuple[int, ...], poolings: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Arrays of a whole entry that holds all that is asked for, or None. A damaged entry is none."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name.startswith(".") or not (entry / MANIFEST).is_file():
            continue
        try:
            facts = read_manifest(entry)
            if set(layers) <= set(facts["layers"]) and set(poolings) <= set(facts["poolings"]):
                verify(entry)
                with suppress(OSError):
                    os.utime(entry / MANIFEST)  # when it was last used
                return _open(entry, facts["layers"], layers, poolings)
        except (ArtifactError, KeyError):
            continue
    return None


def _open(
    entry: Path, stored: Sequence[int], layers: tuple[int, ...], poolings: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The layers that are asked for; neighbours stay on the disk, others are copied."""
    places = [list(stored).index(layer) for layer in layers]
    neighbours = places == list(range(places[0], places[0] + len(places)))
    chosen: Any = slice(places[0], places[0] + len(places)) if neighbours else places
    arrays = {pooling: np.load(entry / f"{pooling}.npy", mmap_mode="r") for pooling in poolings}
    return {pooling: np.asarray(array[:, chosen]) for pooling, array in arrays.items()}
