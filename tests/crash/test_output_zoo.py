"""Where a run may be told to write: it works, or one line says why not, and nothing of anybody else is touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from command import write_recipe
from disks import disk

from ftune.manifest import sha256_of, verify

Make = Callable[[Path], str]
"""Prepares a folder and returns what `--output-dir` is given, relative to the folder `cwd` in it."""


def nothing(name: str) -> Make:
    return lambda folder: name


def file(folder: Path) -> str:
    (folder / "file").write_text("theirs")
    return str(folder / "file")


def below_a_file(folder: Path) -> str:
    return file(folder) + "/run"


def link(target: str) -> Make:
    def make(folder: Path) -> str:
        (folder / "empty").mkdir()
        (folder / "file").write_text("theirs")
        (folder / "link").symlink_to(target)
        return str(folder / "link")

    return make


def folder_with(*names: str) -> Make:
    def make(folder: Path) -> str:
        for name in names:
            (folder / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "theirs" / name).write_text("theirs")
        return str(folder / "theirs")

    return make


WORKS: dict[str, Make] = {
    "missing parents": nothing("a/b/c/run"),
    "spaces": nothing(" two  words "),
    "a newline": nothing("new\nline"),
    "255 bytes": nothing("x" * 255),
    "255 bytes of wide letters": nothing("\u4f60" * 85),
    "a link to an empty folder": link("empty"),
    "a pattern": nothing("*[a]?"),
}
REFUSED: dict[str, tuple[int, Make]] = {
    "a file": (2, file),
    "below a file": (5, below_a_file),
    "a link to a file": (2, link("file")),
    "a link to itself": (5, link("link")),
    "a link to nothing": (5, link("nowhere")),
    "256 bytes": (5, nothing("x" * 256)),
    "a path too long": (5, nothing("/".join(["x" * 250] * 20))),
    "not UTF-8": (2, nothing("caf\udce9")),
    "no name": (2, nothing("")),
    "the root": (2, nothing("/")),
    "the parent": (2, nothing("..")),
    "the folder of the recipe": (2, nothing(".")),
    "a device": (2, nothing("/dev/null")),
    "a place that the kernel makes": (5, nothing("/proc/run")),
    "somebody's folder": (2, folder_with("thesis.tex")),
    "somebody's model": (2, folder_with("model/weights.safetensors")),
    "somebody's recipe": (2, folder_with("recipe.yaml")),
    "somebody's checkpoints": (2, folder_with("checkpoints/step_000001/weights.safetensors")),
}


def prepared(folder: Path) -> Path:
    """The folder of a one-step recipe, beside which the output is put."""
    cwd = folder / "outer" / "cwd"
    cwd.mkdir(parents=True)
    (folder / "outer" / "theirs.txt").write_text("theirs")
    train = {"duration": "1 steps", "batch_size": 4, "micro_batch_size": 4}
    write_recipe(cwd, data={"train": "rows.jsonl"}, train=train, eval={}, checkpoint={"every": 1})
    return cwd


def state_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Kind and content of everything in a folder, through no link."""
    found = {}
    for path in folder.rglob("*"):
        kind = stat.S_IFMT(path.lstat().st_mode)
        content = str(path.readlink()) if path.is_symlink() else sha256_of(path) if path.is_file() else ""
        found[os.fspath(path)] = (kind, content)
    return found


def train(cwd: Path, place: str) -> tuple[int, str]:
    code, out, err = forked.run(["train", "recipe.yaml", "--quiet", f"--output-dir={place}"], cwd)
    assert "Traceback" not in out + err and "internal error" not in err, err
    return code, err


@pytest.mark.parametrize("name", REFUSED)
def test_places_that_cannot_hold_a_run(name: str, tmp_path: Path) -> None:
    expected, make = REFUSED[name]
    cwd = prepared(tmp_path)
    place = make(tmp_path)
    before = state_of(tmp_path)
    code, err = train(cwd, place)
    assert code == expected, f"exit {code}: {err}"
    reason, *more = err.splitlines()
    assert more in ([], ["1 problem. Nothing was run."]), "one line says why"
    assert "output_dir" in reason or "cannot write" in reason
    assert state_of(tmp_path) == before
    assert not Path("/.lock").exists()


@pytest.mark.crash
@pytest.mark.parametrize("name", WORKS)
def test_places_that_hold_a_run(name: str, tmp_path: Path) -> None:
    cwd = prepared(tmp_path)
    place = WORKS[name](tmp_path)
    before = state_of(tmp_path)
    code, err = train(cwd, place)
    assert code == 0, err
    verify(cwd / place / "model")
    assert train(cwd, place)[0] == 0, "already complete"
    assert state_of(tmp_path).items() >= before.items()


@pytest.mark.crash
def test_another_file_system_than_that_of_temporary_files(tmp_path: Path) -> None:
    cwd = prepared(tmp_path)
    with disk(tmp_path / "disk", 16 * 2**20) as other:
        code, err = train(cwd, str(other.root / "run"))
        assert code == 0, err
        verify(other.root / "run" / "model")


@pytest.mark.crash
def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    cwd = prepared(tmp_path)
    with disk(tmp_path / "disk", 16 * 2**20, "ro") as other:
        code, err = train(cwd, str(other.root / "run"))
        assert code == 5
        assert len(err.splitlines()) == 1 and f"cannot write {other.root / 'run'}: Read-only file system" in err
        assert list(other.root.iterdir()) == []
