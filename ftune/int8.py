"""A linear layer whose frozen weight is kept in int8: one code for each weight, one scale for each output.

    y = (code * scale) x + bias     Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 3.1, weights only

`...` stands for any leading dimensions of a tensor.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@cache
def int8_linear() -> Any:
    """The class, made when it is first asked for, as torch is not imported before."""
    import torch

    class Product(torch.autograd.Function):
        """x W^T. W is made anew in the backward pass: keeping it would undo what the codes save."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(codes, scale)
            return torch.nn.functional.linear(x, codes.to(x.dtype).mul_(scale))

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            codes, scale = ctx.saved_tensors
            return gradient @ codes.to(gradient.dtype).mul_(scale), None, None

    class Int8Linear(torch.nn.Linear):
        """`weight` holds the codes [outputs, inputs]; `scale` is [outputs, 1] in fp32."""

        scale: torch.Tensor

        def __init__(self, codes: torch.Tensor, scale: torch.Tensor, bias: torch.nn.Parameter | None) -> None:
            outputs, inputs = codes.shape
            super().__init__(inputs, outputs, bias=False, device="meta")
            self.weight = torch.nn.Parameter(codes, requires_grad=False)
            self.register_buffer("scale", scale)
            self.register_parameter("bias", bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """[..., inputs] to [..., outputs], in the type that autocast asks for, else in that of `x`."""
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            product: torch.Tensor = Product.apply(x.to(dtype), self.weight, self.scale)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias.to(dtype)

    return Int8Linear
