"""What each trick gains in time and memory, and how exact it is, beside the same work without it.

python tests/bench/tricks.py [--layers 30] [--rounds 3] [--dtype bf16] [--json FILE]

A model with random weights in the shape of SmolLM2-135M does one step, forward and backward, without and with each
trick in turn; lines show medians over rounds. `seconds` is processor time, `grown` how far resident memory rose above
what it was before the step, `saved` what autograd kept for the backward pass, without weights. With `--dtype bf16`,
frozen weights are kept in bf16 and the forward pass runs under autocast.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftune import attention
from ftune.attention import use_packed_attention
from ftune.data.encode import Example
from ftune.decide import LOGITS_AT_ONCE
from ftune.methods._lora_layer import use_lean_layers
from ftune.objectives._packed import end_to_end
from ftune.objectives.causal_lm import CausalLM

VOCABULARY = 49152
LENGTHS = (220, 180, 140, 120, 100, 80, 60, 60)
PROMPT = 0.5
"""Share of each row that is no target."""
CHUNK = LOGITS_AT_ONCE["cpu"] // VOCABULARY
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Measured:
    """One step: processor seconds, MB, loss per target."""

    seconds: float
    grown: float
    saved: float
    loss: float


def model_of(layers: int, method: str, dtype: torch.dtype, lean: bool = True, dropout: float = 0.0) -> Any:
    """The model, with what learns in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    use_packed_attention(model)
    if method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=16, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear")
    if lean:
        use_lean_layers(settings)
    attached = get_peft_model(model.to(dtype), settings)
    torch.manual_seed(1)
    for name, parameter in attached.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.02)
            parameter.data = parameter.data.float()
    return attached


def rows_of(packed: bool, share: float) -> Any:
    """One batch of random tokens; `share` shortens the rows."""
    random = np.random.Generator(np.random.Philox(key=3))
    rows = []
    for number, length in enumerate(max(8, int(length * share)) for length in LENGTHS):
        ids = random.integers(0, VOCABULARY, length).astype(np.int32)
        rows.append(Example(ids, np.arange(length) >= max(1, int(length * PROMPT)), length, "rows", number))
    return end_to_end(rows) if packed else CausalLM().collate(rows, 0)


def resident(kind: str) -> float:
    """MB in memory now (VmRSS), or at most since the last reset (VmHWM)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{kind}:")[1].split()[0]) / 1024


def measured(
    model: Any, rows: Any, chunk: int | None, learns: bool, dtype: torch.dtype = torch.float32
) -> tuple[Measured, dict[str, torch.Tensor]]:
    """One step and its gradients."""
    torch.manual_seed(2)
    model.zero_grad(set_to_none=True)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.process_time()
    with (
        torch.set_grad_enabled(learns),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        sums, counts = CausalLM().in_chunks(chunk).loss(model, rows)
    loss = sums.sum() / counts.sum()
    if learns:
        loss.backward()
    seconds = time.process_time() - started
    grown = resident("VmHWM") - before
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Measured(seconds, grown, sum(kept.values()) / 2**20, float(loss.detach())), gradients


Step = Callable[[], tuple[Measured, dict[str, torch.Tensor]]]


def tricks(layers: int, share: float, dtype: torch.dtype) -> dict[str, dict[str, Step]]:
    """The same work without a trick and with it."""
    lora, full = model_of(layers, "lora", dtype), model_of(layers, "full", dtype)
    padded, packed = rows_of(False, share), rows_of(True, share)

    def losses(model: Any, rows: Any, without: str, learns: bool = True) -> dict[str, Step]:
        return {
            without: lambda: measured(model, rows, None, learns, dtype),
            f"chunks of {CHUNK}": lambda: measured(model, rows, CHUNK, learns, dtype),
        }

    def layers_of(dropout: float) -> dict[str, Step]:
        """peft's layers and ours."""
        kinds = {"peft": False, "written out": True}
        models = {name: model_of(layers, "lora", dtype, lean, dropout) for name, lean in kinds.items()}
        return {name: functools.partial(measured, made, packed, CHUNK, True, dtype) for name, made in models.items()}

    def attending(short: int) -> tuple[Measured, dict[str, torch.Tensor]]:
        """With rows of fewer than `short` tokens in fp32."""
        attention.SHORT, kept = short, attention.SHORT
        try:
            return measured(lora, packed, CHUNK, True, dtype)
        finally:
            attention.SHORT = kept

    found = {
        "loss, padded, lora": losses(lora, padded, "all logits"),
        "loss, packed, lora": losses(lora, packed, "logits of targets"),
        "loss, packed, full": losses(full, packed, "logits of targets"),
        "loss, padded, eval": losses(lora, padded, "all logits", learns=False),
        "lora layers": layers_of(0.0),
        "lora layers, dropout": layers_of(0.05),
    }
    if dtype == torch.bfloat16:
        found["attention, packed"] = {"bf16": lambda: attending(0), "short in fp32": lambda: attending(attention.SHORT)}
    return found


def apart(without: dict[str, torch.Tensor], with_it: dict[str, torch.Tensor]) -> float:
    """Largest difference of gradients, in parts of the largest gradient."""
    largest = max((float(g.abs().max()) for g in without.values()), default=1.0)
    return max((float((g - with_it[n]).abs().max()) / largest for n, g in without.items()), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows' lengths")
    parser.add_argument("--only", default="", help="works whose name has this in it")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(f"{'work':<20} {'variant':<18} {'seconds':>8} {'grown MB':>9} {'saved MB':>9} {'loss':>9} {'apart':>9}")
    written = []
    for name, variants in tricks(asked.layers, asked.share, DTYPES[asked.dtype]).items():
        if asked.only not in name:
            continue
        found: dict[str, list[Measured]] = {variant: [] for variant in variants}
        gradients = {}
        for _ in range(asked.rounds):
            for variant, step in variants.items():
                numbers, gradients[variant] = step()
                found[variant].append(numbers)
        distance = apart(*gradients.values())
        for variant, runs in found.items():
            middle = {key: statistics.median(asdict(run)[key] for run in runs) for key in asdict(runs[0])}
            written.append({"work": name, "variant": variant, **middle, "apart": distance,
                            "runs": [asdict(run) for run in runs]})  # fmt: skip
            print(f"{name:<20} {variant:<18} {middle['seconds']:>8.2f} {middle['grown']:>9.0f} "
                  f"{middle['saved']:>9.0f} {middle['loss']:>9.5f} {distance:>9.1e}", flush=True)  # fmt: skip
        if asked.json:
            asked.json.write_text(json.dumps(written, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
