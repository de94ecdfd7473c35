"""Damage of a run's checkpoints, one thing at a time and by a seed, and what must be said of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ftune.checkpoints import checkpoints, newest_good
from ftune.errors import ArtifactError
from ftune.manifest import MANIFEST, verify

BLOCK = 4096
KINDS = ("flip", "flip", "flip", "cut", "cut", "append", "delete", "extra", "swap", "foreign", "exchange", "zero",
         "block", "link", "manifest")  # fmt: skip


def mutate(folder: Path, other: Path, chance: Random) -> tuple[str, list[Path]]:
    """Damage one thing of the checkpoint `folder`; `other` is another one of the run.

    Returns:
        What was done, and the files one of which must be named.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = chance.choice(files), chance.choice(KINDS)
    data, twin = path.read_bytes(), other / path.relative_to(folder)
    differs = path.name != MANIFEST and twin.read_bytes() != data
    if kind == "flip" and data:
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
    elif kind == "cut" and data:
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "zero" and any(data):
        path.write_bytes(bytes(len(data)))
    elif kind == "block" and any(block := data[(start := chance.randrange(0, len(data) or 1, BLOCK)) :][:BLOCK]):
        path.write_bytes(data[:start] + bytes(len(block)) + data[start + len(block) :])
    elif kind == "delete":
        path.unlink()
    elif kind == "extra":
        path = folder / chance.choice(["extra.bin", ".hidden"])
        path.write_bytes(chance.randbytes(chance.randrange(3)))
    elif kind == "swap":
        second = chance.choice([file for file in files if file.read_bytes() != data])
        path.write_bytes(second.read_bytes())
        second.write_bytes(data)
        return kind, [path, second]
    elif kind in ("foreign", "exchange") and differs:
        shutil.copy(twin, path)
        if kind == "exchange":
            twin.write_bytes(data)
    elif kind == "link":
        path.rename(folder.parent / "moved")
        path.symlink_to(folder.parent / "moved")
    elif kind == "manifest":
        path = folder / MANIFEST
        _edit(path, chance)
    else:
        kind = "append"
        path.write_bytes(data + chance.randbytes(chance.randrange(1, 9)))
    return kind, [path]


def _edit(path: Path, chance: Random) -> None:
    """Change a manifest, and leave its seal as it was."""
    manifest = json.loads(path.read_bytes())
    edit = chance.choice(["step", "name", "files", "bytes", "sha256", "key"])
    if edit == "files":
        manifest["files"].popitem()
    elif edit in ("bytes", "sha256"):
        record = manifest["files"][chance.choice(sorted(manifest["files"]))]
        record[edit] = record[edit] + 1 if edit == "bytes" else record[edit][::-1]
    else:
        manifest[edit] = 11
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def every_damage_is_found_and_named(good: Path, scratch: Path, count: int, seed: int) -> Counter[str]:
    """Damage the newest of the run's three checkpoints `count` times: it is named, and the one before is taken.

    Returns:
        How often each kind was done.
    """
    chance, done = Random(seed), Counter[str]()
    (first, _), (second, _), (third, _) = checkpoints(good)
    for number in range(count):
        root = Path(shutil.copytree(good, scratch / "bad"))
        before, between, folder = (root / f"checkpoints/step_{step:06d}" for step in (first, second, third))
        kind, paths = mutate(folder, between, chance)
        done[kind] += 1
        about = (seed, number, kind, paths)
        with pytest.raises(ArtifactError) as caught:
            verify(folder)
        assert any(str(caught.value).startswith(f"{path}: ") for path in paths), (about, caught.value)
        assert caught.value.exit_code == 4
        newest, skipped = newest_good(root)
        assert newest == ((first, before) if kind == "exchange" else (second, between)), about
        assert len(skipped) == (2 if kind == "exchange" else 1), (about, skipped)
        assert folder.name in skipped[0] and any(path.name in skipped[0] for path in paths), (about, skipped)
        shutil.rmtree(root)
    assert count < 200 or done.keys() == set(KINDS), done
    return done
