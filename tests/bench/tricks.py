"""What each trick gains in time and memory, and how exact it is, beside the same work without it.

python tests/bench/tricks.py [--layers 30] [--rounds 3] [--json FILE]

A model with random weights in the shape of SmolLM2-135M does one step, forward and backward, without and with each
trick in turn; lines show medians over rounds. `seconds` is processor time, `grown` how far resident memory rose above
what it was before the step, `saved` what autograd kept for the backward pass, without weights.
"""

from __future__ import annotations

import argparse
import ctypes
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

from ftune.attention import use_packed_attention
from ftune.data.encode import Example
from ftune.decide import LOGITS_AT_ONCE
from ftune.objectives._packed import end_to_end
from ftune.objectives.causal_lm import CausalLM

VOCABULARY = 49152
LENGTHS = (220, 180, 140, 120, 100, 80, 60, 60)
PROMPT = 0.5
"""Share of each row that is no target."""
CHUNK = LOGITS_AT_ONCE["cpu"] // VOCABULARY


@dataclass(frozen=True)
class Measured:
    """One step: processor seconds, MB, loss per target."""

    seconds: float
    grown: float
    saved: float
    loss: float


def model_of(layers: int, method: str, lean: bool = False) -> Any:
    """The model, with what learns."""
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

    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    if lean:
        settings._register_custom_module({torch.nn.Linear: lean_layer()})
    attached = get_peft_model(model, settings)
    torch.manual_seed(1)
    for name, parameter in attached.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return attached


def lean_layer() -> Any:
    """A LoRA layer whose backward pass is written out: a candidate, see docs/results.md."""
    from peft.tuners.lora import Linear

    class Update(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, a: Any, b: Any, scale: float) -> Any:
            narrow = x @ a.t()
            ctx.save_for_backward(x, narrow, weight, a, b)
            ctx.scale = scale
            out = x @ weight.t()
            out.flatten(0, 1).addmm_(narrow.flatten(0, 1), b.t(), alpha=scale)
            return out

        @staticmethod
        def backward(ctx: Any, slope: Any) -> Any:
            x, narrow, weight, a, b = ctx.saved_tensors
            flat = slope.flatten(0, 1)
            of_narrow = (flat @ b).mul_(ctx.scale)
            of_x = (flat @ weight).addmm_(of_narrow, a).view(x.shape) if ctx.needs_input_grad[0] else None
            of_b = (flat.t() @ narrow.flatten(0, 1)).mul_(ctx.scale)
            return of_x, None, of_narrow.t() @ x.flatten(0, 1), of_b, None

    class Lean(Linear):  # type: ignore[misc]
        def forward(self, x: Any, *arguments: Any, **keywords: Any) -> Any:
            name = self.active_adapters[0]
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            return Update.apply(x, self.get_base_layer().weight, a, b, self.scaling[name])  # type: ignore[no-untyped-call]

    return Lean


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


def measured(model: Any, rows: Any, chunk: int | None, learns: bool) -> tuple[Measured, dict[str, torch.Tensor]]:
    """One step and its gradients."""
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
    with torch.set_grad_enabled(learns), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums, counts = CausalLM().in_chunks(chunk).loss(model, rows)
    loss = sums.sum() / counts.sum()
    if learns:
        loss.backward()
    seconds = time.process_time() - started
    grown = resident("VmHWM") - before
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Measured(seconds, grown, sum(kept.values()) / 2**20, float(loss.detach())), gradients


Step = Callable[[], tuple[Measured, dict[str, torch.Tensor]]]


def tricks(layers: int, share: float) -> dict[str, dict[str, Step]]:
    """The same work without a trick and with it."""
    lora, full = model_of(layers, "lora"), model_of(layers, "full")
    lean = model_of(layers, "lora", lean=True)
    padded, packed = rows_of(False, share), rows_of(True, share)

    def losses(model: Any, rows: Any, without: str, learns: bool = True) -> dict[str, Step]:
        return {
            without: lambda: measured(model, rows, None, learns),
            f"chunks of {CHUNK}": lambda: measured(model, rows, CHUNK, learns),
        }

    return {
        "loss, padded, lora": losses(lora, padded, "all logits"),
        "loss, packed, lora": losses(lora, packed, "logits of targets"),
        "loss, packed, full": losses(full, packed, "logits of targets"),
        "loss, padded, eval": losses(lora, padded, "all logits", learns=False),
        "lora layers, packed": {
            "peft": lambda: measured(lora, packed, CHUNK, True),
            "written out": lambda: measured(lean, packed, CHUNK, True),
        },
    }


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
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(f"{'work':<20} {'variant':<18} {'seconds':>8} {'grown MB':>9} {'saved MB':>9} {'loss':>9} {'apart':>9}")
    written = []
    for name, variants in tricks(asked.layers, asked.share).items():
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
