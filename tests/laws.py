"""What the law tests share: tiny recipes, runs that are made once, and what such a run left behind.

A `Cell` is a method with its settings on one model family. `trained` runs it for five steps and keeps the weights
before and after and the logits of the model in memory, so that every law can be read off without training again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from filelock import FileLock

from ftune.listener import Listener
from ftune.load import Loaded, load_recipe
from ftune.signals import StopFlag

FAMILIES = ("llama", "gpt2", "qwen3", "gemma3")
"""llama has its own head; the heads of the others are their embeddings; gpt2 has Conv1D, gemma3 sliding windows."""
DEEP = ("full", "lora")
BLOCKS: dict[str, dict[str, Any]] = {"lora": {"rank": 4, "alpha": 8}}
"""Settings of methods whose defaults do not suit a tiny model."""
LEARNING = {
    "full": r".+",
    "lora": r".+\.(lora_A|lora_B|lora_magnitude_vector)\.default\.weight|.+\.trainable_tokens_delta\.default",
}
"""Names of what learns, by method. A new method states its own here."""
ATTENTION = {"llama": "q_proj", "gpt2": "c_attn", "qwen3": "q_proj", "gemma3": "q_proj"}
MLP = {"llama": "down_proj", "gpt2": "mlp.c_proj", "qwen3": "down_proj", "gemma3": "down_proj"}
NEW = ["<call>", "<end of call>"]
ROWS = [
    {"prompt": f"{i} + {3 * i}" + " =" * (i % 3), "completion": f"<call>{4 * i}" + "<end of call>!" * (i % 4)}
    for i in range(11)
]
"""Uneven on both sides; one row holds none of the second new token."""


@dataclass(frozen=True)
class Cell:
    """A method, its settings and a model family."""

    name: str
    family: str
    block: Mapping[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.family}"

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.block["name"])


def plain_cells() -> list[Cell]:
    """The methods that are looked at closest, on every family; `matrix` has all methods on all objectives."""
    return [Cell(name, family, {"name": name, **BLOCKS.get(name, {})}) for name in DEEP for family in FAMILIES]


def lora_cells() -> list[Cell]:
    """Every variant of LoRA, on a model with a head of its own and on one with a tied head and Conv1D."""
    cells = []
    for family in ("llama", "gpt2"):
        variants: dict[str, dict[str, Any]] = {
            "rslora": {"rslora": True},
            "dora": {"dora": True},
            "pissa": {"init": "pissa"},
            "pissa_rslora": {"init": "pissa", "rslora": True},
            "gaussian": {"init": "gaussian"},
            "lora_plus": {"learning_rate_ratio": 16.0},
            "patterns": {"rank_pattern": {ATTENTION[family]: 2}, "alpha_pattern": {MLP[family]: 3.0}},
            "pissa_patterns": {"init": "pissa", "rank_pattern": {MLP[family]: 2}, "alpha_pattern": {MLP[family]: 3.0}},
            "targets": {"target_modules": [ATTENTION[family], MLP[family]]},
            "dropout": {"dropout": 0.3},
            "new_tokens": {"new_tokens": NEW},
            "many_new_tokens": {"new_tokens": [*NEW, *(f"<{i}>" for i in range(10))]},
        }
        cells += [Cell(name, family, {"name": "lora", **BLOCKS["lora"], **block}) for name, block in variants.items()]
    return cells


CELLS = [*plain_cells(), *lora_cells()]


def recipe(folder: Path, *, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Loaded:
    """Write rows and a recipe into `folder` and read it. Sections are laid over what suits a tiny model."""
    values: dict[str, Any] = {
        "model": "builtin:tiny-llama",
        "data": {"train": "rows.jsonl", "template": "{{ prompt }} "},
        "train": {
            "duration": "5 steps", "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "warmup": 0,
            "schedule": "constant", "precision": "fp32",
        },
        "checkpoint": {"every": 5},
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    for name, block in sections.items():
        both = isinstance(block, Mapping) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **block} if both else block
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in (ROWS if rows is None else rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(json.dumps(values, indent=1), encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


def train(loaded: Loaded, listener: Listener | None = None, stop: StopFlag | None = None, **options: Any) -> Any:
    """Train without drawing and without waiting for the disk, neither of which a law is about."""
    from ftune.run import train as train_for_real

    with ExitStack() as patches:
        patches.enter_context(mock.patch("ftune.report_files.pictures", return_value={}))
        patches.enter_context(mock.patch("ftune.store._fsync"))
        return train_for_real(loaded, listener=listener or Listener(), stop=stop or StopFlag(), **options)


class Stops(Listener):
    """Presses Ctrl-C during step `step`."""

    def __init__(self, step: int) -> None:
        self.at, self.flag = step, StopFlag()

    def step(self, result: Any, plan: Any, memory_bytes: int) -> None:
        if result.step == self.at:
            self.flag.signal_number = 2


class Shared:
    """Folders that are filled once, by whichever worker comes first."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The folder `name`, filled."""
        folder, done = self.root / name, self.root / f"{name}.done"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder


@dataclass(frozen=True)
class Trained:
    """What five steps left behind.

    Args:
        folder: the run.
        before, after: every parameter by name.
        learning: names of those that learn.
        logits: of the trained model in memory, on `probe()`.
    """

    folder: Path
    before: dict[str, Any]
    after: dict[str, Any]
    learning: set[str]
    logits: Any

    @property
    def plan(self) -> dict[str, Any]:
        """`plan.json` without sources."""
        stored = json.loads((self.folder / "plan.json").read_text())
        return {name: entry["value"] for name, entry in stored.items()}


def trained(shared: Shared, cell: Cell) -> Trained:
    """Five steps of a cell at a rate that changes the function visibly."""
    from safetensors.torch import load_file

    def fill(folder: Path) -> None:
        rate = 1e-3 if cell.method == "full" else 1e-2 / cell.block.get("learning_rate_ratio", 1.0)
        loaded = recipe(
            folder,
            model=f"builtin:tiny-{cell.family}",
            method=dict(cell.block),
            data={"eval": "rows.jsonl"},
            train={"learning_rate": rate},
            eval={"every": 5},
            checkpoint={"best": None},
        )
        with mock.patch("ftune.run._train", _recorded(folder)):
            train(loaded)

    folder = shared.make(str(cell), fill)
    return Trained(
        folder / "run",
        load_file(folder / "before.safetensors"),
        load_file(folder / "after.safetensors"),
        set(json.loads((folder / "learning.json").read_text())),
        load_file(folder / "logits.safetensors")["logits"],
    )


def _recorded(folder: Path) -> Callable[[Any], None]:
    from safetensors.torch import save_file

    from ftune import run as runs

    train_part = runs._train

    def record(run: Any) -> None:
        save_file(parameters(run.model), folder / "before.safetensors")
        learning = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
        (folder / "learning.json").write_text(json.dumps(learning))
        train_part(run)
        save_file(parameters(run.model), folder / "after.safetensors")
        save_file({"logits": logits(run.model)}, folder / "logits.safetensors")

    return record


def parameters(model: Any) -> dict[str, Any]:
    """A copy of every parameter, by name."""
    return {name: parameter.detach().clone().contiguous() for name, parameter in model.named_parameters()}


def probe() -> Any:
    """Token ids [3, 17] of bytes."""
    import torch

    return torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(7))


def logits(model: Any) -> Any:
    """Logits in evaluation mode on `probe()`; the model is left in the mode it was in."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=probe(), use_cache=False).logits
    model.train(training)
    return found


def start_model(loaded: Loaded) -> Any:
    """The base model of a recipe, before any method is attached."""
    import torch

    from ftune.start import load_start, start_of

    start = start_of(loaded.recipe.model, loaded.folder)
    return load_start(start, loaded.recipe.objective.head((), 256), torch.float32, loaded.recipe.seed)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Events of one kind in `metrics.jsonl`."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def python(*arguments: str, environment: Mapping[str, str] | None = None, seconds: int = 120) -> Any:
    """A fresh Python process with this one's environment and more; its output is text. Nothing of it outlives it."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


ONE_THREAD = "import os, sys; os.sched_getaffinity = lambda pid: {0}; from ftune.__main__ import main; main()"


def ftune(*arguments: object, seconds: int = 120, **environment: str) -> Any:
    """The command line in a fresh process that plans for one thread, as tests do."""
    return python("-c", ONE_THREAD, *map(str, arguments), environment=environment, seconds=seconds)
