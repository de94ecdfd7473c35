"""The search for leaks beside tokenising the same rows: CPU seconds on banking77, and the ratio.

python tests/bench/leakage.py [MODEL]
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ftune.base import find_base, load_tokenizer
from ftune.data.encode_labels import Labelling, encode_row_labels
from ftune.data.labelled import label_names
from ftune.data.leakage import AUTO, find_leaks
from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.recipe import Model

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "banking77"
ROUNDS = 3


def rows_of(name: str) -> list[Sample]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Sample(Row(f"{name}.csv", number, {}), text=row["text"], label=row["category"])
            for number, row in enumerate(csv.DictReader(file), start=2)
        ]


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the best of a few rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def main() -> None:
    if not FOLDER.is_dir():
        print("banking77 is not beside this checkout: nothing to measure")
        return
    train, test = rows_of("train"), rows_of("test")
    name = sys.argv[1] if len(sys.argv) > 1 else "builtin:tiny-bert"
    tokenizer = load_tokenizer(find_base(Model(name=name), Path()))
    how = Labelling(Renderer(tokenizer, None), label_names(row.label for row in train), 512, "truncate", False)
    tokenising = seconds(lambda: list(encode_row_labels(train + test, how, lambda done: None)))
    print(f"{'':<34} {'CPU s':>6} {'share':>6}   (best of {ROUNDS}; tokenizer of {name})")
    print(f"{f'tokenising {len(train) + len(test)} rows':<34} {tokenising:>6.2f}")
    for what, held, near in (
        ("equal rows only", test, None),
        ("near, 500 held-out rows", test[:500], AUTO),
        (f"near, {len(test)} held-out rows", test, AUTO),
    ):
        held_out = {"test": held}
        taken = seconds(lambda: find_leaks(train, held_out, near=near, rows=0, tick=lambda *_: None))  # noqa: B023
        print(f"{what:<34} {taken:>6.2f} {taken / tokenising:>6.0%}")


if __name__ == "__main__":
    main()
