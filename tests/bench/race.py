"""One run of one trainer in a process of its own, watched from outside with one clock for all.

Every trainer writes a line for each optimizer step (`ftune train` its metrics.jsonl, peers through their driver). The
watcher looks at the file every 10 ms and stamps each new line. Caches of the tools begin empty, the system's file cache
is warm. Everyone has the same cores, the same number of threads and the same allocator.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
DRIVERS = {"hf": "hf_trainer.py", "trl": "trl_packing.py", "llamafactory": "llama_factory.py"}
ENVIRONMENT = {"hf": "stock", "trl": "stock", "llamafactory": "llamafactory"}
RATES = {"lora": 1e-3, "qlora": 1e-3, "full": 1e-4}
LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class Entry:
    """Who trains what, and how.

    Args:
        tool: `ftune`, or a key of `DRIVERS`.
        method: lora, qlora or full.
        dtype: fp32, or bf16: frozen weights in bf16, what learns in fp32, computation in bf16.
        micro: rows (packs, for a peer that packs) of a forward pass; 0 leaves it to the tool.
        accumulation: forward passes of an optimizer step.
    """

    tool: str
    method: str
    dtype: str
    micro: int = 0
    accumulation: int = 1

    @property
    def name(self) -> str:
        """As tables show it."""
        batches = f" {self.micro}x{self.accumulation}" if self.micro else ""
        return f"{self.tool} {self.method} {self.dtype}{batches}"


@dataclass(frozen=True)
class Conditions:
    """What is the same for all.

    Args:
        workload: folder with the model and its tokenizer.
        rows: file of chats, as ftune reads it.
        ordered: the same rows in the order in which ftune takes them, for peers, of which one does not shuffle.
        batch_size: rows of an optimizer step.
        steps: optimizer steps.
        pack_length: tokens of a pack, for peers that pack to a fixed length.
        pad_id, start_id: ids that fill up, and that begin a turn; a row has two turns.
        cores: processors that all threads run on.
        preload: allocator library, or None for the system's.
        timeout: seconds after which a run is ended and counts as failed.
        settings: `section.key=value` for the recipe of ftune only.
    """

    workload: Path
    rows: Path
    ordered: Path
    batch_size: int
    steps: int
    pack_length: int
    pad_id: int
    start_id: int
    cores: tuple[int, ...]
    preload: Path | None
    timeout: float
    settings: tuple[str, ...] = ()


def recipe_of(entry: Entry, conditions: Conditions, folder: Path) -> dict[str, Any]:
    """What ftune is asked to do."""
    method: dict[str, Any] = {"name": entry.method}
    if entry.method != "full":
        method |= {"rank": 16, "alpha": 32, "dropout": 0.0}
    model: dict[str, Any] = {"name": str(conditions.workload)}
    if entry.method == "lora":
        model["dtype"] = entry.dtype
    return {
        "model": model,
        "objective": "causal_lm",
        "method": method,
        "data": {"train": str(conditions.rows), "format": "chat"},
        "train": {
            "duration": f"{conditions.steps} steps", "batch_size": conditions.batch_size,
            "micro_batch_size": entry.micro or "auto", "learning_rate": RATES[entry.method], "schedule": "constant",
            "warmup": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": entry.dtype,
        },
        "checkpoint": {"every": conditions.steps},
        "output_dir": str(folder / "run"),
    }  # fmt: skip


def settings_of(entry: Entry, conditions: Conditions, folder: Path, check: bool) -> dict[str, Any]:
    """What a driver is told."""
    return {
        "model": str(conditions.workload), "rows": str(conditions.ordered), "steps": conditions.steps,
        "method": entry.method, "dtype": entry.dtype, "micro": entry.micro, "accumulation": entry.accumulation,
        "learning_rate": RATES[entry.method], "pack_length": conditions.pack_length, "pad_id": conditions.pad_id,
        "start_id": conditions.start_id, "metrics": str(folder / "metrics.jsonl"), "scratch": str(folder),
        "check": check,
    }  # fmt: skip


def run(entry: Entry, conditions: Conditions, python: Path, folder: Path, *, check: bool = False) -> dict[str, Any]:
    """Train once.

    Args:
        entry: who, and how.
        conditions: the same for all.
        python: interpreter of the environment.
        folder: scratch of this run; emptied first. The trainer's output stays there in `log.txt`.
        check: peers that pack look whether rows see each other, instead of training.

    Returns:
        A record: `entry`; `stamps`, seconds from the start of the process to the end of each step; `steps`, the line of
        each; `events`, other lines; `peak_mib` of resident memory; `cpu_seconds` and `seconds` of the process; `error`,
        None or why there is no result.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if entry.tool == "ftune":
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(entry, conditions, folder)), encoding="utf-8")
        command = [str(python), "-m", "ftune", "train", str(folder / "recipe.yaml"), "--quiet", "--offline"]
        command += [word for setting in conditions.settings for word in ("--set", setting)]
        metrics = folder / "run" / "metrics.jsonl"
    else:
        told = json.dumps(settings_of(entry, conditions, folder, check))
        (folder / "settings.json").write_text(told, encoding="utf-8")
        command = [str(python), str(PEERS / DRIVERS[entry.tool]), str(folder / "settings.json")]
        metrics = folder / "metrics.jsonl"
    record = {"entry": asdict(entry), "name": entry.name, **_watch(command, metrics, folder, conditions)}
    if record["error"] is None and not check and len(record["stamps"]) != conditions.steps:
        record["error"] = f"{len(record['stamps'])} steps of {conditions.steps}"
    if entry.tool == "ftune" and (folder / "run" / "plan.json").is_file():
        record["plan"] = json.loads((folder / "run" / "plan.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "run", ignore_errors=True)  # the caller reads numbers only, and models are large
    return record


def _watch(command: list[str], metrics: Path, folder: Path, conditions: Conditions) -> dict[str, Any]:
    """Start the command and stamp the lines it writes until it ends."""
    stamps: list[float] = []
    lines: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    seen, status, error = 0, None, None
    cwd = ROOT if metrics.parent.name == "run" else folder
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, env=_environment(folder, conditions),
            preexec_fn=lambda: os.sched_setaffinity(0, conditions.cores),
        )  # fmt: skip
        try:
            while status is None:
                time.sleep(LOOK_SECONDS)
                pid, code, usage = os.wait4(process.pid, os.WNOHANG)
                status = code if pid else None
                now = time.perf_counter() - started
                whole, seen = _new_lines(metrics, seen)
                for line in whole:
                    (lines if line["event"] == "step" else events).append(line)
                    stamps += [now] if line["event"] == "step" else []
                if status is None and error is None and now > conditions.timeout:
                    process.kill()
                    error = f"ended after {conditions.timeout:g} s"
        finally:
            if status is None:  # the benchmark itself is being stopped
                process.kill()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 and error is None:
        said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
        error = f"exit code {process.returncode}: {said[-1500:]}"
    return {"stamps": stamps, "steps": lines, "events": events, "peak_mib": usage.ru_maxrss / 1024,
            "cpu_seconds": usage.ru_utime + usage.ru_stime, "seconds": now, "error": error}  # fmt: skip


def _new_lines(path: Path, seen: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after the first `seen` bytes, and where they end."""
    if not path.is_file() or path.stat().st_size == seen:
        return [], seen
    with path.open("rb") as file:
        file.seek(seen)
        text = file.read()
    end = text.rfind(b"\n") + 1
    return [json.loads(line) for line in text[:end].splitlines()], seen + end


def _environment(folder: Path, conditions: Conditions) -> dict[str, str]:
    """The caller's environment with empty caches, no hub, no GPU, the same threads and the same allocator."""
    caches = {name: str(folder / "cache" / name.lower()) for name in
              ("FTUNE_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}  # fmt: skip
    (folder / "tmp").mkdir()
    threads = str(len(conditions.cores))
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTHONPATH")}
    return {
        **kept, **caches, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_DISABLED": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_VERSION_CHECK": "1",
        **({"LD_PRELOAD": str(conditions.preload)} if conditions.preload else {}),
    }  # fmt: skip


def ordered_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order in which ftune takes them with seed 0: who does not shuffle has the same in each step."""
    from ftune.data.order import permutation

    return [rows[i] for i in permutation(0, 0, len(rows))]


OWN_PYTHON = Path(sys.executable)
