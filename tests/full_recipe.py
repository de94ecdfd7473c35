"""The shortest recipe, one that writes every key, and the blocks and types of which recipes are made."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ftune.methods.lora import Lora
from ftune.objectives.causal_lm import CausalLM
from ftune.yaml_file import parse_yaml

MINIMAL = "model: m\ndata: {train: d.jsonl}\n"
FULL = """\
model:
  name: org/model
  revision: 0123456789abcdef0123456789abcdef01234567
  dtype: bf16
  trust_remote_code: true
  init: random
objective: {name: causal_lm}
method:
  name: lora
  rank: 8
  alpha: 16.5
  dropout: 0.05
  target_modules: [q_proj, v_proj]
  rank_pattern: {layers.0.q_proj: 4}
  alpha_pattern: {q_proj: 8}
  rslora: true
  dora: true
  init: gaussian
  learning_rate_ratio: 16
  new_tokens: [<a>, <b>]
  trainable_tokens: [<c>]
data:
  train:
  - a.jsonl
  - {path: org/b, split: "[:400]", subset: main, revision: main, format: instruction, columns: {output: answer},
     weight: 0.5, loader: null, file_format: null, header: null, quoting: null, values: {k: v}}
  eval: 5%
  test: {path: org/set, split: "test[:10%]", subset: null, revision: null, format: null, columns: null, weight: 1,
         loader: null, file_format: null, header: null, quoting: null, values: {}}
  format: prompt_completion
  columns: {prompt: question, completion: answer}
  roles: {}
  template: "Q: {{ prompt }}"
  train_on: last
  system: merge_into_user
  max_length: 512
  overlong: drop
  group_by: id
  stratify: false
  near_duplicates: 0.7
  seed: 9
  leakage: drop
  on_bad_row: skip
  max_dropped: 5%
  packing: false
train:
  duration: 2_000_000 tokens
  max_minutes: 90
  batch_size: 16
  micro_batch_size: 4
  learning_rate: 1e-4
  optimizer: sgd
  schedule: linear
  warmup: 10
  weight_decay: 0.1
  max_grad_norm: 0.5
  precision: fp32
  activation_checkpointing: true
  deterministic: true
  compile: auto
  max_skipped_steps: 3
  early_stopping: {patience: 5, min_delta: 0.01, max_forgetting: 5%}
eval: {every: 50, max_rows: 100, metrics: [loss, exact_match], generate_every: 25%, max_new_tokens: 64, shots: [0, 4],
       guard: [{path: c.jsonl, split: "[:9]", subset: null, revision: null, format: null, columns: null, weight: 1,
                loader: null, file_format: null, header: null, quoting: null, values: {}}]}
checkpoint: {every: 5%, keep: 3, best: null}
distributed: {devices: 2}
tracking: [tensorboard, wandb]
output_dir: out/{recipe}
seed: 42
"""
"""Valid, and every key of every section is written."""


def tree_of(text: str) -> Any:
    """The plain values of a recipe, some of whose numbers PyYAML would read as text; the caller may change them."""
    return json.loads(_json_of(text))


@cache
def _json_of(text: str) -> str:
    return json.dumps(parse_yaml(text, "text").plain())


def blocks_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every block a recipe may hold, by dotted path."""
    yield prefix, kind
    for name, info in kind.model_fields.items():
        nested = {"method": Lora, "objective": CausalLM}.get(f"{prefix}{name}")
        for part in [nested] if nested else parts_of(info.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from blocks_of(part, f"{prefix}{name}.")


def parts_of(annotation: Any) -> Iterator[Any]:
    """A type, and every type and constraint inside it."""
    yield annotation
    for part in annotation.metadata if isinstance(annotation, FieldInfo) else typing.get_args(annotation):
        yield from parts_of(part)
