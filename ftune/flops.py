"""Floating-point operations that a training step needs, from the shapes of a model and of its rows.

    a linear layer, W weights     2 W forward, 2 W for the gradient of its input where something before it learns,
                                  2 W for that of its weights where these learn; a token   (Kaplan et al. 2020)
    attention, width D            4 n m D forward and twice that backward, n queries on m keys (Chowdhery et al. 2022)

What is counted is what the mathematics needs: no pads, no activation that is computed twice, logits only where there is
a target. Elementwise work is left out, as everywhere; a causal mask does not halve attention, so that numbers compare
with those others publish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftune import targets
from ftune.data.encode import Example
from ftune.data.order import Window
from ftune.objectives import Encoding
from ftune.virtual import soft_prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Per = Literal["token", "answer", "target", "row"]
_CROSS = re.compile(r"(EncDecAttention|encoder_attn|cross_?attn|crossattention)\b.*\.(k|v|k_proj|v_proj|key|value)\b")
"""Layers of a decoder that read the encoder's tokens."""


@dataclass(frozen=True)
class Attention:
    """One kind of attention layer.

    Args:
        queries, keys: which tokens ask, and which are asked.
        flops: for each pair of a query and a key, forward and backward, over all layers of the kind.
        window: keys that a query sees at most; None sees all.
    """

    queries: Per
    keys: Per
    flops: float
    window: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one step costs, by what there is of it.

    Args:
        per: operations for each token, each token of an answer, each target and each row.
        attention: the layers that compare tokens with tokens.
        virtual: tokens that a soft prompt adds to each row.
    """

    per: dict[Per, float]
    attention: tuple[Attention, ...]
    virtual: int = 0

    def of(self, work: Window) -> float:
        """Operations of all micro-batches of a window, over all ranks."""
        return sum(self._of_example(example) for batch in work.micro_batches for example in batch)

    def _of_example(self, example: Example) -> float:
        tokens = len(example.ids) + self.virtual
        if example.features is not None:
            tokens = len(example.features) if example.features.ndim > 1 else 1
        counts: dict[Per, int] = {
            "token": tokens,
            "answer": tokens if example.answer is None else len(example.answer),
            "target": example.num_targets,
            "row": 1,
        }
        total = sum(flops * counts[per] for per, flops in self.per.items())
        for layer in self.attention:
            keys = counts[layer.keys]
            total += layer.flops * counts[layer.queries] * (keys if layer.window is None else min(keys, layer.window))
        return total


def cost_of(model: torch.nn.Module, encoding: Encoding, frozen_body: torch.nn.Module | None = None) -> Cost:
    """What a step of `model` costs.

    Args:
        model: with the method attached; `requires_grad` says what learns.
        encoding: of the objective: heads of labels of rows see one vector a row.
        frozen_body: part of `model` that is not run in steps.
    """
    from transformers import PreTrainedModel

    part = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    idle = set() if frozen_body is None else set(frozen_body.modules())
    if part is None or part in idle:
        return Cost(_linear(model, {}, idle, learns_before=False)[0], ())
    prompt = soft_prompt(model)
    roles = _roles(part, encoding)
    idle |= _not_for_text(part)
    per, share = _linear(model, roles, idle, learns_before=prompt is not None)
    attention = tuple(_attention(part, 1 + 2 * share))
    return Cost(per, attention, 0 if prompt is None else len(prompt))


def _linear(
    model: torch.nn.Module, roles: dict[Any, Per], idle: set[Any], *, learns_before: bool
) -> tuple[dict[Per, float], float]:
    """Operations of all matrices, and the share of the forward ones through which a gradient goes back.

    Layers are taken to compute in the order in which they are registered.
    """
    per: dict[Per, float] = {"token": 0.0, "answer": 0.0, "target": 0.0, "row": 0.0}
    forward = through = 0.0
    for name, module in model.named_modules():
        if module in idle:
            continue
        own = list(module.parameters(recurse=False))
        role: Per = "token" if _CROSS.search(name) else roles.get(module, "token")
        for weights, learns in _matrices(module, model):
            per[role] += 2 * weights * (1 + learns_before + learns)
            forward += weights
            through += weights * learns_before
        learns_before = learns_before or any(parameter.requires_grad for parameter in own)
    return per, through / max(forward, 1.0)


def _matrices(module: torch.nn.Module, model: torch.nn.Module) -> Iterator[tuple[float, bool]]:
    """How many weights of `module` each token meets in a product, and whether they learn; of experts, the chosen."""
    import torch
    from transformers.pytorch_utils import Conv1D

    known: Any = module
    if isinstance(module, torch.nn.Linear):  # also where codes stand for the weights, in another shape
        yield known.in_features * known.out_features, bool(known.weight.requires_grad)
    elif isinstance(module, Conv1D):
        yield known.weight.numel(), bool(known.weight.requires_grad)
    elif not isinstance(module, torch.nn.Embedding):
        stacked = [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]
        if stacked and (config := getattr(model, "config", None)) is not None:
            text = config.get_text_config()
            chosen = getattr(text, "num_experts_per_tok", None) or 1
            yield from ((weight[0].numel() * min(chosen, len(weight)), weight.requires_grad) for weight in stacked)


def _roles(part: PreTrainedModel, encoding: Encoding) -> dict[Any, Per]:
    """What each module is run for, where that is not each token of the text."""
    roles: dict[Any, Per] = {}
    if part.config.is_encoder_decoder:
        encoder = set(part.get_encoder().modules())
        roles = {module: "answer" for module in part.modules() if module not in encoder}
    for name in targets.head_modules(part):
        each: Per = "row" if encoding == "row_labels" else "token"
        roles |= dict.fromkeys(part.get_submodule(name).modules(), each)
    head = part.get_output_embeddings()
    return roles if head is None else roles | dict.fromkeys(head.modules(), "target")


def _not_for_text(part: PreTrainedModel) -> set[Any]:
    """The towers of a multimodal model for what is not text."""
    config = part.config
    if config.is_encoder_decoder or config.get_text_config() is config:
        return set()
    used = set(part.get_decoder().modules())
    head = part.get_output_embeddings()
    used |= set() if head is None else set(head.modules())
    return {module for module in part.modules() if module not in used and not used & set(module.modules())}


def _attention(part: PreTrainedModel, passes: float) -> Iterator[Attention]:
    """The attention layers of a model; layers that do not compare tokens with tokens have none.

    Args:
        part: the model.
        passes: 1 for the forward pass, and 2 for the backward one where there is one.
    """
    text: Any = part.config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // heads
    pair = 4.0 * heads * size * passes
    if part.config.is_encoder_decoder:
        decoder = getattr(text, "decoder_layers", None) or text.num_decoder_layers
        yield Attention("token", "token", pair * text.num_hidden_layers)
        yield Attention("answer", "answer", pair * decoder)
        yield Attention("answer", "token", pair * decoder)
        return
    window = getattr(text, "sliding_window", None)
    usual = "full_attention" if window is None or not getattr(text, "use_sliding_window", True) else "sliding_attention"
    kinds = getattr(text, "layer_types", None) or [usual] * text.num_hidden_layers
    if full := sum(kind == "full_attention" for kind in kinds):
        yield Attention("token", "token", pair * full)
    if sliding := sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds):
        yield Attention("token", "token", pair * sliding, window)


PEAKS = {
    "B200": 2250e12, "H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H800": 989.4e12,
    "GH200": 989.4e12, "A100": 312e12, "A800": 312e12, "A40": 149.7e12, "A30": 165e12, "A10": 125e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "RTX 6000 Ada": 364.2e12, "RTX A6000": 154.8e12, "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Operations per second of dense bf16 products with fp32 sums, without sparsity, from the makers' data sheets."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Most operations per second of a device, or None where it is not known: processors, cards that are not listed,
    and computation in fp32, which runs on other circuits.

    Args:
        device_name: as the driver gives it, such as `NVIDIA H100 80GB HBM3`.
        precision: type of computation.
    """
    if precision == "fp32":
        return None
    words = f" {re.sub(r'[-_]', ' ', device_name)} "
    fitting = [name for name in PEAKS if f" {name} ".lower() in words.lower()]
    return PEAKS[max(fitting, key=len)] if fitting else None


def readable_flops(flops_per_second: float) -> str:
    """`1.23 TFLOP/s`."""
    unit, factor = ("TFLOP/s", 1e12) if flops_per_second >= 1e12 else ("GFLOP/s", 1e9)
    return f"{flops_per_second / factor:,.2f} {unit}"
