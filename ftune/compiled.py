"""The blocks of a model, each turned into a few long kernels by torch's compiler, where the recipe asks for it.

Norms, rotations, activations and sums of a block become one pass over memory each, in place of one for every
operator; products and attention stay what they are. Only training is compiled: held-out rows are scored and answers
written by the model as it is. Kernels are kept in the user's cache, so that only the first start waits for them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.attention import keep_from_compiler
from ftune.targets import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OFF = "TORCHDYNAMO_DISABLE"
"""Set when a command starts, since otherwise importing libraries loads the compiler, which takes a second."""
FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps kernels; by default a folder that all users of the machine can write."""
VARIANTS = 64
"""How many times the code of a block may be compiled anew: blocks differ in whether a gradient passes through their
input, in their window, and in what a method adds to them."""


def missing_compiler(environment: Mapping[str, str], device: str) -> str | None:
    """What torch's compiler needs and this machine does not have, or None."""
    if device == "mps":
        return "torch's compiler was never tried with ftune on mps"
    named = environment.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"])):
        return f"there is no C++ compiler {named} (CXX)" if named else "there is no C++ compiler (g++ or clang++)"
    if device == "cuda" and find_spec("triton") is None:
        return "the package triton is missing"
    return None


def kernels(cache: Path) -> Path:
    """Where kernels of this version of torch are kept in the user's cache."""
    return cache / "compiled" / f"torch-{version('torch')}"


def compile_blocks(model: PreTrainedModel, folder: Path) -> None:
    """Let torch compile each block when it first runs. Names of weights stay, and so does what is random.

    Args:
        model: with everything that the method attaches.
        folder: keeps kernels, if it can be written and the environment names no other.
    """
    import torch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    os.environ.pop(OFF, None)
    if os.environ.get(FOLDER) in (None, default_cache_dir()):  # importing the compiler has set it
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)  # when it was last used
            os.environ[FOLDER] = str(folder)
    keep_from_compiler()
    settings: Any = torch._dynamo.config
    settings.recompile_limit = VARIANTS
    for block in blocks(model).values():
        block.compile(dynamic=True, options={"fallback_random": True})


def uncompiled() -> AbstractContextManager[object]:
    """Inside, compiled blocks run as they were written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    import torch

    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
