"""Disks that are really full: before a run, in the middle of one, and elsewhere than in its folder."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pytest
from command import write_recipe
from disks import disk
from trials import leftovers, result, verified

MIB = 2**20
KEEP = 3


def recipe(folder: Path) -> None:
    """Twenty checkpoints, of which four are on the disk at most."""
    folder.mkdir(exist_ok=True)
    train = {"duration": "40 steps", "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
    checkpoint = {"every": 2, "keep": KEEP, "best": None}
    write_recipe(folder, method="full", train=train, eval={"every": 20}, checkpoint=checkpoint)


def command(run: Path) -> list[str]:
    return ["train", "recipe.yaml", "--output-dir", str(run), "--quiet"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What must come out, and the bytes of a checkpoint."""
    folder = tmp_path_factory.mktemp("straight")
    recipe(folder)
    code, _, err = forked.run(command(folder / "run"), folder)
    assert code == 0, err
    newest = max((folder / "run" / "checkpoints").iterdir())
    return result(folder / "run"), sum(path.stat().st_size for path in newest.iterdir())


def fills_in_the_middle(share: float, folder: Path, straight: tuple[dict[str, Any], int]) -> None:
    """One trial: when the run has made a step, its disk has room for `share` checkpoints and no more."""
    recipe(folder)
    wanted, checkpoint = straight
    with disk(folder / "disk", 64 * MIB) as small:
        run = small.root / "run"
        child = forked.start(command(run), folder)
        _wait_for_a_step(run)
        os.kill(child.pid, signal.SIGSTOP)
        small.resize(small.used_bytes + int(share * checkpoint))
        os.kill(child.pid, signal.SIGCONT)
        code, _, err = child.wait()
        told = f"room for {share:.2f} checkpoints"
        assert code == 5 and "Traceback" not in err, f"{told}: exit {code}\n{err}"
        said = re.search(r"^cannot write (.+): No space left on device \((.+) bytes needed, (.+) bytes free\)", err)
        assert said is not None and said[1].startswith(str(run)), f"{told}: {err}"
        assert verified(run) >= min(int(share), 1), told
        assert len(leftovers(run)) <= 1, told
        small.resize(64 * MIB)
        code, _, err = forked.run(command(run), folder)
        assert code == 0, f"after {told}: {err}"
        assert leftovers(run) == [], told
        assert result(run) == wanted, f"other bits after {told}"


def _wait_for_a_step(run: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").is_file() and '"step", "step": 1,' in (run / "metrics.jsonl").read_text():
            return
        time.sleep(0.002)
    raise AssertionError("no step was made in a minute")


def test_a_disk_that_fills_while_the_second_checkpoint_is_written(
    tmp_path: Path, straight: tuple[dict[str, Any], int]
) -> None:
    fills_in_the_middle(1.5, tmp_path / "trial", straight)


@pytest.mark.crash
def test_disks_of_twenty_sizes(tmp_path: Path, straight: tuple[dict[str, Any], int]) -> None:
    for number in range(20):
        fills_in_the_middle(0.5 + 2.5 * number / 19, tmp_path / str(number), straight)


ELSEWHERE = {"TMPDIR": "tmp", "FTUNE_CACHE": "ftune", "MPLCONFIGDIR": "matplotlib", "HF_HOME": "hf"}


@pytest.mark.crash
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_full_disk_elsewhere(name: str, tmp_path: Path, straight: tuple[dict[str, Any], int]) -> None:
    """What is kept besides the run makes things faster; a run does without."""
    recipe(tmp_path)
    with disk(tmp_path / "full", MIB) as full:
        full.fill()
        code, out, err = forked.run(command(tmp_path / "run"), tmp_path, {name: str(full.root)})
        assert code == 0, f"{name}: exit {code}\n{err}"
        assert result(tmp_path / "run") == straight[0]
        written = [path.name for path in full.root.rglob("*") if path.is_file() and path.stat().st_size > 0]
        assert written == ["somebody-elses"]
