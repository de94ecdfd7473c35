"""Chats whose template rewrites earlier turns, from the file to the weights: rows stay together, runs resume."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from cuts import interrupt
from laws import recipe, train
from safetensors.numpy import load_file

from ftune.data.order import window
from ftune.data.pack import Cut
from ftune.data_report import account, source_rows
from ftune.load import Loaded
from ftune.prepare import prepare_data

TEMPLATE = (Path(__file__).parents[1] / "golden" / "templates" / "qwen_thinking.jinja").read_text(encoding="utf-8")


def talk(number: int) -> dict[str, Any]:
    """Of `1 + number % 3` questions, of which the second has an answer that is not to be learned."""
    messages: list[dict[str, Any]] = []
    for turn in range(1 + number % 3):
        messages.append({"role": "user", "content": f"{number} + {turn}?"})
        messages.append({"role": "assistant", "content": f"{number + turn}", "weight": int(turn != 1)})
    return {"messages": messages}


ROWS = [talk(number) for number in range(24)]
LEARNED = sum(1 + (number % 3 == 2) for number in range(24))


def talks(folder: Path, **sections: Any) -> Loaded:
    data = {"template": TEMPLATE, "max_length": 256, **sections.pop("data", {})}
    return recipe(folder, rows=ROWS, data=data, **sections)


def test_the_examples_of_a_row_stay_together_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    loaded = talks(tmp_path, data={"eval": "25%"})
    dataset = prepare_data(loaded, lambda *_: None).dataset
    assert dataset.eval is not None
    parts: dict[int, list[int]] = defaultdict(list)
    sides: dict[str, set[int]] = {"train": set(), "eval": set()}
    for name, split in (("train", dataset.train), ("eval", dataset.eval)):
        for example in split.examples:
            parts[example.number].append(example.num_targets)
            sides[name].add(example.number)
    assert not sides["train"] & sides["eval"]
    assert sides["train"] | sides["eval"] == {*range(1, 25)}
    assert {number: len(found) for number, found in parts.items()} == {
        number + 1: 1 + (number % 3 == 2) for number in range(24)
    }
    accounted, lines = account(loaded.recipe, dataset, source_rows(loaded.recipe, loaded.folder))
    assert accounted, lines
    reports = (dataset.train.report, dataset.eval.report)
    assert (sum(r.rows for r in reports), sum(r.windows for r in reports)) == (24, LEARNED)
    assert not any(r.truncated for r in reports), "an answer of weight 0 is none that was cut off"
    told = [note.split(" because ")[0] for report in reports for note in report.notes if "became" in note]
    rewritten = [sum(number % 3 == 0 for number in sides[name]) for name in ("train", "eval")]
    assert told == [f"{rows} rows became {2 * rows} examples" for rows in rewritten if rows]
    again = prepare_data(loaded, lambda *_: None).dataset
    assert (again.train.fingerprint, again.train.report.notes) == (
        dataset.train.fingerprint,
        dataset.train.report.notes,
    )


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_takes_examples_and_packs_them_like_any(tmp_path: Path, packing: bool) -> None:
    examples = prepare_data(talks(tmp_path), lambda *_: None).dataset.train.examples
    assert len(examples) == LEARNED
    seen = []
    for step in range(-(-LEARNED // 5)):
        one = window(examples, step, batch_size=5, cut=Cut(2, 400 if packing else None, packed=packing), seed=0)
        seen += [(example.number, example.num_tokens) for batch in one.micro_batches for example in batch]
    assert sorted(seen) == sorted((example.number, example.num_tokens) for example in examples)


def test_a_run_that_was_cut_goes_on_exactly_with_packing(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "data": {"packing": True}, "train": {"duration": "4 steps"}, "checkpoint": {"every": 2, "keep": 9},
    }  # fmt: skip
    whole = talks(tmp_path / "whole", **sections)
    train(whole)
    cut = talks(tmp_path / "cut", **sections)
    interrupt(cut, 2)
    train(cut)
    first, second = (
        load_file(folder / "run" / "model" / "model.safetensors") for folder in (tmp_path / "whole", tmp_path / "cut")
    )
    assert all((first[name] == second[name]).all() for name in first)
