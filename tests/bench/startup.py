"""Start-up of the command line beside the bare imports it is made of: paired runs, medians and the ratio.

python tests/bench/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PAIRS = 15
BARE = [sys.executable, "-c", "import typer, pydantic, yaml"]
COMMANDS = {
    "ftune --help": ["--help"],
    "ftune check recipes/quickstart.yaml": ["check", "recipes/quickstart.yaml"],
    "ftune recipes ls": ["recipes", "ls"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    print(f"{'command':<38} {'median s':>9} {'bare s':>7} {'ratio':>6}   (median of {PAIRS} interleaved pairs)")
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "ftune", *arguments]
        seconds(command), seconds(BARE)  # warm the file cache
        pairs = [(seconds(command), seconds(BARE)) for _ in range(PAIRS)]
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name:<38} {ours:>9.3f} {bare:>7.3f} {ratio:>6.2f}")


if __name__ == "__main__":
    main()
