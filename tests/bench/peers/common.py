"""What all drivers share: the settings of a run, and a callback that writes what the trainer did, one line a step.

A driver is a small script for one peer, started as `python DRIVER settings.json` in that peer's own environment. It has
no clock: the lines are stamped by the process that reads them, as those of `ftune train` are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback


def read_settings() -> Any:
    """The keys of `race.settings_of`, as attributes."""
    return SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def write(path: str, **event: Any) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


class Lines(TrainerCallback):
    """Counts the ids that go into the embedding, and writes a line when the trainer has logged a step."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.tokens = self.fed = self.starts = 0

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        ids = inputs[0]
        self.fed += ids.numel()
        self.tokens += int((ids != self.settings.pad_id).sum())
        self.starts += int((ids == self.settings.start_id).sum())

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        model = parts["model"]
        model.get_input_embeddings().register_forward_pre_hook(self._count)
        every = list(model.parameters())
        learns = [p for p in every if p.requires_grad]
        dtypes = {
            "learns": sorted({str(p.dtype) for p in learns}),
            "frozen": sorted({str(p.dtype) for p in every if not p.requires_grad}),
        }
        write(
            self.settings.metrics, event="model", learns=sum(p.numel() for p in learns), dtypes=dtypes,
            attention=model.config._attn_implementation, rate=args.learning_rate, weight_decay=args.weight_decay,
            betas=[args.adam_beta1, args.adam_beta2], max_grad_norm=args.max_grad_norm,
        )  # fmt: skip

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **parts: Any) -> None:
        if "loss" not in logs:
            return  # the summary at the end
        write(self.settings.metrics, event="step", step=state.global_step, loss=float(logs["loss"]),
              learning_rate=logs.get("learning_rate"), grad_norm=float(logs.get("grad_norm", "nan")),
              tokens=self.tokens, fed=self.fed, rows=self.starts / 2)  # fmt: skip
        self.tokens = self.fed = self.starts = 0


def trainer_arguments(settings: Any) -> dict[str, Any]:
    """Arguments that mean the same to every trainer built on transformers' own."""
    return {
        "output_dir": settings.scratch,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": settings.dtype == "bf16",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
    }


def check_isolation(model: Any, batches: Any) -> dict[str, Any]:
    """Whether rows of a packed batch see each other: logits of all rows but the first, in the pack and alone.

    Returns:
        The largest difference of logits, relative to the largest logit; `rows` compared; keys of the batch.
    """
    import torch

    batch = next(iter(batches))
    model.eval()
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "num_items_in_batch") and torch.is_tensor(v)}
    begins = [i for i, place in enumerate(inputs["position_ids"][0].tolist()) if place == 0]
    ids = inputs["input_ids"][0]
    ends = [*begins[1:], len(ids)]
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0].float()
        worst, compared = 0.0, 0
        for first, last in zip(begins[1:], ends[1:], strict=True):
            if last - first < 8:
                continue  # padding, which some count as rows of one token
            alone = model(input_ids=ids[None, first:last], use_cache=False).logits[0].float()
            worst = max(worst, float((packed[first:last] - alone).abs().max() / alone.abs().max()))
            compared += 1
    return {"event": "isolation", "worst": worst, "rows": compared, "keys": sorted(inputs)}
