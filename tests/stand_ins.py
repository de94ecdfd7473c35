"""Rows and models in place of those that `make starter` gathers and trains first, for tests of shipped recipes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
HELD_OUT = ROOT / "tests" / "data" / "starter" / "heldout.jsonl"
CHATS = ROOT / "recipes" / "data" / "chat.jsonl"
SETTINGS = {
    "pretrain_starter": (f"data.train={HELD_OUT}", f"data.eval={HELD_OUT}"),
    "instruct_starter": (
        "model=builtin:starter",
        f"data.train={CHATS}",
        f"data.eval={CHATS}",
        "data.max_length=1024",
        "data.overlong=truncate",
    ),
}
"""By recipe, what follows `--set`."""


def instead(recipe: Path) -> list[str]:
    """Options of the command line that a shipped recipe needs in a test."""
    return [word for setting in SETTINGS.get(recipe.stem, ()) for word in ("--set", setting)]
