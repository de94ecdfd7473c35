"""LLaMA-Factory with packing: `neat_packing`, gradient checkpointing off, rows of a chat set in its own format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import Lines, check_isolation, read_settings, trainer_arguments, write
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

settings = read_settings()


class Look(TrainerCallback):
    """Says what the trainer was given, and checks it instead of training where that was asked for."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        batches = parts["train_dataloader"]
        ids = [i for pack in batches.dataset["input_ids"] for i in pack]
        write(settings.metrics, event="data", rows=ids.count(settings.start_id) / 2,
              tokens=sum(i != settings.pad_id for i in ids))  # fmt: skip
        if settings.check:
            write(settings.metrics, **check_isolation(parts["model"], batches))
            sys.exit()


folder = Path(settings.scratch)
tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
described = {"file_name": settings.rows, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
(folder / "dataset_info.json").write_text(json.dumps({"bench": described}), encoding="utf-8")
run_exp(
    {
        **trainer_arguments(settings),
        "model_name_or_path": settings.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset": "bench",
        "dataset_dir": settings.scratch,
        "cutoff_len": settings.pack_length,
        "packing": True,
        "neat_packing": True,
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
    },
    callbacks=[Look(), Lines(settings)],
)
