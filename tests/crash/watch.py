"""What a piece of work does to the machine, as Python's audit events tell it.

In this process: `with watched() as seen: ...`. In a process of its own, over the command line:

    python watch.py OUT.json '[["train", "recipe.yaml"], ["merge", "run"]]'

writes the exit codes and everything that was seen.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any


@dataclass
class Seen:
    """Events of one piece of work.

    Args:
        written: absolute paths that were opened for writing, made, renamed to, linked or deleted.
        ran: files whose code was run.
        unpickled: what a pickle asked for.
        started: programs.
        connected: addresses and names that were looked up.
    """

    written: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    unpickled: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)

    def written_outside(self, *roots: Path) -> list[str]:
        """What was written in none of the `roots`; compiled Python and the null device do not count."""
        allowed = tuple(str(root.resolve()) + os.sep for root in roots)
        return [
            path
            for path in self.written
            if not (path + os.sep).startswith(allowed)
            and "__pycache__" not in path
            and "torchinductor_" not in path
            and path != os.devnull
        ]

    def ran_inside(self, folder: Path) -> list[str]:
        """The code of `folder` that was run."""
        inside = str(folder.resolve()) + os.sep
        return [file for file in self.ran if file[:1] != "<" and os.path.realpath(file).startswith(inside)]


_seen: list[Seen] = []
_CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.rmdir": 0,
            "os.truncate": 0, "os.chmod": 0, "shutil.rmtree": 0}  # fmt: skip
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _seen:
        return
    seen = _seen[-1]
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes, os.PathLike)) and (set(mode or "") & set("wax+") or (flags or 0) & _WRITING):
            seen.written.append(os.path.realpath(os.fsdecode(path)))
    elif event in _CHANGES:
        path = arguments[_CHANGES[event]]
        if isinstance(path, (str, bytes, os.PathLike)):
            place = Path(os.fsdecode(path))  # itself, also where it is a link
            seen.written.append(str(place.parent.resolve() / place.name))
    elif event == "exec" and isinstance(arguments[0], CodeType):
        seen.ran.append(arguments[0].co_filename)
    elif event == "pickle.find_class":
        seen.unpickled.append(".".join(map(str, arguments)))
    elif event in _PROGRAMS:
        seen.started.append(f"{event} {arguments[:2]}")
    elif event == "socket.connect":
        seen.connected.append(str(arguments[1]))
    elif event == "socket.getaddrinfo":
        seen.connected.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def watched() -> Iterator[Seen]:
    """Write down what happens inside. Audit hooks stay for good, so one for all."""
    seen = Seen()
    _seen.append(seen)
    try:
        yield seen
    finally:
        _seen.remove(seen)


def main(out: str, commands: list[list[str]]) -> None:
    """Run command lines one after another and write down what was seen from the first import on."""
    codes = []
    with watched() as seen:
        from ftune.__main__ import main as ftune

        for words in commands:
            sys.argv = ["ftune", *words]
            try:
                ftune()
            except SystemExit as left:
                codes.append(left.code or 0)
    Path(out).write_text(json.dumps({"codes": codes, **asdict(seen)}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
