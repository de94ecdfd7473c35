"""Where a run came from: versions, machine, git, data and base fingerprints, command."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from typing import Any

from ftune import __version__
from ftune.drift import data_files
from ftune.errors import without_passwords
from ftune.load import Loaded
from ftune.prepare import Prepared

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers")


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def fingerprints(prepared: Prepared) -> dict[str, str]:
    """Identity of what the weights depend on: training tokens and names of labels, held-out tokens, base weights."""
    held, labels = prepared.dataset.eval, prepared.dataset.labels
    learned = prepared.dataset.train.fingerprint
    if labels:  # examples hold their positions only
        learned = hashlib.sha256("\0".join([learned, *labels]).encode()).hexdigest()
    return {
        "data.train": learned,
        "data.eval": "none" if held is None else held.fingerprint,
        "model.name": prepared.facts.model.fingerprint,
    }


def describe(loaded: Loaded, prepared: Prepared) -> dict[str, Any]:
    """Contents of `run.json`. Holds nothing of the environment, so no secret can get in."""
    return {
        "format": 1,
        "recipe": str(loaded.path),
        "started": now(),
        "command": _command(),
        "seed": loaded.recipe.seed,
        "versions": {"ftune": __version__, "python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "machine": {"system": platform.platform(), "processor": platform.machine(), **_facts(prepared)},
        "git": _git_commit(),
        "fingerprints": fingerprints(prepared),
        "files": data_files(loaded.recipe, loaded.folder),
    }


def _command() -> list[str]:
    """The words of the command line, without passwords."""
    ours = sys.argv[0].endswith(("ftune", "__main__.py"))
    return [without_passwords(word) for word in sys.argv[1:]] if ours else []


def _facts(prepared: Prepared) -> dict[str, Any]:
    machine = prepared.facts.machine
    return {"device": machine.device, "memory_bytes": machine.memory_bytes, "num_threads": machine.num_threads}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the current directory's repository, with a + when files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
