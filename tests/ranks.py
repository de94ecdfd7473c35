"""Run as a script under torchrun: two steps of several recipes in one process group, gradients and losses written.

python -m torch.distributed.run --standalone --nproc-per-node 2 ranks.py '[{"recipe": ..., "out": ...}, ...]'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import two_steps

from ftune.load import load_recipe


def main(jobs: list[dict[str, str]]) -> None:
    """Do all jobs in order; the first process writes."""
    from safetensors.torch import save_file
    from torch import distributed

    for job in jobs:
        found = two_steps(load_recipe(Path(job["recipe"]), ["distributed.devices=2"]))
        assert distributed.get_world_size() == 2
        if distributed.get_rank() == 0:
            save_file(found, job["out"])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
