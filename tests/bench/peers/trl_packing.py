"""TRL's SFTTrainer with packing: rows of the chat end to end in packs of `pack_length` tokens, answers learned."""

from __future__ import annotations

import json
from pathlib import Path

from common import Lines, check_isolation, read_settings, trainer_arguments, write
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

settings = read_settings()
lines = Path(settings.rows).read_text(encoding="utf-8").splitlines()
chats = [json.loads(line)["messages"] for line in lines]
rows = Dataset.from_list([{"prompt": chat[:1], "completion": chat[1:]} for chat in chats])
lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(
    model=settings.model,
    args=SFTConfig(
        **trainer_arguments(settings), packing=True,
        max_length=settings.pack_length, gradient_checkpointing=False, completion_only_loss=True,
        model_init_kwargs={"dtype": "bfloat16" if settings.dtype == "bf16" else "float32"},
    ),
    train_dataset=rows,
    peft_config=lora,
    callbacks=[Lines(settings)],
)  # fmt: skip
packs = trainer.train_dataset
ids = [i for pack in packs["input_ids"] for i in pack]
write(settings.metrics, event="data", packs=len(packs), rows=ids.count(settings.start_id) / 2,
      tokens=sum(i != settings.pad_id for i in ids))  # fmt: skip
if settings.check:
    write(settings.metrics, **check_isolation(trainer.model, trainer.get_train_dataloader()))
else:
    trainer.train()
