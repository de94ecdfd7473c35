"""What is true here: the machine, the model's configuration, the data's size. The only look at the world before a run.

`Facts` are plain numbers and strings, so that tests make them by hand and `make_plan` stays pure.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ftune.allocator import look_at_allocator
from ftune.compiled import missing_compiler

if TYPE_CHECKING:
    from ftune.data.build import Dataset

Device = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Machine:
    """Args:
    device: where tensors live.
    num_devices: accelerators here, or processors that count as such (1 on CPU).
    memory_bytes: of one device; on CPU of the machine.
    fast_bf16: whether the device computes faster in bf16 than in fp32.
    num_threads: processor cores this process may use.
    asked_threads: the most threads a process may use, where the environment sets OMP_NUM_THREADS.
    allocator: how memory of tensors is asked for, and why.
    compile_refusal: why torch's compiler cannot work here, or None.
    disk_free_bytes: where the run folder will be.
    """

    device: Device
    num_devices: int
    memory_bytes: int
    fast_bf16: bool
    num_threads: int
    asked_threads: int | None
    allocator: tuple[str, str]
    compile_refusal: str | None
    disk_free_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """Args:
    architecture: transformers' name of the model type.
    num_layers, width, vocabulary: shape of the network.
    max_positions: longest sequence it can take, in tokens; None when unlimited.
    stored_dtype: type its weights were published in.
    total_parameters, trainable_parameters: counts once the method is attached.
    fingerprint: identity of the base weights.
    targets: (name, count, shape) of the layers the method adapts, for people to read.
    family: decoder, encoder or encoder_decoder.
    quantised_parameters: how many of all are kept quantised.
    tokenizer_bytes: of its largest file.
    packing_refusal, chunking_refusal: why rows cannot lie end to end, and losses cannot be had from the logits of a
        few targets at a time; None where they can.
    """

    architecture: str
    num_layers: int
    width: int
    vocabulary: int
    max_positions: int | None
    stored_dtype: str
    total_parameters: int
    trainable_parameters: int
    fingerprint: str
    targets: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    family: str = "decoder"
    quantised_parameters: int = 0
    tokenizer_bytes: int = 0
    packing_refusal: str | None = None
    chunking_refusal: str | None = None


@dataclass(frozen=True)
class DataFacts:
    """Args:
    rows, examples, tokens, targets: of the training split; tokens and targets of one epoch.
    longest: tokens of its longest example.
    eval_examples, test_examples: 0 where there is no such split.
    formats: row formats found.
    template: how prompts are rendered.
    fingerprint: identity of the training tokens and masks.
    """

    rows: int
    examples: int
    tokens: int
    targets: int
    longest: int
    eval_examples: int
    test_examples: int
    formats: tuple[str, ...]
    template: str
    fingerprint: str


@dataclass(frozen=True)
class Facts:
    """Everything a plan depends on besides the recipe."""

    machine: Machine
    model: ModelFacts
    data: DataFacts


def look_at_machine(folder: Path) -> Machine:
    """Find the device that accelerate would choose, and its memory. Imports torch."""
    import psutil
    import torch

    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    disk = shutil.disk_usage(existing).free
    threads, allocator = (cores(), asked_threads(os.environ)), look_at_allocator(os.environ)
    refusal = functools.partial(missing_compiler, os.environ)
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine("cuda", torch.cuda.device_count(), memory, bf16, *threads, allocator, refusal("cuda"), disk)
    memory = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        return Machine("mps", 1, memory, True, *threads, allocator, refusal("mps"), disk)
    return Machine("cpu", 1, memory, _cpu_multiplies_bf16(), *threads, allocator, refusal("cpu"), disk)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asked_threads(environment: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS, of a list its first number; None where it is unset or no number, as OpenMP itself takes it."""
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 matrix instructions (AMX, AVX512-BF16, or Arm's); without them bf16 is slower."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def facts_of_data(dataset: Dataset) -> DataFacts:
    """Numbers of an encoded dataset."""
    train = dataset.train
    return DataFacts(
        rows=train.report.rows,
        examples=train.per_epoch,
        tokens=train.report.tokens,
        targets=train.report.targets,
        longest=train.report.longest,
        eval_examples=0 if dataset.eval is None else len(dataset.eval.examples),
        test_examples=0 if dataset.test is None else len(dataset.test.examples),
        formats=dataset.formats,
        template=dataset.template,
        fingerprint=train.fingerprint,
    )
