"""LoRA beside a frozen linear layer as one function, its backward pass written out.

    y = x W' + b + u (s B)'     u = d(x) A'          d: dropout, s: scale, ' transposes
    dA = v' d(x)                v = dy (s B)
    dB = s dy' u
    dx = dy W + d'(v A)

peft computes the same by eight functions with a result each. Here what is added is added inside the products (but for y
in fp32, which is peft's to the bit), and autograd keeps x and u. What is not plain LoRA (DoRA, a merged or disabled
adapter, quantised weights) is left to peft.

Tensors: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

LEVELS = 2**16
"""A processor's dropout keeps a share of values that is a multiple of 1 / LEVELS."""


def use_lean_layers(config: PeftConfig) -> None:
    """Let peft build these layers in place of its own, where `config` is one of LoRA and targets are plain layers."""
    import torch
    from peft import LoraConfig

    if isinstance(config, LoraConfig):
        config._register_custom_module({torch.nn.Linear: _layer_for})


def _layer_for(target: torch.nn.Module, adapter_name: str, **settings: Any) -> torch.nn.Module | None:
    """The layer that replaces `target`; None leaves it to peft."""
    import torch

    made: torch.nn.Module | None = None
    if type(target) is torch.nn.Linear:
        made = _kinds()[0](target, adapter_name, **settings)
    return made


@functools.cache
def _kinds() -> tuple[Any, Any]:
    """The layer's class and the function's; made once, since torch is not imported with this file."""
    import torch
    from peft.tuners import lora

    class LeanLinear(lora.Linear):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            """[..., I] to [..., O]."""
            dtype = _plain_type(self, x)
            if dtype is None or args or kwargs:
                return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            (name,) = self.active_adapters
            base, x = self.base_layer, x.to(dtype)
            share = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
            seen = dropout(x, share) if share else None
            made: torch.Tensor = Update.apply(  # type: ignore[no-untyped-call]
                x, seen, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
            )
            return made

    class Update(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: torch.Tensor, seen: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None,
            a: torch.Tensor, b: torch.Tensor, scale: float,
        ) -> torch.Tensor:  # fmt: skip
            rows = x.reshape(-1, x.shape[-1])  # [T, I]
            inner = (rows if seen is None else seen.reshape(rows.shape)) @ a.to(x.dtype).t()  # [T, r]
            out: torch.Tensor = torch.nn.functional.linear(x, weight, bias)
            if x.dtype == torch.float32:  # as peft does, to the bit: inside the product it would be rounded r times
                out.view(-1, out.shape[-1]).add_((inner @ b.t()).mul_(scale))
            else:
                out.view(-1, out.shape[-1]).addmm_(inner, (b * scale).to(x.dtype).t())
            ctx.save_for_backward(x if seen is None else seen, inner, weight, a, b)
            ctx.scale, ctx.dropped = scale, seen is not None
            return out

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            seen, inner, weight, a, b = ctx.saved_tensors
            rows, slopes = seen.reshape(-1, seen.shape[-1]), slope.reshape(-1, slope.shape[-1])
            of_inner = slopes @ (b * ctx.scale).to(slopes.dtype)  # [T, r]
            of_a = (of_inner.t() @ rows).to(a.dtype) if ctx.needs_input_grad[4] else None
            of_b = (inner.t() @ slopes).t().to(b.dtype) * ctx.scale if ctx.needs_input_grad[5] else None
            of_x = of_seen = None
            if ctx.needs_input_grad[0]:
                of_x = slopes @ weight
                if ctx.dropped:
                    of_seen = (of_inner @ a.to(slopes.dtype)).view(seen.shape)
                else:
                    of_x.addmm_(of_inner, a.to(slopes.dtype))
                of_x = of_x.view(seen.shape)
            return of_x, of_seen, None, None, of_a, of_b, None

    return LeanLinear, Update


def _plain_type(layer: Any, x: torch.Tensor) -> torch.dtype | None:
    """The type to compute in, or None where `layer` does more than add one update, or casts on the way."""
    import torch

    base, names, device = layer.base_layer, layer.active_adapters, x.device.type
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    if names[0] in layer.lora_variant or layer.lora_bias[names[0]] or base.weight.requires_grad:
        return None
    if base._forward_hooks or base._forward_pre_hooks:
        return None
    cast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if cast else x.dtype
    learning = layer.lora_A[names[0]].weight.dtype
    return dtype if base.weight.dtype == dtype and (cast or learning == dtype) else None


def dropout(x: torch.Tensor, share: float) -> torch.Tensor:
    """`x` with a share of its values at zero and the others larger by so much that their mean stays.

    On many processors torch draws a number for each value, which takes a fifth of a step of LoRA; here four share one.
    """
    import torch

    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, share)
    level = max(1, round((1 - share) * LEVELS))
    words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.le(numbers, level - 1 - LEVELS // 2, out=torch.empty_like(numbers, dtype=x.dtype))
    return x * kept.mul_(LEVELS / level)
