"""A run in progress, and its log."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.listener import Listener
from ftune.load import Loaded
from ftune.meter import Meter
from ftune.plan import Plan
from ftune.prepare import Prepared
from ftune.signals import StopFlag
from ftune.state import TrainState
from ftune.store import Store

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ftune.methods import Method


@dataclass
class Run:
    """A run in progress: what was decided, what is loaded, where it stands."""

    loaded: Loaded
    prepared: Prepared
    plan: Plan
    folder: Path
    store: Store
    listener: Listener
    stop: StopFlag
    accelerator: Accelerator
    model: torch.nn.Module
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState
    saved: TrainState | None = None
    frozen_hash: str | None = None
    meter: Meter = field(default_factory=Meter)
    started: float = field(default_factory=time.monotonic)

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def method(self) -> Method:
        """What holds the weights, once the objective is known."""
        return self.loaded.recipe.learner.bound(self.loaded.recipe.objective)

    def log(self, event: str, **values: Any) -> None:
        """Append one event to `metrics.jsonl` and to the trackers."""
        if self.leads:
            written = {key: _json_number(value) for key, value in values.items()}
            self.store.append_json("metrics.jsonl", {"event": event, "step": self.state.step, **written})
            if self.loaded.recipe.tracking and event in ("step", "eval"):
                numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
                self.accelerator.log(numbers, step=self.state.step)


def _json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are written as text rather than hidden."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
