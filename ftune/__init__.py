"""ftune: fine-tuning from YAML recipes. `import ftune` is light; torch comes with the first function that needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftune.decide import make_plan
    from ftune.load import Loaded, load_recipe
    from ftune.merging import merge
    from ftune.plan import Plan
    from ftune.recipe import Recipe
    from ftune.run import train
    from ftune.scoring import evaluate

__version__ = "0.1.0"

_DOOR = {
    "Loaded": "ftune.load",
    "Plan": "ftune.plan",
    "Recipe": "ftune.recipe",
    "evaluate": "ftune.scoring",
    "load_recipe": "ftune.load",
    "make_plan": "ftune.decide",
    "merge": "ftune.merging",
    "train": "ftune.run",
}

__all__ = ["Loaded", "Plan", "Recipe", "evaluate", "load_recipe", "make_plan", "merge", "train"]


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'ftune' has no attribute {name!r}")
    return getattr(importlib.import_module(_DOOR[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOOR])
