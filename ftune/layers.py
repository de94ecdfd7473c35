"""Bottleneck adapters: a narrow detour behind or beside a frozen linear layer, inserted with forward hooks.

    behind:  y = h + s Up f(Down h)     h the sub-layer's output   Houlsby et al. 2019, section 2.1
    beside:  y = h + s Up f(Down x)     x the sub-layer's input    He et al. 2022, table 1

The adapter becomes the child `adapter` of the layer whose output it changes. That layer stays what and where it was,
so the names and the kinds of all frozen weights, quantised ones included, are those of the plain model.

Tensors: D width of the model; `...` any leading dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter"
"""Name of the child that a layer with an adapter has."""
INIT_STD = 0.02
"""Standard deviation of the first Down; Up and the biases start at zero, so nothing is added at first."""
NonLinearity = Literal["relu", "gelu", "silu", "tanh"]


def bottleneck(width: int, size: int, non_linearity: NonLinearity, dropout: float) -> torch.nn.Module:
    """Up dropout(f(Down x)), from [..., width] over [..., size] to [..., width], in fp32; the weights of Up are zero.

    He et al. 2022 drop inside the bottleneck as well. The start is drawn from torch's global generator on the CPU, so
    that it is the same on every device.
    """
    import torch

    activation = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}
    down = torch.nn.Linear(width, size, device="cpu", dtype=torch.float32)
    up = torch.nn.Linear(size, width, device="cpu", dtype=torch.float32)
    torch.nn.init.normal_(down.weight, std=INIT_STD)
    for start_at_zero in (down.bias, up.weight, up.bias):
        torch.nn.init.zeros_(start_at_zero)
    return torch.nn.Sequential(
        OrderedDict[str, torch.nn.Module](
            down=down, non_linearity=activation[non_linearity](), dropout=torch.nn.Dropout(dropout), up=up
        )
    )


def insert(adapter: torch.nn.Module, output: Any, *, scaling: float, beside: Any | None) -> None:
    """Add `scaling` times what `adapter` computes to what the linear layer `output` returns.

    Args:
        adapter: a `bottleneck`; it is moved to the layer's device and mode.
        output: the layer that writes the sub-layer's result, [..., D].
        scaling: s.
        beside: the first linear layer of the sub-layer, whose input the adapter reads; None reads `output`'s result.
    """
    output.add_module(ADAPTER, adapter.to(output.weight.device).train(output.training))
    flow = _Flow(scaling)
    if beside is None:
        output.register_forward_hook(flow.add_behind)
    else:
        beside.register_forward_pre_hook(flow.take)
        output.register_forward_hook(flow.add_beside)


def adapters(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The adapters in `model`, by the name of the layer that has one; no other linear layer has children."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    children = {name: dict(module.named_children()).get(ADAPTER) for name, module in linear.items()}
    return {name: child for name, child in children.items() if child is not None}


@dataclass(eq=False)
class _Flow:
    """What the hooks of one adapter do. They are bound methods, so that a deep copy of the model gets its own.

    Args:
        scaling: s.
        inputs: what the sub-layer read, from its first to its last layer and no longer: it would keep the
            activations of the whole block alive.
    """

    scaling: float
    inputs: torch.Tensor | None = None

    def take(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        """Remember x."""
        self.inputs = arguments[0]

    def add_beside(self, module: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Read x, change h."""
        inputs, self.inputs = self.inputs, None
        if inputs is None:
            raise AssertionError("the sub-layer's last layer ran before its first")
        return self._sum(module, inputs, output)

    def add_behind(self, module: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Read h, change h."""
        return self._sum(module, output, output)

    def _sum(self, module: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        import torch

        adapter = cast("Any", module.get_submodule(ADAPTER))
        added = adapter(inputs.to(adapter.down.weight.dtype))  # frozen weights may be of another type
        return torch.add(output, added.to(output.dtype), alpha=self.scaling)
