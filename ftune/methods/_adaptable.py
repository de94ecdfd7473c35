"""Which linear layers of a model may get weights beside them, for every architecture, found by structure.

Not the output head, nor a classification head, whose modules learn whole. In mixtures of experts not the routers: what
they learn can starve experts. The experts themselves are stacks of matrices in one parameter, no linear layers. In
models that read images or sound as well, the language model only: rows of text do not reach the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ftune import targets
from ftune.errors import Problem, suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """Linear layers that may be adapted, by name in the order of the model."""
    linear = targets.linear_modules(model)
    reasons = _reasons(model, linear)
    return {name: module for name, module in linear.items() if name not in reasons}


def lora_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Those of `layers` that peft's LoRA leaves what they are."""
    found = layers(model)
    taken = _taken_for_experts(model, found)
    return {name: module for name, module in found.items() if targets.leaf(name) not in taken}


def unmatched(path: str, endings: Iterable[str], adaptable: Mapping[str, Any], model: PreTrainedModel) -> list[Problem]:
    """A problem at recipe key `path` for each ending that no layer in `adaptable` has, with the reason."""
    linear = targets.linear_modules(model)
    reasons = _reasons(model, linear)
    stacks = _stacks(model)
    problems = []
    for end in endings:
        if any(targets.ends_in(name, end) for name in adaptable):
            continue
        named = [name for name in linear if targets.ends_in(name, end)]
        if named and named[0] in reasons:
            message = f"'{end}' {reasons[named[0]]}. Remove it."
        elif named:
            message = f"'{end}' is a name that peft (0.21) takes for the experts of this model. Remove it."
        elif any(targets.ends_in(f"{name}.{own}", end) for name, names in stacks.items() for own in names):
            message = f"'{end}' is a stack of experts, which stays frozen. Remove it."
        else:
            known = {targets.leaf(name) for name in adaptable}
            message = f"'{end}' matches no linear layer of this model.{suggestion(end, known)}"
        problems.append(Problem(path, message))
    return problems


def _reasons(model: PreTrainedModel, linear: Mapping[str, Any]) -> dict[str, str]:
    """Why layers may not be adapted, by name."""
    reasons: dict[str, str] = {}
    for head in targets.head_modules(model):
        reasons |= {name: "is part of the head, which learns whole already" for name in linear if _under(name, head)}
    if not model.config.is_encoder_decoder and model.config.get_text_config() is not model.config:
        language = model.get_decoder()
        inside = {id(module) for module in language.modules()}
        elsewhere = [name for name, module in linear.items() if id(module) not in inside and name not in reasons]
        reasons |= dict.fromkeys(elsewhere, "is outside of the language model, which alone learns from text")
    return reasons | dict.fromkeys(_routers(model, linear), "routes to experts and stays frozen")


def _under(name: str, module: str) -> bool:
    return name == module or module == "" or name.startswith(f"{module}.")


def _stacks(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """Modules that hold several matrices in one parameter: its own name and how many, by name of the module."""
    from torch.nn.modules.conv import _ConvNd

    found = {}
    for name, module in model.named_modules():
        stacked = {own: p.shape[0] for own, p in module.named_parameters(recurse=False) if p.dim() == 3}
        if stacked and not isinstance(module, _ConvNd) and max(stacked.values()) > 1:
            found[name] = stacked
    return found


def _routers(model: PreTrainedModel, linear: Mapping[str, Any]) -> list[str]:
    """Layers that weigh experts: beside a stack of experts, alone in their part, one output for each expert or one."""
    stacks = {name: max(sizes.values()) for name, sizes in _stacks(model).items()}
    found = []
    for name, module in linear.items() if stacks else ():
        parts = name.split(".")
        for depth in reversed(range(len(parts))):
            around, own = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
            sizes = {size for stack, size in stacks.items() if _under(stack, around) and not _under(stack, own)}
            if not sizes:
                continue
            alone = sum(_under(other, own) for other in linear) == 1
            if alone and targets.shape_of(module)[0] in sizes | {1}:
                found.append(name)
            break
    return found


def _taken_for_experts(model: PreTrainedModel, found: Iterable[str]) -> set[str]:
    """Last parts of names that peft's LoRA (0.21) moves from `target_modules` to the experts of some architectures.

    It means adapters from before transformers 5, where experts were linear layers; shared experts and dense layers
    that still are linear have the same names.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for leaf in {targets.leaf(name) for name in found}:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:
            taken.add(leaf)
        else:
            taken |= {leaf} - set(config.target_modules or [])
    return taken
