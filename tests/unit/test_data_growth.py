"""What the data path does for a row does not grow with the number of rows: calls, bytes read, and memory."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tiny_tokenizers import byte_tokenizer

from ftune.data.build import Dataset, build_data
from ftune.data.cache import Cache
from ftune.data.order import epoch_order
from ftune.data.render import Renderer
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import Data

RESIDENT_BYTES = 12
"""Of a row that stays in memory while a model trains: its place among the rows, and that of its example."""
PEAK_BYTES = 110
"""Of a row, at most, of arrays while splits are made."""


def build(folder: Path, rows: int, cache: Path | None) -> Dataset:
    """All of the data path, over rows of the same length."""
    name = f"{rows}.jsonl"
    if not (folder / name).exists():
        lines = (json.dumps({"prompt": f"{i:06}?", "completion": f" {i * 7919 % 999983:06}"}) for i in range(rows))
        (folder / name).write_text("\n".join(lines) + "\n")
    objective = CausalLM()
    return build_data(
        Data(train=name, eval="5%", near_duplicates=None), folder, Renderer(byte_tokenizer(), None), objective,
        accepted=objective.formats, guard=[], max_length=64, seed=0, max_eval_rows=20, encoder_decoder=False,
        tick=lambda *_: None, cache=Cache(cache),
    )  # fmt: skip


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C, but for what libraries do in threads of their own."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # when it runs, and what it calls, is chance
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def bytes_read() -> int:
    """Bytes that this process read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def per_row(measure: Callable[[int], int], sizes: tuple[int, int, int]) -> tuple[float, float]:
    """What a row costs between the first two sizes, and between the last two."""
    small, middle, large = (measure(rows) for rows in sizes)
    return (middle - small) / (sizes[1] - sizes[0]), (large - middle) / (sizes[2] - sizes[1])


def test_calls_per_row_are_constant(tmp_path: Path) -> None:
    build(tmp_path, 100, None)  # what is imported and made once
    first, later = per_row(lambda rows: calls_of(lambda: build(tmp_path, rows, None)), (1000, 2000, 5000))
    assert 50 < first < 300
    assert later == pytest.approx(first, rel=0.03)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells how many bytes were read")
@pytest.mark.parametrize("start", ["first", "second"])
def test_bytes_read_per_row_are_constant(tmp_path: Path, start: str) -> None:
    build(tmp_path, 100, None)

    def measure(rows: int) -> int:
        cache = tmp_path / f"cache{rows}"
        build(tmp_path, rows, cache if start == "second" else None)
        before = bytes_read()
        build(tmp_path, rows, cache)
        return bytes_read() - before

    first, later = per_row(measure, (1000, 2000, 5000))
    assert later == pytest.approx(first, rel=0.05)


def test_memory_of_a_row(tmp_path: Path) -> None:
    """Traced on the second start, in which no library keeps texts of its own."""
    build(tmp_path, 100, tmp_path / "cache")

    def measure(rows: int, which: int) -> int:
        build(tmp_path, rows, tmp_path / "cache")
        gc.collect()
        tracemalloc.start()
        dataset = build(tmp_path, rows, tmp_path / "cache")
        gc.collect()
        found = tracemalloc.get_traced_memory()[which]
        tracemalloc.stop()
        assert dataset.story == "cached"
        return found

    resident = per_row(lambda rows: measure(rows, 0), (1000, 3000, 8000))[1]
    assert 2 < resident <= RESIDENT_BYTES
    assert 8 < per_row(lambda rows: measure(rows, 1), (1000, 3000, 8000))[1] <= PEAK_BYTES


def test_an_epoch_holds_four_bytes_a_row() -> None:
    assert epoch_order(1000, 0, 0).nbytes == 4000
    assert sorted(epoch_order(1000, 0, 0).tolist()) == list(range(1000))
