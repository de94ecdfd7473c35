"""Where A and B of LoRA start: from a split of the weights, or from the directions of the layers' inputs.

    PiSSA  W0 = U S V^T,  B0 = U_r sqrt(S_r / s),  A0 = sqrt(S_r / s) V_r^T    Meng et al. 2024, arXiv 2404.02948
    OLoRA  W0 = Q R,      B0 = Q_r,                A0 = R_r                    Buyukakyuz 2024, arXiv 2406.01775
    EVA    B0 = 0, A0 the top r right singular vectors of the layer's inputs   Paischer et al. 2024, arXiv 2410.07170

r is the rank and s the scale of the update. PiSSA and OLoRA put W0 - s B0 A0 in the place of W0, so the function is
unchanged; their artefact is the difference to the start, plain LoRA of twice the rank over the original weights:

    W0 - s B0 A0 + s B A = W0 + s [B, -B0] [A; A0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ftune.errors import Problem, RecipeError
from ftune.methods._peft import ADAPTER

if TYPE_CHECKING:
    import torch

    Batch = dict[str, torch.Tensor]

CONVERGED = 0.99
"""EVA stops reading when each direction has this cosine to itself a batch before (the paper's tau)."""


def lora_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The LoRA layers of peft, all around linear layers, quantised or not, by name in the order of the model."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def split_weights(model: torch.nn.Module, init: str) -> None:
    """Move a part of each W0 into B A, by `pissa` or `olora`, and remember it as the start.

    Where the rank exceeds the smaller side of W0, the directions that are left over start as plain LoRA's: B = 0.
    """
    import torch

    for _, layer in lora_layers(model):
        a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
        stored = layer.get_base_layer().weight
        weight = (stored.T if layer.fan_in_fan_out else stored).detach().float()  # [outputs, inputs]
        left, right = _top(weight, a.shape[0], scale, init)
        with torch.no_grad():
            b.zero_()
            b[:, : left.shape[1]] = left
            a[: right.shape[0]] = right
            rest = weight.double() - scale * (left.double() @ right.double())  # rounded once, where it is stored
            stored.copy_(rest.T if layer.fan_in_fan_out else rest)
        layer.register_buffer("start_A", a.detach().clone(), persistent=False)
        layer.register_buffer("start_B", b.detach().clone(), persistent=False)


def _top(weight: torch.Tensor, rank: int, scale: float, init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B0 [outputs, <= rank] and A0 [<= rank, inputs]."""
    import torch

    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return q[:, :rank], r[:rank]
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def against_original_base(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the adapter folder after `split_weights`: [A; A0] and [B, -B0]."""
    import torch

    converted = dict(state)
    for name, layer in lora_layers(model):
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        converted[a] = torch.cat([state[a].cpu(), layer.start_A.cpu()], dim=0).contiguous()
        converted[b] = torch.cat([state[b].cpu(), -layer.start_B.cpu()], dim=1).contiguous()
    return converted


def as_plain_lora(config: Any, *, rslora: bool) -> dict[str, Any]:
    """Settings of the adapter folder after `split_weights`: every rank doubled, and the scale what it was."""
    factor = math.sqrt(2) if rslora else 2
    return {
        "r": 2 * config.r,
        "lora_alpha": factor * config.lora_alpha,
        "rank_pattern": {key: 2 * rank for key, rank in config.rank_pattern.items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in config.alpha_pattern.items()},
    }


def follow_inputs(
    model: torch.nn.Module, batches: Iterable[Batch], run: Callable[[torch.nn.Module, Batch], object]
) -> None:
    """EVA with equal ranks: the rows of A become the directions in which the layer's inputs vary most.

    Reads batches until every direction has settled. Positions that `attention_mask` [B, T] leaves out do not count.

    Raises:
        RecipeError: no batch has twice as many tokens as the rank.
    """
    import torch

    watched = {name: _Directions(layer) for name, layer in lora_layers(model)}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                for directions in watched.values():
                    directions.mask = batch.get("attention_mask")
                run(model, batch)
                if all(directions.settled for directions in watched.values()):
                    break
    finally:
        model.train(training)
        for directions in watched.values():
            directions.handle.remove()
    if short := [name for name, directions in watched.items() if directions.components is None]:
        message = f"eva needs a batch with twice as many tokens as the rank, and {short[0]} saw none. Lower the rank."
        raise RecipeError([Problem("method.init", message)])
    with torch.no_grad():
        for name, layer in lora_layers(model):
            found = watched[name].components
            layer.lora_A[ADAPTER].weight[: len(found)] = found


class _Directions:
    """Principal directions of what one layer is given, batch after batch."""

    def __init__(self, layer: Any) -> None:
        from peft.utils.incremental_pca import IncrementalPCA

        self.count = min(layer.r[ADAPTER], layer.in_features)
        self.sketch = min(2 * self.count, layer.in_features)
        self.pca = IncrementalPCA(self.count, lowrank=True, lowrank_q=self.sketch, lowrank_seed=0)
        self.mask: torch.Tensor | None = None
        self.components: Any = None
        self.settled = False
        self.handle = layer.register_forward_pre_hook(self.see)

    def see(self, layer: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        """Update the directions; inputs[0] is [B, T, D]."""
        import torch

        states, mask = inputs[0], self.mask
        if mask is not None and states.shape[:2] == mask.shape:
            states = states[mask.bool()]
        rows = states.reshape(-1, states.shape[-1]).float()  # [tokens, D]
        if self.settled or len(rows) < self.sketch:
            return
        before = self.components
        self.pca.partial_fit(rows)
        self.components = self.pca.components_.clone()
        if before is not None:
            cosine = torch.nn.functional.cosine_similarity(self.components, before)
            self.settled = bool((cosine >= CONVERGED).all())
