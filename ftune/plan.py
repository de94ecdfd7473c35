"""What will happen, every value with its source. How it is decided is in `decide.py`.

On resume the values that the machine chose are taken from the stored plan, so that a resumed run is the same run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftune.data.pack import Cut
from ftune.errors import ArtifactError
from ftune.facts import Device
from ftune.memory import Dtype
from ftune.recipe import Optimizer, Recipe

MACHINE_CHOICES = (
    "packing", "loss_chunk", "micro_batch_size", "micro_batch_tokens", "forward_overhead", "eval_batch_size",
    "precision", "frozen_dtype", "activation_checkpointing", "compile", "num_threads", "memory_bytes",
)  # fmt: skip
"""Fields that depend on the machine and stay what they were when a run is resumed."""


@dataclass(frozen=True)
class Runtime:
    """How a process computes: the part of a plan that scoring and generation need too."""

    device: Device
    precision: Dtype
    num_processes: int
    num_threads: int
    deterministic: bool


class Plan(BaseModel):
    """Everything a run does, decided. `sources` says where each value came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device
    num_processes: int
    num_threads: int
    allocator: str
    precision: Dtype
    frozen_dtype: Dtype
    deterministic: bool
    activation_checkpointing: bool
    compile: bool
    max_length: int
    batch_size: int
    packing: bool
    loss_chunk: int | None
    micro_batch_size: int
    micro_batch_tokens: int | None
    forward_overhead: int
    accumulation: int
    steps: int
    steps_per_epoch: int
    examples: int
    tokens_per_epoch: int
    targets_per_epoch: int
    optimizer: Optimizer
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float | None
    eval_every: int | None
    generate_every: int | None
    eval_batch_size: int
    metrics: tuple[str, ...]
    checkpoint_every: int
    keep: int
    best: str | None
    patience: int | None
    min_delta: float
    max_forgetting: float | None
    max_minutes: float | None
    total_parameters: int
    trainable_parameters: int
    memory_bytes: dict[str, int]
    checkpoint_bytes: int
    disk_bytes: int
    seed: int
    sources: dict[str, str]

    @property
    def cut(self) -> Cut:
        """How a step is cut into forwards."""
        return Cut(self.micro_batch_size, self.micro_batch_tokens, self.forward_overhead, self.packing)

    @property
    def padded_cut(self) -> Cut:
        """The same for rows that always stand side by side: evaluations, and what a method looks at."""
        return replace(self.cut, packed=False)

    @property
    def runtime(self) -> Runtime:
        """Device, precision and processes."""
        return Runtime(self.device, self.precision, self.num_processes, self.num_threads, self.deterministic)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """`{name: {"value": ..., "source": ...}}` for every field."""
        values = self.model_dump(mode="json", exclude={"sources"})
        return {name: {"value": value, "source": self.sources[name]} for name, value in values.items()}

    @classmethod
    def from_json(cls, stored: dict[str, dict[str, Any]]) -> Plan:
        """Read what `to_json` wrote."""
        values = {name: entry["value"] for name, entry in stored.items()}
        return cls(**values, sources={name: entry["source"] for name, entry in stored.items()})

    @classmethod
    def of_run(cls, run: Path) -> Plan:
        """The plan that a run was made by.

        Raises:
            ArtifactError: there is none that this version understands.
        """
        path = run / "plan.json"
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            names = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
            raise ArtifactError(
                f"{path}: does not have the fields of this version of ftune: {names}. Go on with the version that "
                f"{run / 'run.json'} names, or begin anew with another output_dir or --overwrite."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}.") from error

    def continuing(self, stored: Plan, recipe: Recipe) -> Plan:
        """This plan with the choices the machine made when the run began; what the recipe names is the recipe's."""
        anew: set[str] = set()
        if recipe.train.micro_batch_size != "auto":
            anew |= {"micro_batch_size", "micro_batch_tokens", "eval_batch_size", "memory_bytes"}
        if self.packing != stored.packing:
            anew |= {"packing", "micro_batch_tokens"}
        if recipe.train.activation_checkpointing != "auto":
            anew |= {"activation_checkpointing", "memory_bytes"}
        if recipe.train.compile != "auto":
            anew |= {"compile"}
        if self.num_processes != stored.num_processes:
            anew |= {"num_threads"}  # the cores are shared by another number of processes
        names = [name for name in MACHINE_CHOICES if name not in anew]
        if recipe.train.learning_rate == "auto":  # the default of the version that began
            names.append("learning_rate")
        kept = {name: getattr(stored, name) for name in names}
        size = kept.get("micro_batch_size", self.micro_batch_size)
        most = kept.get("micro_batch_tokens", self.micro_batch_tokens)
        tokens = self.batch_size * self.tokens_per_epoch / self.examples
        kept["accumulation"] = (
            accumulation(self.batch_size, size, self.num_processes)
            if most is None
            else accumulation(math.ceil(tokens), most, self.num_processes)
        )
        notes = {name: stored.sources[name] for name in names}
        return self.model_copy(update={**kept, "sources": {**self.sources, **notes}})


def accumulation(batch_size: int, micro_batch_size: int, num_processes: int) -> int:
    """Micro-batches per process and optimizer step, both sizes in examples or in tokens; the last may be short."""
    return math.ceil(math.ceil(batch_size / micro_batch_size) / num_processes)
