"""Set up the process for a plan: accelerate, threads, determinism, peak memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ftune.errors import LaunchError
from ftune.memory import Dtype
from ftune.plan import Runtime

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_MIXED = {"fp32": "no", "bf16": "bf16"}


def build_accelerator(runtime: Runtime, *, tracking: tuple[str, ...] = (), folder: Path | None = None) -> Accelerator:
    """An accelerator with the device, precision, threads and number of processes asked for.

    Raises:
        LaunchError: this process group has another size than the plan.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # one process may run plans of different precision
    torch.set_num_threads(runtime.num_threads)
    if runtime.deterministic and runtime.device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(
        cpu=runtime.device == "cpu",
        mixed_precision=_MIXED[runtime.precision],
        log_with=list(tracking) or None,
        project_dir=None if folder is None else str(folder / "tracking"),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes != runtime.num_processes:
        raise LaunchError(
            f"the plan is for {runtime.num_processes} processes, {accelerator.num_processes} are running. "
            "Start with `ftune train RECIPE --devices N` rather than a launcher of your own."
        )
    return cast("Accelerator", accelerator)


def torch_dtype(name: Dtype) -> torch.dtype:
    """`fp32`, `bf16` or `fp16` as torch knows it."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def device_name(device: str) -> str:
    """The driver's name of an accelerator; empty for a processor, of whose speed a name says little."""
    if device != "cuda":
        return ""
    import torch

    return str(torch.cuda.get_device_name())


def peak_memory_bytes(device: str) -> int:
    """Largest memory so far: allocated on CUDA, resident in this process elsewhere."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
