"""Memory over thousands of steps, and while a checkpoint is written."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import forked
import psutil
import pytest
from command import write_recipe

from ftune import builtin
from ftune.checkpoints import checkpoints
from ftune.listener import Listener
from ftune.load import load_recipe
from ftune.signals import StopFlag

MIB = 2**20
STEPS = 2000
WARM = 300


@pytest.mark.crash
def test_two_thousand_steps_in_flat_memory(tmp_path: Path) -> None:
    """The slope of the resident size, with evaluations and checkpoints every 100 steps.

    Rows have two lengths. With many, torch makes something new for each that comes up, 1.3 MB once after 1,019 steps.
    """
    train = {"duration": f"{STEPS} steps", "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-3}
    write_recipe(tmp_path, train=train, eval={"every": 100}, checkpoint={"every": 100, "keep": 2})
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}" + " ok" * (i % 2)} for i in range(100, 140)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    child = forked.start(["train", "recipe.yaml", "--output-dir", "run", "--quiet"], tmp_path)
    samples = list(sizes_of(child.pid, tmp_path / "run" / "metrics.jsonl"))
    code, _, err = child.wait()
    assert code == 0, err
    for start in range(0, STEPS, 100):
        of_hundred = [size / MIB for step, size in samples if start <= step < start + 100]
        print(f"steps from {start}: {statistics.median(of_hundred):.1f} MiB" if of_hundred else f"{start}: no sample")
    steps, sizes = zip(*[sample for sample in samples if sample[0] >= WARM], strict=True)
    assert len(steps) > 50
    slope = statistics.linear_regression(steps, sizes).slope * 1000 / MIB
    print(
        f"{len(steps)} samples, {min(sizes) / MIB:.1f} to {max(sizes) / MIB:.1f} MiB, {slope:+.3f} MiB per 1,000 steps"
    )
    assert slope < 1


def sizes_of(pid: int, log: Path) -> Iterator[tuple[int, int]]:
    """Steps that a training process has made and its resident bytes, sampled until shortly before the last."""
    process, step = psutil.Process(pid), 0
    while step < STEPS - 10 and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        yield step, process.memory_info().rss
        time.sleep(0.25)
        step = log.read_bytes().count(b'{"event": "step"') if log.is_file() else 0


@pytest.mark.crash
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory can only be reset on Linux")
def test_a_save_takes_little_more_memory_than_what_it_saves(tmp_path: Path) -> None:
    """Four million weights and their moments: 50 MB. The resident size before a save, and its peak until the rename."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftune.run import train

    config = builtin.config("llama")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim = 256, 1024, 4, 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    builtin.tokenizer().save_pretrained(tmp_path / "base")
    steps = {"duration": "6 steps", "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-3}
    checkpoint = {"every": 2, "keep": 1, "best": None}
    recipe = write_recipe(
        tmp_path, model=str(tmp_path / "base"), method="full", train=steps, eval={"every": 6}, checkpoint=checkpoint
    )
    run, grown, steady = tmp_path / "run", [], 0

    def measure(kind: str, path: Path) -> None:
        nonlocal steady
        if kind == "create" and path.name.startswith(".tmp-step_"):
            Path("/proc/self/clear_refs").write_text("5")
            steady = psutil.Process().memory_info().rss
        elif kind == "rename" and path.name.startswith("step_"):
            status = Path("/proc/self/status").read_text()
            grown.append(int(status.split("VmHWM:")[1].split()[0]) * 1024 - steady)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0})
        train(load_recipe(recipe, [f"output_dir={run}"]), listener=Listener(), stop=StopFlag(), on_operation=measure)
    (_, newest), *_ = checkpoints(run)
    size = json.loads((run / "plan.json").read_text(encoding="utf-8"))["checkpoint_bytes"]["value"]
    assert size == pytest.approx(sum(path.stat().st_size for path in newest.iterdir()), rel=0.01)
    assert size > 45e6 and len(grown) == 3
    print(f"state {size / 1e6:.1f} MB; saves added {[round(peak / 1e6, 1) for peak in grown]} MB")
    assert max(grown) <= 1.2 * size
