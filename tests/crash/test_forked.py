"""The harness of the crash tests: what a forked command line reports is what a cold process would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import forked
import pytest
from command import write_recipe


def test_exit_code_and_streams_are_the_childs_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = forked.run(["--version"], tmp_path)
    assert (code, out.split()[0], err) == (0, "ftune", "")
    capfd.readouterr()  # the server's own words, while it imported
    code, out, err = forked.run(["train", "missing.yaml"], tmp_path)
    assert (code, out) == (2, "")
    assert "missing.yaml" in err
    assert capfd.readouterr() == ("", "")


def test_environment_and_signals_reach_the_child(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    code, _, err = forked.run(["train", recipe], tmp_path, {"FTUNE_TESTING": "1", "FTUNE_FAULT": "1:KILL"})
    assert code == -signal.SIGKILL, err
    child = forked.start(["train", recipe], tmp_path)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait()[0] in (143, -signal.SIGTERM)


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    child = forked.start(["train", write_recipe(tmp_path, train={"duration": "100000 steps"})], tmp_path)
    with pytest.raises(TimeoutError, match=r"not done after 0\.5 s"):
        child.wait(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
