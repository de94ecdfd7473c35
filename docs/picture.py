"""Draw `demo.svg`, the terminal on the first page of the README, from a real run of the demo's commands.

python docs/picture.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
WIDTH = 96
ASKED = "My card has not come yet. When will it be here?"
COMMANDS = (
    ["generate", "recipes/quickstart.yaml", "--prompt", ASKED, "--max-new-tokens", "12"],
    ["train", "recipes/quickstart.yaml"],
    ["eval", "runs/quickstart"],
    ["merge", "runs/quickstart"],
    ["generate", "runs/quickstart/merged", "--prompt", ASKED],
)


def main() -> None:
    """Run each command in a temporary folder and write the picture of what they say."""
    screen = Console(record=True, width=WIDTH, file=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipes").symlink_to(ROOT / "recipes")
        for words in COMMANDS:
            shown = " ".join(f'"{word}"' if " " in word else word for word in words)
            screen.print(Text(f"$ ftune {shown}", style="bold"))
            done = subprocess.run(
                [sys.executable, "-m", "ftune", *words, "--offline", "--quiet"],
                cwd=folder,
                env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"ftune {shown}\n{done.stderr}")
            screen.print(Text.from_ansi(done.stdout.rstrip()))
    screen.save_svg(str(ROOT / "docs" / "demo.svg"), title="ftune: a demo")


if __name__ == "__main__":
    main()
