"""Loader hooks, 15 lines at the most, for those of the reference sets that no format covers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Rows = Iterator[dict[str, Any]]


def oasst_paths(path: Path) -> Rows:
    """Trees of messages: a chat for each way from the root to a leaf."""

    def walk(message: dict[str, Any], before: list[dict[str, str]]) -> Rows:
        here = [*before, {"role": message["role"], "content": message["text"]}]
        for reply in message.get("replies") or []:
            yield from walk(reply, here)
        if not message.get("replies"):
            yield {"messages": here}

    for line in path.read_text(encoding="utf-8").splitlines():
        yield from walk(json.loads(line)["prompt"], [])


def piqa(folder: Path) -> Rows:
    """Questions in one file, the right answers line by line in another."""
    labels = (folder / "valid-labels.lst").read_text(encoding="utf-8").split()
    lines = (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    for line, label in zip(lines, labels, strict=True):
        row = json.loads(line)
        yield {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer_index": int(label)}


def _pubmedqa(folder: Path, *, test: bool) -> Rows:
    in_test = json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8"))
    for key, row in json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8")).items():
        if (key in in_test) == test:
            yield {"text": " ".join(row["CONTEXTS"]), "text_pair": row["QUESTION"], "label": row["final_decision"]}


def pubmedqa_train(folder: Path) -> Rows:
    """Rows by key, with their contexts in a list; which are for testing is in another file."""
    return _pubmedqa(folder, test=False)


def pubmedqa_test(folder: Path) -> Rows:
    """The other half."""
    return _pubmedqa(folder, test=True)


def scitldr(path: Path) -> Rows:
    """Sentences of a paper in a list, and several summaries, of which the first is taken."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"source": " ".join(row["source"]), "target": row["target"][0]}


def dpo_chosen(path: Path) -> Rows:
    """A conversation and two answers to it, of which the better one is learned."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        yield {"conversations": [*row["conversations"], row["chosen"]]}
