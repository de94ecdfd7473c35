"""A damaged folder named as TARGET, or as the base of a recipe: exit 4 with the file, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import laws
import pytest
from in_process import content, invoke
from laws import Shared

FULL = pytest.mark.crash
SEED = 5
PLACES = {"checkpoint": "checkpoints/step_000003", "run": "model", "model": "model", "merged": "merged"}
"""Kinds of targets, and the folder of the run that is damaged."""
VERBS = {"eval": (), "generate": ("--prompt", "1 + 3"), "predict": ("--out", "out.jsonl"), "merge": ("--out", "new")}
CASES = [(verb, kind) for verb in VERBS for kind in PLACES if (verb, kind) != ("merge", "merged")]


@pytest.fixture(scope="module")
def run(shared: Shared) -> Path:
    """A finished run of LoRA, merged."""

    def fill(folder: Path) -> None:
        laws.train(laws.recipe(folder, method={"name": "lora", "rank": 4}, data={"eval": "rows.jsonl"},
                               train={"duration": "3 steps"}, checkpoint={"every": 3}))  # fmt: skip
        assert invoke("merge", folder / "run", "--quiet").exit_code == 0

    return shared.make("damaged-targets", fill) / "run"


def harms(folder: Path, chance: Random, most: int | None) -> list[tuple[str, Path]]:
    """Each file deleted, one of its bits turned, and its end cut off; at most so many of these, drawn by the seed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    every = [(harm, path) for path in files for harm in ("delete", "flip", "cut")]
    return every if most is None else chance.sample(every, most)


def do(harm: str, path: Path, chance: Random) -> None:
    data = path.read_bytes()
    if harm == "delete":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[: chance.randrange(len(data))])
    else:
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])


@pytest.mark.parametrize("most", [1, pytest.param(None, marks=FULL)])
@pytest.mark.parametrize(("verb", "kind"), CASES)
def test_a_damaged_target_is_refused(run: Path, tmp_path: Path, verb: str, kind: str, most: int | None) -> None:
    chance, place = Random(f"{SEED} {verb} {kind}"), PLACES[kind]
    for harm, file in harms(run / place, chance, most):
        copy = Path(shutil.copytree(run, tmp_path / "run"))
        broken = copy / file.relative_to(run)
        do(harm, broken, chance)
        before = content(tmp_path)
        done = invoke(verb, copy if kind == "run" else copy / place, *VERBS[verb], "--quiet")
        assert done.exit_code == 4, (verb, kind, harm, broken, done.output)
        assert f"{broken}: " in done.stderr and done.stdout == "", (harm, done.output)
        assert content(tmp_path) == before
        shutil.rmtree(copy)


@pytest.mark.parametrize("most", [1, pytest.param(None, marks=FULL)])
@pytest.mark.parametrize("place", ["model", "merged"])
def test_a_damaged_base_is_refused(run: Path, tmp_path: Path, place: str, most: int | None) -> None:
    """A finished run, or its merged model, as the model that another run would start from."""
    chance = Random(f"{SEED} {place}")
    for harm, file in harms(run / place, chance, most):
        copy = Path(shutil.copytree(run, tmp_path / "run"))
        broken = copy / file.relative_to(run)
        do(harm, broken, chance)
        loaded = laws.recipe(tmp_path / "next", model=str(copy if place == "model" else copy / place))
        done = invoke("train", loaded.path, "--quiet")
        assert done.exit_code == 4, (harm, broken, done.output)
        assert str(broken.parent) in done.stderr and broken.name in done.stderr, (harm, done.output)
        assert not (tmp_path / "next/run/run.json").exists()
        shutil.rmtree(copy)
