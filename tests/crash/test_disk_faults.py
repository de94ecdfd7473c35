"""A disk that fails at any durable operation of a run: one message, exit 5; the same command ends in the same bits."""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trials import METHODS, leftovers, result, train, verified, write

from ftune.listener import Listener
from ftune.load import load_recipe
from ftune.signals import StopFlag

FULL = ("ENOSPC", "EDQUOT")
ERRORS = (*FULL, "EIO", "EROFS", "EACCES")
LAST_SAVE = ("rename", "run/checkpoints/step_000004")
NUMBER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Straight:
    """A run that nothing disturbed.

    Args:
        operations: kind and path of each of its durable operations, in order.
        result: what must come out.
    """

    method: str
    operations: list[tuple[str, str]]
    result: dict[str, Any]


def go_straight(method: str, folder: Path) -> Straight:
    folder.mkdir()
    recipe = write(folder, method)
    (folder / "run").mkdir()  # as the lock of the command line does
    operations: list[tuple[str, str]] = []

    def record(kind: str, path: Path) -> None:
        operations.append((kind, NUMBER.sub("*", str(path.relative_to(folder)))))

    from ftune.run import train as train_here

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0})
        loaded = load_recipe(recipe, [f"output_dir={folder / 'run'}"])
        train_here(loaded, listener=Listener(), stop=StopFlag(), on_operation=record)
    return Straight(method, operations, result(folder / "run"))


def fails_and_goes_on(straight: Straight, number: int, code: str, for_good: bool, folder: Path) -> None:
    """One trial: the operation `number` fails, with all that follow if `for_good`; then nothing does."""
    folder.mkdir()
    write(folder, straight.method)
    fault = f"{number}{'+' * for_good}:{code}"
    kind, where = straight.operations[number - 1]
    told = f"{fault} at {kind} {where}"
    exit_code, _, err = train(folder, FTUNE_TESTING="1", FTUNE_FAULT=fault)
    assert exit_code == 5, f"{told}: exit {exit_code}\n{err}"
    reason = re.escape(os.strerror(getattr(errno, code)))
    message = re.search(rf"^cannot write (.+): {reason} \((.+)\); (.+)$", err, re.MULTILINE)
    assert message is not None, f"{told}: {err}"
    path, sizes, _ = message.groups()
    assert NUMBER.sub("*", path) == str(folder / where), told
    if code in FULL:
        assert re.search(r"[0-9,]+ bytes free", sizes), told
        known = kind in ("write", "append") or (kind == "create" and where not in ("run", "run/checkpoints"))
        assert known == bool(re.search(r"[0-9,]+ bytes needed, ", sizes)), f"{told}: {sizes}"
    before = straight.operations[: number - 1]
    saved = sum(one[0] == "rename" and one[1].startswith("run/checkpoints/step_") for one in before)
    assert verified(folder / "run") >= min(saved, 1), f"{told}: no checkpoint is left"
    assert len(leftovers(folder / "run")) <= 1, told
    exit_code, _, err = train(folder)
    assert exit_code == 0, f"after {told}: exit {exit_code}\n{err}"
    assert leftovers(folder / "run") == [], told
    assert result(folder / "run") == straight.result, f"other bits after {told}"
    shutil.rmtree(folder)


def test_a_disk_that_is_full_before_a_replaced_checkpoint_is_deleted(tmp_path: Path) -> None:
    straight = go_straight("lora", tmp_path / "straight")
    fails_and_goes_on(straight, straight.operations.index(LAST_SAVE) + 2, "ENOSPC", True, tmp_path / "trial")


@pytest.mark.crash
@pytest.mark.parametrize("method", METHODS)
def test_disk_faults_at_every_operation_of_a_run(method: str, tmp_path: Path) -> None:
    straight = go_straight(method, tmp_path / "straight")
    for number in range(1, len(straight.operations) + 1):
        code, for_good = ERRORS[number % len(ERRORS)], number // len(ERRORS) % 2 == 0
        fails_and_goes_on(straight, number, code, for_good, tmp_path / f"{number}-{code}")
