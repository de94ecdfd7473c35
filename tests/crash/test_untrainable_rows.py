"""Rows that can be read and not be learned from: too long, nothing in the loss, ids that no tokenizer has.

Each file names, before a model is loaded, exactly its spoilt lines. What cannot be read at all is in
`tests/unit/test_malformed.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import laws
import pytest
from in_process import invoke

SEED = 31
LONGEST = 64


def good(kind: str, random: Random) -> dict[str, Any]:
    if kind == "too long":
        return {"prompt": "q" * random.randint(1, 12), "completion": "a" * random.randint(1, 12)}
    ids = [random.randrange(256) for _ in range(random.randint(2, 12))]
    return {"input_ids": ids, "loss_mask": [0] + [1] * (len(ids) - 1)}


def spoilt(kind: str, row: dict[str, Any], random: Random) -> dict[str, Any]:
    """A row of which nothing can be learned."""
    if kind == "too long":
        key = random.choice(list(row))
        return {**row, key: "w" * random.randint(LONGEST, 3 * LONGEST)}
    if kind == "masked":
        return {**row, "loss_mask": [0] * len(row["input_ids"])}
    if kind == "one token":
        return {"input_ids": row["input_ids"][:1], "loss_mask": [1]}
    place = random.randrange(len(row["input_ids"]))
    return {**row, "input_ids": [*row["input_ids"][:place], 10**6 + place, *row["input_ids"][place + 1 :]]}


SAID = {
    "too long": rf": has \d+ tokens, more than max_length {LONGEST}\. Raise data\.max_length",
    "id": r": has the token id 10000\d\d, but the tokenizer has ids 0 to \d+ only\.",
    "masked": "", "one token": "",
}  # fmt: skip


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.crash)])
def test_exactly_the_spoilt_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("ftune.model.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    done = Counter[str]()
    for number in range(count):
        random, kind = Random(f"{SEED} {number}"), list(SAID)[number % len(SAID)]
        rows = [good(kind, random) for _ in range(random.randint(3, 25))]
        bad = sorted(random.sample(range(len(rows)), random.randint(1, min(4, len(rows)))))
        lines, expected = list[str](), list[int]()
        for place, row in enumerate(rows):
            lines += [""] * random.choice([0, 0, 0, 2])
            lines.append(json.dumps(spoilt(kind, row, random) if place in bad else row))
            expected += [len(lines)] if place in bad else []
        data = {"template": None, "max_length": LONGEST, "overlong": "error"}
        data |= {} if kind == "too long" else {"format": "tokens", "template": None}
        loaded = laws.recipe(tmp_path / str(number), method="lora", data=data)
        file = tmp_path / str(number) / "rows.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        refused = invoke("train", loaded.path, "--quiet")
        about = f"file {number} of seed {SEED}, {kind}: {refused.stderr}"
        assert (refused.exit_code, refused.stdout) == (3, ""), about
        dropped = rf"dropped \(no_targets\): {re.escape(str(file))}:(\d+)"
        named = rf"{re.escape(str(file))}:(\d+){SAID[kind]}"
        found = re.findall(rf"(?m)^{named if SAID[kind] else dropped}", refused.stderr)
        assert [int(row) for row in found] == expected, about
        assert not (tmp_path / str(number) / "run/run.json").exists()
        done[kind] += 1
    print(f"{count} files: {dict(done)}")
