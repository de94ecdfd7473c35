"""Folders and files that somebody else made to do harm, each with the command that meets it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bases import plain_base
from laws import Shared, recipe, train

from ftune import builtin
from ftune.manifest import MANIFEST, SEAL, json_object, sealed, sha256_of

SECRET = "a line that is nobody's business"
TRAIN = ("train", "recipe.yaml", "--quiet", "--offline")
EVAL = ("eval", "run", "--split", "train", "--quiet", "--offline")
ROWS = [{"prompt": f"{n} is", "completion": "ok"} for n in range(6)]
CHATS = [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "ok"}]} for n in range(6)]


@dataclass(frozen=True)
class Place:
    """Where an artefact is made.

    Args:
        folder: the working directory of the command, which is free to be filled.
        canary: appears if any code of the artefact runs.
        outside: a folder beside with the file `secret`, which nobody may write and whose text nobody may print.
        shared: what was made before.
    """

    folder: Path
    canary: Path
    outside: Path
    shared: Shared

    @property
    def secret(self) -> Path:
        """A file that belongs to the user."""
        return self.outside / "secret"

    @property
    def base(self) -> Path:
        """Where `model` makes a model."""
        return self.folder / "base"

    @property
    def run(self) -> Path:
        """Where `downloaded` puts a run."""
        return self.folder / "run"

    def touch(self) -> str:
        """A program for a shell that makes the canary."""
        return f"touch {self.canary}"

    def code(self, path: Path) -> None:
        """A module that makes the canary when it runs, with every name that anybody may ask it for."""
        path.write_text(
            f"import pathlib\npathlib.Path({str(self.canary)!r}).touch()\nclass Evil: pass\nMETHOD = OBJECTIVE = Evil\n"
            "def evil(*arguments): return [{'prompt': 'a', 'completion': 'b'}]\n"
        )


Make = Callable[[Place], Sequence[str]]


class Artefact(NamedTuple):
    """One attack.

    Args:
        make: fills the place and returns the command line.
        code: the exit code; 0 where ignoring the file is right.
        alone: tried through a process of its own as well.
        fast: part of `make test`.
    """

    make: Make
    code: int
    alone: bool = False
    fast: bool = False


class Payload:
    """Makes the canary where it is unpickled."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.place.touch(),)


def pickled(place: Place) -> bytes:
    return pickle.dumps(Payload(place))


def zipped(place: Place, path: Path) -> None:
    """The payload as torch writes files today."""
    import torch

    torch.save({"x": Payload(place)}, path)


def edit(path: Path, **values: Any) -> None:
    """Lay `values` over the JSON file; blocks are merged."""
    found = json.loads(path.read_text())
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = {**found[key], **value} if both else value
    path.write_text(json.dumps(found))


# models


def model(change: Callable[[Place], object], rows: list[Any] | None = None, **sections: Any) -> Make:
    """Training on a whole model folder that `change` has changed."""

    def make(place: Place) -> Sequence[str]:
        shutil.copytree(plain_base(place.shared, "llama"), place.base)
        builtin.tokenizer().save_pretrained(place.base)
        change(place)
        recipe(
            place.folder,
            rows=rows or ROWS,
            **{"model": str(place.base), "method": "lora", "train": {"duration": "1 steps"}, **sections},
        )
        return TRAIN

    return make


def header(**tensors: Any) -> bytes:
    """A safetensors file of 64 bytes of data with any header."""
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def tensor(shape: list[int], start: int = 0, stop: int = 64, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# runs


def downloaded(change: Callable[[Place], object], command: Sequence[str] = EVAL, method: str = "lora") -> Make:
    """A finished run that somebody made, changed and sealed anew, as whoever made it can."""

    def fill(folder: Path) -> None:
        settings = {"lora": {"name": "lora", "rank": 4}, "feature_based": {"name": "feature_based", "head": "linear"}}
        more: dict[str, Any] = {}
        rows: list[dict[str, Any]] = ROWS
        if method == "feature_based":
            more = {"objective": "sequence_classification", "data": {"template": None}}
            rows = [{"text": f"{n} is", "label": "ab"[n % 2]} for n in range(6)]
        train(recipe(folder, rows=rows, method=settings[method], train={"duration": "4 steps"},
                     checkpoint={"every": 2}, **more))  # fmt: skip

    def make(place: Place) -> Sequence[str]:
        made = place.shared.make(f"hostile-run-{method}", fill)
        for path in made.iterdir():
            if path.is_dir():
                shutil.copytree(path, place.folder / path.name)
            else:
                shutil.copy(path, place.folder)
        for name in ("resolved.json", "model/ftune.json"):  # its rows are here now
            edit(place.run / name, folder=str(place.folder))
        edit(place.folder / "recipe.yaml", output_dir="run")
        for name in ("resolved.json", "model/ftune.json"):
            edit(place.run / name, recipe={"output_dir": "run"})
        change(place)
        for folder in (place.run / "model", *(place.run / "checkpoints").glob("step_*")):
            seal(folder)
        return command

    return make


def seal(folder: Path) -> None:
    """Write a manifest that fits the files, links and all."""
    old = json_object((folder / MANIFEST).read_bytes()) or {}
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    head = {key: value for key, value in old.items() if key not in (SEAL, "files")}
    (folder / MANIFEST).write_bytes(sealed({**head, "files": files}))


# data and recipes


def rows(name: str, content: bytes | str, **sections: Any) -> Make:
    """Training on a file of rows."""

    def make(place: Place) -> Sequence[str]:
        recipe(place.folder, method="lora", **{**sections, "data": {"train": name, **sections.get("data", {})}})
        (place.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return TRAIN

    return make


def text(content: str, *command: str) -> Make:
    """A recipe of any text."""

    def make(place: Place) -> Sequence[str]:
        recipe(place.folder)
        written = content.replace("TOUCH", place.touch()).replace("SECRET", str(place.secret))
        (place.folder / "recipe.yaml").write_text(written)
        return command or TRAIN

    return make
