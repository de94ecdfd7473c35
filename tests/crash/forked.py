"""Command lines of ftune in forked children, so that hundreds of them can be killed without importing torch each time.

A fork server imports what a run needs once; a child of it runs the command line in its own folder, session and
environment, with its output in files. What only a cold process shows, such as what is imported, is not for here.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

PRELOAD = (
    "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "pyarrow", "scipy.stats",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "rich.console", "rich.progress", "rich.live",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "ftune.__main__", "ftune.cli.progress", "ftune.locking", "ftune.data.sandbox", "ftune.run", "ftune.merging",
    "ftune.smoke", "ftune.report_files", "ftune.methods.full", "ftune.methods.lora",
)  # fmt: skip
SERVER = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "TORCHDYNAMO_DISABLE": "1"}
"""With one thread in torch and none of its own in pyarrow, forking the server is sound. The last: `prepare_process`."""


@dataclass
class Started:
    """A command line that runs.

    Args:
        pid: of the child, which leads a session of its own: `os.killpg(pid, ...)` reaches what it started too.
    """

    pid: int
    _process: ForkServerProcess
    _folder: tempfile.TemporaryDirectory[str]

    def wait(self, seconds: float = 120) -> tuple[int, str, str]:
        """Its exit code, or minus the signal that killed it, its stdout and its stderr. Call it once.

        Raises:
            TimeoutError: it had not ended; it is killed, with all of its session.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
        out, err = (Path(self._folder.name, name).read_text("utf-8", "replace") for name in ("out", "err"))
        self._process.close()
        self._folder.cleanup()
        if code is None:
            raise TimeoutError(f"not done after {seconds} s\n{out}\n{err}")
        return code, out, err


def start(arguments: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None) -> Started:
    """Begin `ftune ARGUMENTS` in the folder `cwd`, with `environment` laid over this process's own.

    With `FORKED_PICTURES=0` in it a run draws none, which takes as long as all of a small run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with mock.patch.dict(os.environ, SERVER):
        ensure_running()
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    for name in ("out", "err"):
        Path(folder.name, name).touch()
    whole = {**os.environ, **(environment or {})}
    process = context.Process(target=_child, args=([*map(str, arguments)], str(cwd), whole, folder.name))
    process.start()
    assert process.pid is not None
    return Started(process.pid, process, folder)


def run(
    arguments: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None, seconds: float = 120
) -> tuple[int, str, str]:
    """`ftune ARGUMENTS` from start to end: its exit code, or minus the signal that killed it, stdout and stderr."""
    return start(arguments, cwd, environment).wait(seconds)


@atexit.register
def _kill_what_is_left() -> None:
    for process in multiprocessing.active_children():  # multiprocessing would wait for it
        process.kill()


def _child(arguments: list[str], cwd: str, environment: dict[str, str], output: str) -> NoReturn:
    code: Any = 70
    try:
        os.setsid()
        _redirect(Path(output))
        _require_a_sound_server()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # the server's own
        os.sched_getaffinity = lambda pid: {0}  # type: ignore[assignment]  # plans are made for one thread
        sys.argv = ["ftune", *arguments]
        from ftune.__main__ import main

        if environment.get("FORKED_PICTURES") == "0":
            mock.patch("ftune.report_files.pictures", return_value={}).start()
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(output: Path) -> None:
    """Nothing of the server's own streams, which are those of the test, is left."""
    for descriptor, path, mode in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, output / "out", os.O_WRONLY),
        (2, output / "err", os.O_WRONLY),
    ):
        opened = os.open(path, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def _require_a_sound_server() -> None:
    if "ftune.run" not in sys.modules:
        sys.exit("the fork server has not imported ftune.run; import it in a fresh process to see why")
    threads = Path(f"/proc/{os.getppid()}/task")
    if threads.is_dir() and len(names := [*threads.iterdir()]) > 1:
        sys.exit(f"the fork server has {len(names)} threads, so that a forked child may hang")
