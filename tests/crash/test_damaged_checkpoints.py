"""Damage to what a real run left: found and named, stepped over if something whole is left, and never worked with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import laws
import pytest
from cuts import Stops
from damage import every_damage_is_found_and_named, mutate
from in_process import content, invoke
from laws import Shared

from ftune.checkpoints import checkpoints, newest_good
from ftune.errors import ArtifactError, Interrupted
from ftune.load import Loaded
from ftune.manifest import MANIFEST, verify

STEPS, CUT = 12, 9
FULL = pytest.mark.crash
SEED = 11


def recipe(folder: Path, **sections: Any) -> Loaded:
    """Twelve steps of LoRA with dropout; a checkpoint every three, of which three stay."""
    return laws.recipe(
        folder,
        **{
            "method": {"name": "lora", "rank": 4, "dropout": 0.1},
            "data": {"eval": "rows.jsonl"},
            "train": {"duration": f"{STEPS} steps", "learning_rate": 1e-2},
            "eval": {"every": 4},
            "checkpoint": {"every": 3, "keep": 3, "best": None},
            **sections,
        },
    )


@pytest.fixture(scope="module")
def made(shared: Shared) -> Path:
    """`whole/run`, which nothing disturbed, and `cut/run`, which was interrupted after step 9."""

    def fill(folder: Path) -> None:
        laws.train(recipe(folder / "whole"))
        listener = Stops(CUT)
        with pytest.raises(Interrupted):
            laws.train(recipe(folder / "cut"), listener, listener.flag)
        assert [step for step, _ in checkpoints(folder / "cut/run")] == [3, 6, 9]

    return shared.make("damaged-checkpoints", fill)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder that costs no disk, where that is possible: thousands of copies of a run are made in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def weights(run: Path) -> bytes:
    return (run / "model/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=FULL)])
def test_every_damage_to_a_real_checkpoint_is_found_and_named(made: Path, in_memory: Path, count: int) -> None:
    done = every_damage_is_found_and_named(made / "cut/run", in_memory, count, SEED)
    print(f"{count} damages from seed {SEED}: {dict(done)}")


def test_each_file_that_is_missing_is_noticed(made: Path, tmp_path: Path) -> None:
    whole = made / "cut/run/checkpoints/step_000009"
    names = sorted(path.name for path in whole.iterdir())
    assert names == [MANIFEST, "optimizer.safetensors", "state.json", "weights.safetensors"]
    for name in names:
        run = Path(shutil.copytree(made / "cut/run", tmp_path / name))
        (run / "checkpoints/step_000009" / name).unlink()
        newest, [skipped] = newest_good(run)
        assert newest is not None and newest[0] == 6
        assert skipped.startswith("skipped checkpoint step_000009: ") and f"{name}: missing" in skipped
        seen = invoke("verify", run)
        assert seen.exit_code == 4
        assert [line for line in seen.stdout.splitlines() if line.startswith("DAMAGED") and name in line]


# The same command goes on


@pytest.mark.parametrize("count", [2, pytest.param(44, marks=FULL)])
def test_a_damaged_run_goes_on_with_its_last_good_checkpoint(made: Path, tmp_path: Path, count: int) -> None:
    chance = Random(SEED)
    for number in range(count):
        run = Path(shutil.copytree(made / "cut/run", tmp_path / str(number)))
        goes_on(made, run, chance, lambda run: invoke("train", made / "cut/recipe.yaml", "--output-dir", run), number)


@FULL
def test_it_does_so_in_a_process_of_its_own(made: Path, tmp_path: Path) -> None:
    def command(run: Path) -> Any:
        done = laws.ftune("train", made / "cut/recipe.yaml", "--output-dir", run)
        done.exit_code = done.returncode
        return done

    chance = Random(SEED + 1)
    for number in range(6):
        goes_on(made, Path(shutil.copytree(made / "cut/run", tmp_path / str(number))), chance, command, number)


def goes_on(made: Path, run: Path, chance: Random, command: Any, number: int) -> None:
    """Damage the newest checkpoint or the newest two; the command names them, goes on and ends in the same bits."""
    folders = [run / f"checkpoints/step_{step:06d}" for step in (9, 6, 3)]
    damaged = [mutate(folders[0], folders[1], chance)]
    if damaged[0][0] != "exchange" and chance.random() < 0.3:
        damaged.append(mutate(folders[1], folders[2], chance))
        shutil.rmtree(folders[2])  # an exchange would have left nothing whole
        shutil.copytree(made / "cut/run/checkpoints" / folders[2].name, folders[2])
    bad = {folder.name for folder in folders if _is_damaged(folder)}
    about = (number, damaged)
    done = command(run)
    assert done.exit_code == 0, (about, done.stderr)
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped checkpoint ")]
    assert {line.split()[2].rstrip(":") for line in skipped} == bad, (about, done.stderr)
    for _, paths in damaged:
        assert any(str(path) in line for path in paths for line in skipped), (about, skipped)
    good = next(step for step, folder in zip((9, 6, 3), folders, strict=True) if folder.name not in bad)
    assert f"goes on after step {good} of {STEPS}" in done.stderr, (about, done.stderr)
    assert weights(run) == weights(made / "whole/run"), about


def _is_damaged(folder: Path) -> bool:
    try:
        verify(folder)
    except ArtifactError:
        return True
    return False


# Nothing whole is left


def test_a_run_without_any_good_checkpoint_is_never_begun_anew(made: Path, tmp_path: Path) -> None:
    chance = Random(SEED)

    def manifests(folder: Path, other: Path) -> None:
        (folder / MANIFEST).unlink()

    def files(folder: Path, other: Path) -> None:
        for path in folder.iterdir():
            path.unlink()

    def anything(folder: Path, other: Path) -> None:
        if not _is_damaged(folder):
            mutate(folder, other, chance)

    for number, harm in enumerate([manifests, files, anything, anything, anything]):
        run = Path(shutil.copytree(made / "cut/run", tmp_path / str(number)))
        folders = [run / f"checkpoints/step_{step:06d}" for step in (9, 6, 3)]
        for folder, other in zip(folders, folders[1:] + folders[:1], strict=True):
            harm(folder, other)
        before = content(run)
        done = invoke("train", made / "cut/recipe.yaml", "--output-dir", run)
        assert done.exit_code == 4, (number, done.output)
        assert "every checkpoint is damaged. Start anew with --overwrite." in done.stderr
        assert all(f"skipped checkpoint {folder.name}: {folder}" in done.stderr for folder in folders), done.stderr
        assert content(run) == before


def test_a_run_whose_checkpoints_are_gone_is_never_begun_anew(made: Path, tmp_path: Path) -> None:
    """Its log tells of them. A run that was killed before its first checkpoint has none to tell of."""
    run = Path(shutil.copytree(made / "cut/run", tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    done = invoke("train", made / "cut/recipe.yaml", "--output-dir", run)
    assert done.exit_code == 4, done.output
    assert f"{run / 'checkpoints'}: the checkpoint of step 9, of which metrics.jsonl tells, is gone." in done.stderr
    assert content(run) == before
    assert invoke("train", made / "cut/recipe.yaml", "--output-dir", run, "--overwrite").exit_code == 0
    assert weights(run) == weights(made / "whole/run")


# The best checkpoint


def scripted(losses: dict[int, float]) -> Any:
    """Held-out losses by step instead of those of the model."""

    def score(run: Any, split: Any) -> dict[str, float]:
        return {"loss": losses.get(run.state.step, 9.0)}

    return mock.patch("ftune.run._score", score)


def cut_with(folder: Path, losses: dict[int, float], step: int, **sections: Any) -> Loaded:
    """A run that is interrupted after `step`, whose best checkpoint is that of the smallest of `losses`."""
    listener = Stops(step)
    loaded = recipe(folder, **sections)
    with scripted(losses), pytest.raises(Interrupted):
        laws.train(loaded, listener, listener.flag)
    return loaded


def test_a_damaged_best_is_said_before_training_goes_on(tmp_path: Path) -> None:
    """What would become `model/` cannot be had again; that is known at the start, not after the last step."""
    losses = {3: 1.0}
    sections: dict[str, Any] = {"eval": {"every": 3}, "checkpoint": {"every": 3, "keep": 1}}
    loaded = cut_with(tmp_path, losses, 9, **sections)
    run = tmp_path / "run"
    assert [step for step, _ in checkpoints(run)] == [3, 9]
    (run / "checkpoints/step_000003/weights.safetensors").write_bytes(b"")
    before = content(run)
    refused = invoke("train", loaded.path)
    assert refused.exit_code == 4, refused.output
    assert f"{run}/checkpoints/step_000003/weights.safetensors: damaged" in refused.stderr
    assert f"{run}/checkpoints/step_000003 is the best so far" in refused.stderr
    assert "Delete its folder" in refused.stderr and "--overwrite" in refused.stderr
    assert content(run) == before
    shutil.rmtree(run / "checkpoints/step_000003")
    with scripted(losses | {12: 8.0}):
        done = invoke("train", loaded.path)
    assert done.exit_code == 0, done.output
    assert verify(run / "model")["step"] == STEPS


@pytest.mark.parametrize("again", [True, False], ids=["the best again", "never so good again"])
def test_a_best_that_a_later_one_had_replaced_is_found_anew(tmp_path: Path, again: bool) -> None:
    """Step 3 was the best until step 9, and was deleted then; step 9 is damaged, so step 6 is gone on with."""
    losses = {3: 2.0, 6: 3.0, 9: 1.0}
    sections: dict[str, Any] = {"eval": {"every": 3}, "checkpoint": {"every": 3, "keep": 2}}
    loaded = cut_with(tmp_path / "cut", losses, 9, **sections)
    run = tmp_path / "cut/run"
    assert [step for step, _ in checkpoints(run)] == [6, 9]
    (run / "checkpoints/step_000009/state.json").unlink()
    with scripted(losses if again else {**losses, 9: 4.0, 12: 5.0}):
        done = invoke("train", loaded.path)
    assert done.exit_code == 0, done.output
    assert "the best so far, step 3, is no longer there" in done.stderr
    assert verify(run / "model")["step"] == 9
    with scripted(losses):
        laws.train(recipe(tmp_path / "whole", **sections))
    assert weights(run) == weights(tmp_path / "whole/run")
