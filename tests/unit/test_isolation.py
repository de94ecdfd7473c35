"""Tests themselves: offline, on one thread, and writing nowhere but under the temp folder."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_no_connection_leaves_this_machine() -> None:
    with socket.socket() as outside, pytest.raises(OSError, match="may not connect"):
        outside.connect(("192.0.2.1", 80))
    with socket.socket() as server, socket.socket() as inside:
        server.bind(("127.0.0.1", 0))
        server.listen()
        inside.connect(server.getsockname())


@pytest.mark.parametrize("write", ["open", "mkdir", "rename"])
def test_nothing_is_written_beside_the_tests(tmp_path: Path, write: str) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(PermissionError, match="may not write"):
        if write == "open":
            (HERE / "never.txt").write_text("a")
        elif write == "mkdir":
            (HERE / "never").mkdir()
        else:
            (tmp_path / "a").rename(HERE / "never")
    assert not list(HERE.glob("never*"))
    assert Path.cwd() == tmp_path


def test_one_thread_here_and_in_children() -> None:
    import torch

    from ftune.facts import look_at_machine

    assert torch.get_num_threads() == 1
    assert look_at_machine(Path()).num_threads == 1
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'], os.environ['HF_HOME'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[:2] == ["1", "1"] and "ftune-tests" in shown[2]
