"""Start-up of the command line beside the bare imports it is made of: paired runs, medians and the ratio.

python tests/bench/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from ratios import ratio, shown

PAIRS = 15
BARE = [sys.executable, "-c", "import typer, pydantic, yaml, rich"]
COMMANDS = {
    "ftune --help": ["--help"],
    "ftune check recipes/quickstart.yaml": ["check", "recipes/quickstart.yaml"],
    "ftune recipes ls": ["recipes", "ls"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure() -> dict[str, tuple[float, float, float]]:
    """Print the times, and return each command's ratio with its 95% interval over the pairs."""
    print(f"{'command':<38} {'median s':>9} {'bare s':>7} {'ratio':>6}   (median of {PAIRS} interleaved pairs)")
    found = {}
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "ftune", *arguments]
        seconds(command), seconds(BARE)  # warm the file cache
        ours, bare = zip(*((seconds(command), seconds(BARE)) for _ in range(PAIRS)), strict=True)
        found[name] = ratio(ours, bare)
        print(f"{name:<38} {statistics.median(ours):>9.3f} {statistics.median(bare):>7.3f} {shown(found[name], '')}")
    return found


if __name__ == "__main__":
    measure()
