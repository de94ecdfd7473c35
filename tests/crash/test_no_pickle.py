"""Nothing that is written is a pickle or holds one, and no verb unpickles or, when told to, uses the network."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
from pathlib import Path

import numpy as np
import pytest
from command import write_recipe
from laws import python
from matrix import fast_cells
from typer.testing import CliRunner
from watch import watched

from ftune import methods
from ftune.cli import app

HERE = Path(__file__).parent
OPENINGS = {b"PK": "an archive", b"\x1f\x8b": "packed", b"BZh": "packed", b"\x93NUMPY": "numbers", b"\x89HDF": "HDF5",
            b"\xfd7zXZ": "packed", b"\x28\xb5\x2f\xfd": "packed"}  # fmt: skip
RAW = re.compile(r"\.[uif][1248]+")
"""Endings of the cache's arrays: plain numbers of the type that the ending names."""
CELLS = {cell.method: cell for cell in fast_cells()}
"""One for each method."""


def kind_of(path: Path) -> str:
    """What the bytes of a file are, whatever its name: `safetensors`, `json`, `jsonl`, `png`, `arrow`, `text` ...

    `unknown` and `pickle` are what no file of ours may be.
    """
    data = path.read_bytes()
    opening = next((kind for start, kind in OPENINGS.items() if data.startswith(start)), None)
    if opening == "numbers":
        return "numbers" if np.load(path, mmap_mode="r", allow_pickle=False).dtype.hasobject is False else "pickle"
    if opening is not None:
        return opening
    if _is_pickle(data):
        return "pickle"
    if RAW.fullmatch(path.suffix):
        return "numbers"
    if data.startswith(b"\x89PNG"):
        return "png"
    if data.startswith(b"ARROW1") or data[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if path.suffix == ".safetensors" and data[8:9] == b"{":
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return "safetensors"
    try:
        data.decode()
    except UnicodeDecodeError:
        return "unknown"
    return "text"


def _is_pickle(data: bytes) -> bool:
    """Whether all of it is a pickle of any protocol; the first of them is text."""
    try:
        return [*pickletools.genops(data)][-1][0].name == "STOP" and len(data) > 2
    except Exception:
        return False


def kinds(*roots: Path) -> dict[str, set[str]]:
    """Names of endings by the kind of what is in them."""
    found: dict[str, set[str]] = {}
    for path in sorted(file for root in roots for file in root.rglob("*") if file.is_file()):
        found.setdefault(kind_of(path), set()).add(path.name if kind_of(path) == "unknown" else path.suffix)
    return found


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_known_by_its_bytes(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(pickle.dumps({"a": [1, Path()]}, protocol))
    assert kind_of(path) == "pickle"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "lora" else [pytest.mark.crash]) for name in methods.names()]
)
def test_no_file_is_a_pickle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, its checkpoints, a merge, reports, a tracker and the cache: safetensors, JSON, text and pictures."""
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))
    loaded = CELLS[name].recipe(tmp_path, train={"duration": "2 steps"}, checkpoint={"every": 1, "best": None},
                                  tracking=["tensorboard"])  # fmt: skip
    mergeable = loaded.recipe.learner.mergeable and not loaded.recipe.learner.standalone
    commands = [["train", "recipe.yaml"], ["train", "recipe.yaml", "--set", "train.duration=3 steps"],
                ["eval", "run"], ["report", "run"]] + [["merge", "run"]] * mergeable  # fmt: skip
    with watched() as seen:
        for words in commands:
            result = CliRunner().invoke(app, [*words, "--quiet", "--offline"] if words[0] != "report" else words)
            assert result.exit_code == 0, result.output
    assert seen.unpickled == [] and seen.connected == []
    found = kinds(tmp_path / "run", tmp_path / "cache")
    events = found.pop("unknown", set())
    assert all(".tfevents." in event for event in events), events
    assert found.keys() <= {"safetensors", "text", "png", "arrow", "numbers"}, found
    inside = kinds(tmp_path / "run")
    assert inside["safetensors"] == {".safetensors"} and "numbers" not in inside and "arrow" not in inside


@pytest.mark.crash
def test_no_verb_unpickles_or_connects_when_it_is_told_not_to(tmp_path: Path) -> None:
    """In a process of its own, watched from the first import on; the environment allows the network."""
    write_recipe(tmp_path)
    commands = [["check", "recipe.yaml"], ["plan", "recipe.yaml"], ["data", "recipe.yaml"], ["train", "recipe.yaml"],
                ["train", "recipe.yaml", "--set", "train.duration=14 steps"], ["eval", "runs/recipe"],
                ["merge", "runs/recipe"], ["train", "recipe.yaml", "--set", "model=acme/tiny", "--output-dir", "new"],
                ["eval", "recipe.yaml", "--set", "model=acme/tiny"]]  # fmt: skip
    offline = [words if words[0] == "check" else [*words, "--offline"] for words in commands]
    network = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9",
               "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}  # fmt: skip

    def seen(words: list[list[str]]) -> dict[str, list[str]]:
        out = tmp_path / "seen.json"
        done = python(str(HERE / "watch.py"), str(out), json.dumps(words), environment=network, seconds=600)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        found: dict[str, list[str]] = json.loads(out.read_text())
        return found

    found = seen(offline)
    assert found["codes"] == [0] * 7 + [10, 10]
    assert found["connected"] == [] and found["unpickled"] == []
    assert seen([commands[-1]])["connected"], "the watch sees a connection where there is one"
