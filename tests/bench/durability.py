"""ftune beside other trainers when things go wrong: kills, damaged and missing files, full disks, two at once.

    python tests/bench/durability.py             # an hour on one core
    python tests/bench/durability.py --share 0.1 # does it work?

Every trainer does the same small work, LoRA on a tiny model, in an environment of its own, and is struck by the same
cases (`peers/durable.py`). With `--publish` the table goes to docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from environments import python_of, versions_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by `tests/bench/durability.py` -->", "<!-- end of what it wrote -->"
NAMES = {"ftune": "ftune", "hf": "transformers Trainer", "trl": "TRL SFTTrainer"}
CASES = {
    "killed at random": "SIGKILL at a random instant",
    "killed while writing": "SIGKILL as a file of the run is opened for writing",
    "a bit flipped": "one bit of weights or optimizer flipped in the newest checkpoint",
    "a file missing": "one file of the newest checkpoint deleted, each in turn",
    "disk full": "a disk of 0.5 to 3 checkpoints, enlarged afterwards",
    "two at once": "the command given twice at the same time",
}


def prepare(folder: Path) -> Path:
    """A model as a folder and 40 uneven rows; returns the settings that all trainers read."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftune import builtin

    torch.manual_seed(builtin.SEED)
    AutoModelForCausalLM.from_config(builtin.config("llama")).save_pretrained(folder / "model")
    builtin.tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i} " + "ok " * (i % 5)} for i in range(40)]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def strike(name: str, folder: Path, share: float, cache: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All cases on one trainer; returns its lines and the versions of its packages."""
    work = folder / name
    work.mkdir()
    settings = {"work": str(work), "model": str(folder / "model"), "share": share,
                "rows": json.loads((folder / "rows.json").read_text(encoding="utf-8"))}  # fmt: skip
    (work / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    python = Path(sys.executable) if name == "ftune" else python_of("stock", cache)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "FTUNE_CACHE": str(work / "cache"),
                   "HF_HOME": str(work / "hf"), "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    script = Path(__file__).parent / "peers" / "durable.py"
    command = [str(python), str(script), name, str(work / "settings.json"), str(work / "results.jsonl")]
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
    lines = (work / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], versions_of(python)


def table(lines: list[dict[str, Any]]) -> str:
    """Cases down, trainers across; in each cell what came of how many."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in lines:
        outcomes = sorted(line["outcomes"].items(), key=lambda item: -item[1])
        found[line["case"]][line["trainer"]] = ", ".join(f"{what} {count}" for what, count in outcomes)
    rows = ["| then the same command again | " + " | ".join(NAMES.values()) + " |", "|---" * (1 + len(NAMES)) + "|"]
    for case, words in CASES.items():
        if case in found:
            rows.append(f"| {words} | " + " | ".join(found[case].get(name, "-") for name in NAMES) + " |")
    return "\n".join(rows)


def publish(text: str) -> None:
    """Put `text` between the marks of docs/reliability.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each case")
    parser.add_argument("--trainers", default="ftune,hf,trl")
    parser.add_argument("--publish", action="store_true", help="write the table into docs/reliability.md")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench", help="environments")
    asked = parser.parse_args()
    lines: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="durability-") as folder:
        prepare(Path(folder))
        for name in asked.trainers.split(","):
            found, packages = strike(name, Path(folder), asked.share, asked.cache.absolute())
            lines += found
            versions |= packages
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    text = f"{table(lines)}\n\n{shown}."
    print(text)
    if asked.publish:
        publish(text)


if __name__ == "__main__":
    main()
