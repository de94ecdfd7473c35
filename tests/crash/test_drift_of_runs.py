"""Runs that were cut and go on under a changed recipe, and the smallest change of content, which is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import laws
import pytest
from bases import noisy_base
from cuts import Stops
from laws import Shared
from test_drift import ACCEPTED

from ftune.errors import ArtifactError, DataError, Interrupted
from ftune.load import Loaded, load_recipe

CRASH = pytest.mark.crash
SEED = 9
FREE_CHANGES: dict[str, dict[str, Any]] = {
    "train.duration": {"train": {"duration": "8 steps"}},
    "train.max_minutes": {"train": {"max_minutes": 5}},
    "train.micro_batch_size": {"train": {"micro_batch_size": 4}},
    "train.activation_checkpointing": {"train": {"activation_checkpointing": True}},
    "train.compile": {"train": {"compile": "auto"}},
    "train.max_skipped_steps": {"train": {"max_skipped_steps": 2}},
    "train.early_stopping.patience": {"train": {"early_stopping": {"patience": 5}}},
    "train.early_stopping.min_delta": {"train": {"early_stopping": {"min_delta": 0.5}}},
    "data.packing": {"data": {"packing": False}},
    "data.max_dropped": {"data": {"max_dropped": "7%"}},
    "eval.every": {"eval": {"every": 1}},
    "eval.metrics": {"eval": {"metrics": ["exact_match"], "max_new_tokens": 2}},
    "eval.generate_every": {"eval": {"metrics": ["exact_match"], "max_new_tokens": 2, "generate_every": 4}},
    "eval.max_new_tokens": {"eval": {"metrics": ["exact_match"], "max_new_tokens": 3}},
    "eval.shots": {"eval": {"shots": [0]}},
    "eval.guard": {"eval": {"guard": ["rows.jsonl"]}},
    "checkpoint.every": {"checkpoint": {"every": 1}},
    "checkpoint.keep": {"checkpoint": {"keep": 1}},
    "checkpoint.best": {"checkpoint": {"best": None}},
    "tracking": {"tracking": ["tensorboard"]},
    "output_dir": {},
}
"""`distributed.devices` needs processes: tests of several ranks have it. `max_forgetting` needs a run that began with
its guard sets, see `tests/unit/test_forgetting.py`."""


def cut(folder: Path, **sections: Any) -> Loaded:
    """A run that is interrupted after three of six steps."""
    loaded = six(folder, **sections)
    listener = Stops(3)
    with pytest.raises(Interrupted):
        laws.train(loaded, listener, listener.flag)
    return loaded


def six(folder: Path, **sections: Any) -> Loaded:
    base: dict[str, Any] = {"method": {"name": "lora", "rank": 4}, "data": {"eval": "rows.jsonl"},
                            "train": {"duration": "6 steps"}, "eval": {"every": 4}}  # fmt: skip
    for name, block in sections.items():
        base[name] = {**base.get(name, {}), **block} if isinstance(block, dict) else block
    return laws.recipe(folder, **base)


@pytest.mark.parametrize("key", [*list(FREE_CHANGES)[:2], *(pytest.param(key, marks=CRASH) for key in FREE_CHANGES)])
def test_a_run_goes_on_with_a_changed_key(tmp_path: Path, key: str) -> None:
    assert FREE_CHANGES.keys() == ACCEPTED - {"distributed.devices", "train.early_stopping.max_forgetting"}
    cut(tmp_path / "r")
    loaded = six(tmp_path / "r", **FREE_CHANGES[key])
    if key == "output_dir":
        (tmp_path / "r/run").rename(tmp_path / "moved")
        loaded = load_recipe(loaded.path, [f"output_dir={tmp_path / 'moved'}"])
    assert laws.train(loaded)["finished"] == "complete"
    steps = [event["step"] for event in laws.events(loaded.output_dir, "step")]
    assert steps == list(range(1, 9 if key == "train.duration" else 7))
    assert [event["step"] for event in laws.events(loaded.output_dir, "resume")] == [3]


# Content


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=CRASH)])
def test_one_changed_byte_of_the_rows_is_noticed(tmp_path: Path, count: int) -> None:
    """A letter of a text is another row; a mark of JSON makes it no row. Neither is learned from."""
    loaded = cut(tmp_path)
    rows, whole = tmp_path / "rows.jsonl", (tmp_path / "rows.jsonl").read_bytes()
    ends = [int(end) for end in range(len(whole)) if whole[end : end + 1] not in b" \n"]
    for number in range(count):
        random = Random(f"{SEED} {number}")
        place = random.choice(ends)
        rows.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ArtifactError, DataError)) as caught:
            laws.train(loaded)
        if isinstance(caught.value, ArtifactError):
            assert "  data.train: what the run learned from has changed (was " in str(caught.value), place
    rows.write_bytes(whole)
    assert laws.train(loaded)["finished"] == "complete"


@pytest.fixture
def model(tmp_path: Path, shared: Shared) -> Path:
    """A base model of its own, which a test may change."""
    return Path(shutil.copytree(noisy_base(shared, "llama"), tmp_path / "base"))


@pytest.mark.parametrize("count", [2, pytest.param(50, marks=CRASH)])
def test_one_changed_byte_of_the_base_is_noticed(tmp_path: Path, model: Path, count: int) -> None:
    loaded = cut(tmp_path / "r", model=str(model))
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for number in range(count):
        place = Random(f"{SEED} base {number}").randrange(start, len(whole))
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            ArtifactError, match=r"  model\.name: what the run was measured from has changed \(was sha256"
        ):
            laws.train(loaded)
    weights.write_bytes(whole)
    assert laws.train(loaded)["finished"] == "complete"


def test_a_changed_tokenizer_is_noticed(tmp_path: Path, model: Path) -> None:
    """Two bytes change their ids: the texts are the same, and the tokens are others."""
    loaded = cut(tmp_path / "r", model=str(model))
    path = model / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    tokenizer = json.loads(whole)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"data\.train: what the run learned from has changed"):
        laws.train(loaded)
    path.write_text(whole, encoding="utf-8")
    assert laws.train(loaded)["finished"] == "complete"
