"""transformers' Trainer, with peft for LoRA: rows side by side, padded to the longest of each micro-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import Lines, read_settings, trainer_arguments, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

settings = read_settings()
tokenizer = AutoTokenizer.from_pretrained(settings.model)


def encode(row: dict[str, Any]) -> dict[str, list[int]]:
    """The whole chat; what comes before the answer is not learned."""
    whole = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=True)
    hidden = len(prompt["input_ids"])
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": [-100] * hidden + whole[hidden:]}


lines = Path(settings.rows).read_text(encoding="utf-8").splitlines()
rows = Dataset.from_list([json.loads(line) for line in lines]).map(encode, remove_columns=["messages"])
halves = settings.dtype == "bf16" and settings.method == "lora"
model = AutoModelForCausalLM.from_pretrained(settings.model, dtype="bfloat16" if halves else "float32")
if settings.method == "lora":
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
trainer = Trainer(
    model=model,
    args=TrainingArguments(**trainer_arguments(settings), train_sampling_strategy="sequential"),
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    callbacks=[Lines(settings)],
)  # fmt: skip
write(settings.metrics, event="data", rows=len(rows), tokens=sum(map(len, rows["input_ids"])),
      targets=sum(label >= 0 for labels in rows["labels"] for label in labels))  # fmt: skip
trainer.train()
