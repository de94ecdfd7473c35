"""Start one process for each device with torch's elastic agent, and pass on the first failing rank's exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ftune.errors import LaunchError

COMMAND = ["-m", "ftune"]
"""What every process runs."""


def launch(processes: int, arguments: Sequence[str], *, cores: int) -> None:
    """Run `python -m ftune ARGUMENTS` in every process and wait.

    Raises:
        SystemExit: with the exit code of the first rank that failed with one.
        LaunchError: a rank died without a code.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    import torch

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)  # rank 0 says what happened
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _pass_on)
    try:
        elastic_launch(config, sys.executable)(*COMMAND, *arguments)
    except SignalException as error:
        raise SystemExit(128 + int(error.sigval)) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from None
        raise LaunchError(f"rank {rank} died of signal {-failure.exitcode}. The same command goes on.") from None


def _pass_on(number: int, frame: FrameType | None) -> None:
    """SIGUSR1 asks all processes for a checkpoint; torch's agent passes on only the signals that end a run."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:3] == COMMAND:
                child.send_signal(number)
