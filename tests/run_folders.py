"""Run folders that no training made: what a report is made of, with hostile text in it if asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = '</script><script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(2)>\u202e\x1b]&\'"'


def write_run(folder: Path, *, finished: bool = True, text: str = "plain", steps: int = 40, **changed: Any) -> Path:
    """A classifier's run whose names, labels, rows and notes all hold `text`. `changed` is laid over the report."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [f"a {text}", f"b {text}", "c"]
    _json(folder / "run.json", {"versions": {"ftune": "0.1.0", "torch": text},
                                "fingerprints": {"data.train": "aa11"},
                                "command": ["train", text], "seed": 0, "git": None, "started": "2026"})  # fmt: skip
    recipe = {"model": {"name": text}, "method": {"name": "task"}, "objective": {"name": "sequence_classification"},
              "train": {"learning_rate": 0.001, "batch_size": 4}, "data": {"train": f"{text}.csv"}}  # fmt: skip
    _json(folder / "resolved.json", {"recipe": recipe})
    plan = {"steps": steps, "max_grad_norm": 1.0, "best": "eval_loss", "trainable_parameters": 10,
            "total_parameters": 100, "memory_bytes": {"gradients": 2**20, "logits": 2**21}}  # fmt: skip
    _json(folder / "plan.json", {name: {"value": value, "source": "test"} for name, value in plan.items()})
    done = steps if finished else steps // 2
    events = [{"event": "eval", "step": 0, "loss": 2.0, "accuracy": 0.3}]
    for step in range(1, done + 1):
        events.append({"event": "step", "step": step, "loss": 2 / step, "learning_rate": 0.001, "grad_norm": 1 + step,
                       "seconds": 0.5, "tokens": 50, "targets": 4, "rows": 4, "tokens_per_second": 100.0,
                       "memory_bytes": 2**22, "flops": 1e9})  # fmt: skip
    events.append({"event": "eval", "step": done, "loss": 0.5, "accuracy": 0.75})
    events.append({"event": "step", "step": done, "loss": "nan"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    if not finished:
        return folder
    rows = [{"file": f"{text}.csv", "number": i, "text": f"row {i} {text}", "expected": labels[i % 2],
             "received": labels[0], "probabilities": {labels[0]: 0.5 + i / 100, labels[1]: 0.25},
             "exact": i % 2 == 0} for i in range(6)]  # fmt: skip
    (folder / "predictions_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = {name: {"precision": 0.5, "recall": 1 / 3, "f1": 0.4, "rows": 3, "predicted": 6} for name in labels}
    split = {"rows": 41, "kept": 40, "dropped": {text: 1}, "truncated": 0, "examples": 40, "tokens": 1234,
             "targets": 40, "notes": [f"a note {text}"], "labels": {labels[0]: 33, labels[1]: 7},
             "fingerprint": "bb22"}  # fmt: skip
    report = {
        "name": folder.name, "model": text, "method": "task", "objective": "sequence_classification",
        "finished": "complete", "steps": steps, "model_step": steps, "baseline": {"accuracy": 0.3},
        "metrics": {"eval": {"accuracy": {"value": 0.75, "ci95": [0.61, 0.87]}}}, "guard": {},
        "classes": {"eval": {"classes": classes, "confusion": [[3, 0, 0], [3, 0, 0], [0, 0, 0]]}},
        "trainable_parameters": 10, "total_parameters": 100, "rows_seen": 160, "tokens_seen": 2000,
        "targets_seen": 160, "train_seconds": 20.0, "tokens_per_second": 100.0, "flops_per_second": 2e9,
        "peak_memory_bytes": 2**27, "planned_memory_bytes": 3 * 2**20, "data": {"train": split},
        "details": {"layers": [{"layer": text, "weight": 0.25}]}, **changed,
    }  # fmt: skip
    _json(folder / "report.json", report)
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
