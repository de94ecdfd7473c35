"""SIGKILL at random instants and at every durable operation: the same command goes on, to the same bits."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import forked
import pytest
from cuts import assert_same_run
from laws import Shared, train
from strikes import METHODS, STEPS, Struck, chains, environment, recipe_of, send, straight

from ftune.manifest import sha256_of

MERGEABLE = ("lora", "qlora", "ia3", "full")


def killed(struck: Struck) -> bool:
    return struck.strike(signal.SIGKILL)


def operations(shared: Shared, method: str) -> int:
    """How many durable operations a run has, counted in process."""

    def fill(folder: Path) -> None:
        count = 0

        def counted(kind: str, path: Path) -> None:
            nonlocal count
            count += 1

        loaded = recipe_of(folder, method)
        (folder / "run").mkdir()  # as the lock of the command line does, uncounted
        train(loaded, on_operation=counted)
        (folder / "operations").write_text(str(count))

    return int((shared.make(f"operations-{method}", fill) / "operations").read_text())


@pytest.mark.parametrize("method", ["lora"])
def test_killed_at_random(tmp_path: Path, shared: Shared, method: str) -> None:
    codes = chains(tmp_path, shared, method, 4, killed, operations(shared, method))
    assert codes[-signal.SIGKILL] >= 3


@pytest.mark.crash
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_hundred_random_instants(tmp_path: Path, shared: Shared, method: str) -> None:
    codes = chains(tmp_path, shared, method, 100, killed, operations(shared, method))
    print(f"{method}: {dict(codes)}")
    assert codes[-signal.SIGKILL] >= 90  # some are hit when all that is left is to leave


@pytest.mark.crash
@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_at_every_durable_operation(tmp_path: Path, shared: Shared, method: str) -> None:
    """One after the other: what stands is from the kills before, and the run is begun anew when it is done."""
    expected, _ = straight(shared, method)
    recipe_of(tmp_path, method)
    for number in range(1, operations(shared, method) + 1):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        fault = {"FTUNE_TESTING": "1", "FTUNE_FAULT": f"{number}:KILL"}
        code, _, err = forked.run(["train", "recipe.yaml", "--quiet"], tmp_path, environment(tmp_path) | fault)
        assert code == -signal.SIGKILL, (number, err)
        code, _, err = forked.run(["train", "recipe.yaml", "--quiet"], tmp_path, environment(tmp_path))
        assert code == 0, (number, err)
        assert_same_run(tmp_path / "run", expected, STEPS)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_a_merge_sweeps_up_after_one_that_was_killed(tmp_path: Path, shared: Shared) -> None:
    number = "0123456789abcdef" * 2
    for name in (f".tmp-merged-{number}", f".tmp-other-{number}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    code, _, err = forked.run(["merge", straight(shared, "lora")[0], "--out", "merged", "--quiet"], tmp_path)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"merged", f".tmp-other-{number}"}


@pytest.mark.crash
@pytest.mark.parametrize("method", MERGEABLE)
def test_merge_killed_at_random(tmp_path: Path, shared: Shared, method: str) -> None:
    run, _ = straight(shared, method)
    command = ["merge", run, "--out", "merged", "--quiet"]
    assert forked.run([*command[:-2], "expected"], tmp_path)[0] == 0
    expected, before = hashes(tmp_path / "expected"), hashes(run)
    draw, kills = random.Random(method), 0
    while kills < 25:
        child = forked.start(command, tmp_path)
        send(child.pid, signal.SIGKILL, draw.uniform(0.05, 0.6))
        kills += child.wait()[0] == -signal.SIGKILL
        assert not (tmp_path / "merged").exists() or hashes(tmp_path / "merged") == expected
        shutil.rmtree(tmp_path / "merged", ignore_errors=True)
    code, _, err = forked.run(command, tmp_path)
    assert code == 0, err
    assert hashes(tmp_path / "merged") == expected and hashes(run) == before
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "merged"}
