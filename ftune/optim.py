"""Optimizer, learning rate and their state as plain tensors by parameter name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from ftune.errors import ArtifactError
from ftune.methods import Method
from ftune.plan import Plan
from ftune.quantisation import bitsandbytes

if TYPE_CHECKING:
    import torch

FACTOR = "learning_rate_factor"
"""Key of a parameter group: its learning rate as a multiple of the schedule's."""
DECAY = "decoupled_weight_decay"
"""Key of a parameter group of `sgd`: what `weight_decay` is to the others."""


EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
"""Dettmers et al. 2022, https://arxiv.org/abs/2110.02861: block-wise 8-bit codes of both moments, by bitsandbytes."""


def check_packages(optimizer: str) -> Any:
    """The package of an optimizer that is not torch's or transformers', or None.

    Raises:
        MachineError: it is not installed.
    """
    if optimizer not in EIGHT_BIT:
        return None
    return bitsandbytes(f"train.optimizer {optimizer} needs", "choose adamw or adafactor")


def build_optimizer(plan: Plan, method: Method, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The plan's optimizer over everything in `model` that learns. Vectors are not decayed."""
    import torch

    factors = method.learning_rate_factors(model)
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = plan.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((factors.get(name, 1.0), decay), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, FACTOR: factor, "weight_decay": decay, "lr": plan.learning_rate * factor}
        for (factor, decay), parameters in groups.items()
    ]
    if plan.optimizer in EIGHT_BIT:
        kind = check_packages(plan.optimizer).optim
        return cast(
            "torch.optim.Optimizer",
            (kind.PagedAdamW8bit if plan.optimizer.startswith("paged") else kind.AdamW8bit)(settings),
        )
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=plan.device != "mps")
    if plan.optimizer == "muon":
        from ftune.muon import Muon, hidden_matrices

        muon = Muon(settings, hidden_matrices(model), fused=plan.device != "mps")
        return cast("torch.optim.Optimizer", muon)
    if plan.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # torch's own scales the rate by the size of each weight and by 1/sqrt(step), and so does not obey it
        return cast(
            "torch.optim.Optimizer",
            Adafactor(settings, scale_parameter=False, relative_step=False, warmup_init=False),
        )
    for group in settings:
        group[DECAY] = group.pop("weight_decay")
    optimizer = torch.optim.SGD(settings, momentum=0.9)
    optimizer.register_step_pre_hook(_decay)  # torch's own would enter the gradient, and so the momentum
    return optimizer


def _decay(optimizer: torch.optim.Optimizer, arguments: object, options: object) -> None:
    """Shrink weights by learning rate x decay, beside the gradient (Loshchilov & Hutter 2019)."""
    import torch

    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group[DECAY])


def learning_rate(plan: Plan, step: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up over `warmup_steps`, then the schedule, 0 just after the end.

    The first step already moves: warm-up reaches the peak at step `warmup_steps - 1`.
    """
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.learning_rate
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    if plan.schedule == "linear":
        return plan.learning_rate * (1 - progress)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def optimizer_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State as tensors `{parameter name}/{key}`, on the CPU; a plain number becomes a tensor without dimensions.

    Of 8-bit states these are the codes, the scales of their blocks, and the map from codes to numbers, which the
    optimizer shares between parameters and a file may not.
    """
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": (
            value.to("cpu", copy=True) if key in _MAPS else torch.as_tensor(value).detach().cpu().contiguous()
        )
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_state` took; every learning parameter must have its state.

    Raises:
        ArtifactError: a parameter is missing or unknown.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        found.setdefault(name, {})[field] = value
    if found.keys() != parameters.keys():
        odd = sorted(found.keys() ^ parameters.keys())
        raise ArtifactError(f"the optimizer state does not fit the model: {odd[:3]} on one side only.")
    if hasattr(optimizer, "init_state"):
        _fill_eight_bit(optimizer, {parameters[name]: state for name, state in found.items()})
        return
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        for field, value in found[name].items():
            # a fresh, aligned copy on the parameter's device; step counters stay where the optimizer keeps them
            state[field] = (
                value.clone()
                if value.ndim == 0 and not _fused_on_device(optimizer)
                else value.to(parameter.device, copy=True)
            )


_MAPS = ("qmap1", "qmap2")
"""Keys of the 8-bit optimizers' maps from codes to numbers."""


def _fill_eight_bit(optimizer: Any, found: dict[torch.nn.Parameter, dict[str, torch.Tensor]]) -> None:
    """Let bitsandbytes make its state, paged where it is, and fill it.

    Raises:
        ArtifactError: a tensor is missing, unknown, or of another shape or type.
    """
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, number, position)
            state, stored = optimizer.state[parameter], found[parameter]
            tensors = {key: value for key, value in state.items() if key != "step"}
            same = stored.keys() == state.keys() and all(
                (stored[key].shape, stored[key].dtype) == (value.shape, value.dtype) for key, value in tensors.items()
            )
            if not same:
                message = f"has {sorted(stored)} where {sorted(state)} were expected, or in other shapes"
                raise ArtifactError(f"the optimizer state does not fit the model: one {message}.")
            state["step"] = int(stored["step"])
            for key, value in tensors.items():
                value.copy_(stored[key])


def _fused_on_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)
