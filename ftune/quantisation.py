"""Frozen linear layers in 4 or 8 bits: which ones, how they get there, and their way back to plain weights.

    nf4   W = table[code] * a           a: one for 64 weights     Dettmers et al. 2023, arXiv 2305.14314, section 3
    int8  W = code * scale              scale: one for an output  Dettmers et al. 2022, arXiv 2208.07339, section 3.1

Codes and constants are made by bitsandbytes and always on the CPU, from the weights as they are published. So they do
not depend on the device, the type of computation, or where the model is opened later. NF4 layers stay bitsandbytes'.
Its int8 layer rounds what flows through it as well, in evaluation on the CPU but not in training; `ftune.int8`
rounds the weights only, so that one function is trained, evaluated and merged.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftune import targets
from ftune.errors import MachineError
from ftune.int8 import int8_linear

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Kind = Literal["nf4", "int8"]
BLOCK = 64
"""Weights that share a constant in NF4; bitsandbytes' and the paper's choice."""
SECOND_BLOCK = 256
"""Constants that share a constant where they are quantised themselves."""
IN_BLOCK = r"(?:.*\.)?\d+\."
"""Layers of the numbered blocks of a model, such as `model.layers.0.mlp.up_proj`; heads and embeddings have none."""


@dataclass(frozen=True)
class Quantisation:
    """How frozen weights are kept.

    Args:
        kind: `nf4` or `int8`.
        double: NF4's constants are kept in 8 bits too.
    """

    kind: Kind
    double: bool

    @property
    def bits(self) -> float:
        """Bits for a weight with its constants: 4.127 or 4.5 for nf4.

        nf4 has a 32-bit constant for 64 weights, 32 / 64 = 0.5; with `double` 8 / 64 + 32 / (64 * 256) = 0.127. int8
        has one for each output, which adds 32 / inputs; the 0.03 of 1024 inputs is counted.
        """
        if self.kind == "int8":
            return 8 + 32 / 1024
        return 4 + (8 / BLOCK + 32 / (BLOCK * SECOND_BLOCK) if self.double else 32 / BLOCK)

    def loading(self, compute_dtype: torch.dtype) -> dict[str, Any]:
        """Keywords for `from_pretrained`, which then quantises each layer as it is read.

        Raises:
            MachineError: bitsandbytes is not installed.
        """
        bitsandbytes()
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=self.kind == "nf4",
            load_in_8bit=self.kind == "int8",
            llm_int8_skip_modules=[f"(?!{IN_BLOCK}).*"],
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=compute_dtype,
        )
        return {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": "auto"}


def bitsandbytes(what: str = "quantised weights need", instead: str = "train with method: lora") -> Any:
    """The package.

    Raises:
        MachineError: it is not installed; says `what` the package, and what to do `instead`.
    """
    try:
        import bitsandbytes as package
    except ImportError as error:
        raise MachineError(
            f"{what} the package bitsandbytes, which is not installed. "
            f"Install it with `pip install bitsandbytes`, or {instead}."
        ) from error
    return package


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """The linear layers that are kept quantised, or will be, by name in the order of the model.

    All of the numbered blocks, but those that transformers computes in fp32 (`wo` of T5). Works on the meta device.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [f"(?!{IN_BLOCK}).*", *(model._keep_in_fp32_modules or ())]
    linear = targets.linear_modules(model)
    return {name: layer for name, layer in linear.items() if should_convert_module(name, kept) and _fits(layer)}


def num_weights(model: PreTrainedModel) -> int:
    """Weights in `layers(model)`, without biases."""
    shapes = [targets.shape_of(layer) for layer in layers(model).values()]
    return sum(outputs * inputs for outputs, inputs in shapes)


def share(model: PreTrainedModel) -> float:
    """Share of the numbered blocks' weights that is in `layers(model)`: stacks of experts are no linear layers."""
    inside = sum(weight.numel() for name, weight in model.named_parameters() if re.match(IN_BLOCK, name))
    return num_weights(model) / inside if inside else 0.0


def _fits(layer: Any) -> bool:
    """Whether a layer is quantised or can be: a subclass may compute something else than W x."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return type(layer) in (torch.nn.Linear, Conv1D) or is_quantised(layer)


def is_quantised(module: Any) -> bool:
    """Whether `module` is a linear layer that holds codes; told by its weight, as bitsandbytes may not be there."""
    import torch

    if not isinstance(module, torch.nn.Linear):
        return False
    return type(module.weight).__name__ in ("Params4bit", "Int8Params") or isinstance(module, int8_linear())


def quantise(
    model: PreTrainedModel, how: Quantisation, compute_dtype: torch.dtype | None, *, keep_original: bool = False
) -> None:
    """Put quantised layers in the place of `layers(model)`, in place; layers that are quantised already stay.

    Args:
        model: with weights, in the type they were published in.
        how: kind of code.
        compute_dtype: type in which NF4 layers multiply; None takes that of their weights.
        keep_original: leave each layer's old weight [outputs, inputs] beside it, as attribute `original`.

    Raises:
        MachineError: bitsandbytes is not installed.
    """
    _forget_loader(model)
    for name, layer in quantised(model).items():
        if type(layer.weight).__name__ == "Params4bit":
            _tame(layer)
        elif type(layer.weight).__name__ == "Int8Params":
            model.set_submodule(name, _int8(layer.weight.data, layer.weight.SCB, layer))
    for name, layer in layers(model).items():
        if not is_quantised(layer):
            weight = _matrix(layer)
            made = _from_plain(layer, weight, how, compute_dtype or weight.dtype)
            made.original = weight if keep_original else None
            model.set_submodule(name, made)


def _forget_loader(model: PreTrainedModel) -> None:
    """Take transformers' marks of a quantised model away: from here on only the layers say so.

    With them, peft chooses wrappers that merge by rounding anew, and the configuration of a merged model would lie.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return
    quantiser.remove_quantization_config(model)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, mark):
            delattr(model, mark)


def _matrix(layer: Any) -> torch.Tensor:
    """Weight [outputs, inputs] of a plain layer; Conv1D stores it transposed."""
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = layer.weight.detach()
    return weight.T.contiguous() if isinstance(layer, Conv1D) else weight


def _from_plain(layer: Any, weight: torch.Tensor, how: Quantisation, compute_dtype: torch.dtype) -> Any:
    """What transformers makes of a layer while it loads, from one that is loaded."""
    import torch

    nn, home = bitsandbytes().nn, weight.device
    if how.kind == "int8":
        codes = nn.Int8Params(weight.cpu(), requires_grad=False).to("cpu")
        return _int8(codes.data.to(home), codes.SCB.to(home), layer)
    outputs, inputs = weight.shape
    with torch.device("meta"):
        made = nn.Linear4bit(
            inputs, outputs, layer.bias is not None, compute_dtype, compress_statistics=how.double, quant_type="nf4"
        )
    made.weight = nn.Params4bit(
        weight.cpu(), requires_grad=False, compress_statistics=how.double, quant_type="nf4", module=made
    ).to("cpu")
    made.bias, made.source_cls = layer.bias, type(layer)
    _tame(made)
    return made.train(layer.training).to(home)


def _tame(layer: Any) -> None:
    """Keep an NF4 layer from changing itself.

    On CPUs with AVX512-BF16 a forward pass in evaluation mode would repack the weights in place; after that, training
    computes no gradient and dequantising gives noise. In its first forward pass the layer would cast its bias in
    place. And its backward pass reads weights rounded to the state's type, its forward pass to the type of computation.
    """
    layer.support_avx512bf16_for_cpu = False
    if layer.compute_dtype is not None:
        layer.weight.quant_state.dtype = layer.compute_dtype
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)


def _int8(codes: torch.Tensor, largest: torch.Tensor, layer: Any) -> Any:
    """An `Int8Linear` from codes [outputs, inputs] and the largest weight of each output [outputs]."""
    made = int8_linear()(codes, (largest.float() / 127)[:, None], layer.bias)
    made.source_cls = getattr(layer, "source_cls", type(layer))
    return made.train(layer.training)


def weight_of(layer: Any) -> torch.Tensor:
    """Weight [outputs, inputs] of a quantised layer in fp32."""
    import torch

    if isinstance(layer, int8_linear()):
        return layer.weight.float() * layer.scale  # type: ignore[no-any-return]
    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    return bitsandbytes().functional.dequantize_4bit(layer.weight.data, state)  # type: ignore[no-any-return]


def dequantise(model: torch.nn.Module) -> list[Any]:
    """Put plain fp32 `nn.Linear` layers in the place of quantised ones, in place.

    Returns:
        Those among the new layers that were `Conv1D` in the published model.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    transposed = []
    for name, layer in quantised(model).items():
        plain = _empty_like(layer)
        plain.weight, plain.bias = torch.nn.Parameter(weight_of(layer), requires_grad=False), layer.bias
        model.set_submodule(name, plain)
        if layer.source_cls is Conv1D:
            transposed.append(plain)
    return transposed


def release(model: torch.nn.Module) -> None:
    """Let go of quantised weights: layers on the meta device, where NF4 weights cannot be moved to, stand in for them.

    For a model that is done with, before `model.to("meta")`.
    """
    for name, layer in quantised(model).items():
        model.set_submodule(name, _empty_like(layer))


def _empty_like(layer: Any) -> torch.nn.Linear:
    """A plain layer of the same shape and mode on the meta device."""
    import torch

    with torch.device("meta"):
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    return plain.requires_grad_(False).train(layer.training)


def as_conv1d(model: torch.nn.Module, linear: list[Any]) -> None:
    """Put `Conv1D` layers in the place of the layers `linear` of `model`, in place, as GPT-2 publishes them."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, layer in [(name, module) for name, module in model.named_modules() if module in linear]:
        with torch.device("meta"):
            made = Conv1D(layer.out_features, layer.in_features)
        made.weight, made.bias = torch.nn.Parameter(layer.weight.T.contiguous(), requires_grad=False), layer.bias
        model.set_submodule(name, made.train(layer.training))


def quantised(model: torch.nn.Module) -> dict[str, Any]:
    """The layers of any model that hold codes, by name."""
    return {name: module for name, module in model.named_modules() if is_quantised(module)}


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over codes and constants of all quantised layers of a base model, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name, layer in sorted(quantised(model).items()):
        digest.update(re.sub(r"\.base_layer$", "", name).encode())  # peft puts a layer into a wrapper
        for tensor in _tensors(layer):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(layer: Any) -> list[torch.Tensor]:
    """Codes and constants of a layer, and the tables they point into."""
    if isinstance(layer, int8_linear()):
        return [layer.weight.data, layer.scale]
    state = layer.weight.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [layer.weight.data, state.absmax, state.code, *nested]
