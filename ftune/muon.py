"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the momentum of a matrix is replaced by the nearest
orthogonal one before it is applied, so that every direction of it learns at the same pace. Embeddings, output and
classification heads, vectors, prompts and experts stacked into one tensor are no such matrices. Updates are scaled to
the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4), so both obey one learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ftune.targets import head_modules, linear_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Muon:
    """torch's Muon and AdamW side by side, with one state and one list of groups, used as an optimizer is.

    Args:
        settings: parameter groups.
        matrices: ids of the parameters that Muon moves.
        fused: whether AdamW is the fused one.
    """

    def __init__(self, settings: list[dict[str, Any]], matrices: set[int], *, fused: bool) -> None:
        import torch

        chosen, others = _split(settings, matrices, True), _split(settings, matrices, False)
        self._parts: list[torch.optim.Optimizer] = []
        if chosen:
            self._parts.append(torch.optim.Muon(chosen, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(torch.optim.AdamW(others, fused=fused))
        self.state = self._parts[0].state
        for part in self._parts:
            part.state = self.state
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Move everything that has a gradient by one step."""
        for part in self._parts:
            part.step()


def _split(settings: list[dict[str, Any]], matrices: set[int], inside: bool) -> list[dict[str, Any]]:
    groups = [{**group, "params": [p for p in group["params"] if (id(p) in matrices) is inside]} for group in settings]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: torch.nn.Module) -> set[int]:
    """Ids of the weights of linear layers that are neither the output head nor in a classification head."""
    whole = cast("PreTrainedModel", model)
    heads = {id(p) for name in head_modules(whole) for p in model.get_submodule(name).parameters()}
    linear = {id(module.weight) for module in linear_modules(whole).values() if module.weight.ndim == 2}
    return linear - heads
