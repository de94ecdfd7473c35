"""LoRA's layer with its backward pass written out: what peft's layer computes, in fewer steps; and its dropout."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ftune.methods._lora_layer import LEVELS, dropout, use_lean_layers

INPUTS, OUTPUTS = 48, 40


class Body(torch.nn.Module):
    """One linear layer, as a model of its own."""

    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=bias).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Through the layer."""
        out: torch.Tensor = self.layer(x)
        return out


def built(*, lean: bool, bias: bool = True, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A layer with an adapter whose B is not zero."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["layer"], **settings)
    if lean:
        use_lean_layers(config)
    model = get_peft_model(Body(bias, dtype), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * (1 if "magnitude" not in name else 0.1) + 0.3
    return model


def learned(model: Any, x: torch.Tensor, cast: bool = False) -> dict[str, torch.Tensor]:
    """Output and gradients, in fp32."""
    given = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        out = model(given)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    (out * weights).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: found.detach().float() for name, found in {"out": out, "x": given.grad, **grads}.items()}


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 9), (2, 3, 5)])
def test_it_is_what_peft_computes(bias: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, INPUTS)
    lean, peft = built(lean=True, bias=bias), built(lean=False, bias=bias)
    assert type(lean.base_model.model.layer) is not type(peft.base_model.model.layer)
    assert torch.equal(lean(x), peft(x))
    assert error(learned(lean, x), learned(peft, x)) < 2e-6


def test_in_bf16_it_is_no_further_from_fp32_than_peft() -> None:
    x = torch.randn(64, INPUTS).bfloat16()
    exact = learned(built(lean=False, dtype=torch.bfloat16).float(), x.float())
    lean, peft = (error(learned(built(lean=kind, dtype=torch.bfloat16), x, cast=True), exact) for kind in (True, False))
    assert lean <= 1.25 * peft
    assert peft < 0.05


def test_what_is_not_plain_lora_is_left_to_peft() -> None:
    x = torch.randn(5, INPUTS)
    for settings in ({"use_dora": True}, {"lora_bias": True}):
        lean, peft = built(lean=True, **settings), built(lean=False, **settings)
        assert error(learned(lean, x), learned(peft, x)) == 0
    lean, peft = built(lean=True), built(lean=False)
    with lean.disable_adapter(), peft.disable_adapter():
        assert torch.equal(lean(x), peft(x))
    lean.merge_adapter()
    peft.merge_adapter()
    assert torch.equal(lean(x), peft(x))
    lean, peft = built(lean=True), built(lean=False)
    seen = []
    lean.base_model.model.layer.base_layer.register_forward_hook(lambda *given: seen.append(given))
    assert torch.equal(lean(x), peft(x)) and len(seen) == 1
    lean, peft = (built(lean=kind, dtype=torch.bfloat16) for kind in (True, False))
    assert torch.equal(lean(x.bfloat16()), peft(x.bfloat16())), "without autocast, A and B compute in fp32"


def test_autograd_keeps_the_input_once_and_little_more() -> None:
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = built(lean=True, dtype=torch.bfloat16)
    x = torch.randn(512, INPUTS).bfloat16().requires_grad_()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert sum(size for place, size in kept.items() if place not in own) == 2 * 512 * (INPUTS + 4)


def test_dropout_in_the_layer() -> None:
    """Gradients are those of the function with the values that the forward pass dropped; evaluation drops none."""
    x = torch.randn(6, INPUTS)
    model = built(lean=True, lora_dropout=0.5)
    layer = model.base_model.model.layer
    torch.manual_seed(3)
    found = learned(model, x)
    torch.manual_seed(3)
    given, seen = x.clone().requires_grad_(), dropout(torch.ones_like(x), 0.5)
    a, b = (kind["default"].weight for kind in (layer.lora_A, layer.lora_B))
    expected = layer.base_layer(given) + 3 * ((given * seen) @ a.T) @ b.T
    assert torch.allclose(found["out"], expected, atol=1e-5)
    slopes = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    for name, gradient in zip(
        ("x", "lora_A", "lora_B"), torch.autograd.grad(expected, (given, a, b), slopes), strict=True
    ):
        (ours,) = [value for key, value in found.items() if key == name or name in key]
        assert torch.allclose(ours, gradient, atol=1e-4), name
    model.eval()
    assert torch.equal(model(x), built(lean=True).eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_dropout(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 503, dtype=dtype)
    out = dropout(x, share).float()
    gone = out == 0
    spread = (share * (1 - share) / gone.numel()) ** 0.5
    assert abs(float(gone.float().mean()) - share) < 5 * spread + 1 / LEVELS
    assert len(out.unique()) == 2
    assert abs(float(out.mean()) - 1) < 0.02
    for one, other in ((gone[:, 1:], gone[:, :-1]), (gone[1:], gone[:-1]), (gone[:, 4:], gone[:, :-4])):
        together = float((one & other).float().mean())
        assert abs(together - share**2) < 8 * spread, "neighbours know nothing of each other"


def test_dropout_follows_the_seed() -> None:
    x = torch.ones(100)
    torch.manual_seed(5)
    one, two = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), one) and not torch.equal(one, two)
    assert torch.equal(dropout(x, 1e-9), x)
    assert int((dropout(x, 0.999999) != 0).sum()) <= 1
