"""Run as a script under torchrun: work for two processes of one group, whose results the first one writes.

    python -m torch.distributed.run --standalone --nproc-per-node 2 ranks.py '[{"recipe": ..., "out": ...}, ...]'

With `out`: gradients and losses of two steps go there. With `second`: a whole run, in which only the second process
is asked for a checkpoint after step 1 (`save`), or has used up its time after step 2 (`clock`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from bench import two_steps
from laws import train

from ftune.listener import Listener
from ftune.load import load_recipe
from ftune.signals import StopFlag


class Second(Listener):
    """Makes something happen in the second process only."""

    def __init__(self, what: str, rank: int) -> None:
        self.what = what if rank == 1 else ""
        self.stop = StopFlag()
        self.late = 0.0

    def step(self, result: Any, plan: Any, memory_bytes: int) -> None:
        if self.what == "save" and result.step == 1:
            self.stop.save_asked = True
        if self.what == "clock" and result.step == 2:
            self.late = 1e9


def main(jobs: list[dict[str, str]]) -> None:
    """Do all jobs in order."""
    from accelerate import PartialState
    from safetensors.torch import save_file

    rank = PartialState(cpu=True).process_index
    assert PartialState().num_processes == 2
    for job in jobs:
        loaded = load_recipe(Path(job["recipe"]), ["distributed.devices=2"])
        if "second" in job:
            second, clock = Second(job["second"], rank), time.monotonic
            with mock.patch("ftune.run.time.monotonic", lambda s=second, now=clock: now() + s.late):
                train(loaded, second, second.stop)
            continue
        found = two_steps(loaded)
        if rank == 0:
            save_file(found, job["out"])
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
