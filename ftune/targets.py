"""Which layers a method puts weights beside: linear layers of any architecture, found by kind and by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ftune.errors import Problem, suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ends_in(name: str, ending: str) -> bool:
    """Whether the dotted module `name` is `ending` or ends in `.ending`."""
    return name == ending or name.endswith(f".{ending}")


def leaf(name: str) -> str:
    """Last part of a dotted module name."""
    return name.rsplit(".", 1)[-1]


def linear_modules(model: PreTrainedModel) -> dict[str, Any]:
    """All linear layers but the output head, by name in the order of the model."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds) and module is not head}


def matching(modules: Mapping[str, Any], endings: Iterable[str] | None) -> dict[str, Any]:
    """Those modules whose name ends in one of `endings`; all of them for None."""
    wanted = None if endings is None else list(endings)
    return {name: m for name, m in modules.items() if wanted is None or any(ends_in(name, end) for end in wanted)}


def unmatched(path: str, endings: Iterable[str], among: Iterable[str], known: Iterable[str]) -> list[Problem]:
    """A problem at recipe key `path` for each ending that no name in `among` has; suggests from `known`."""
    leaves, names = {leaf(name) for name in known}, list(among)
    return [
        Problem(path, f"'{end}' matches no linear layer of this model.{suggestion(end, leaves)}")
        for end in endings
        if not any(ends_in(name, end) for name in names)
    ]


def shortest_names(model: PreTrainedModel, matched: list[str]) -> list[str]:
    """Last parts of the names where they select the same modules, else whole names; sorted, so files are stable."""
    leaves = sorted({leaf(name) for name in matched})
    selected = {name for name, _ in model.named_modules() if any(ends_in(name, end) for end in leaves)}
    return leaves if selected == set(matched) else sorted(matched)


def shape_of(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer; Conv1D stores its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    outputs, inputs = module.weight.shape
    return (inputs, outputs) if isinstance(module, Conv1D) else (outputs, inputs)


def table(shapes: Mapping[str, tuple[int, int]]) -> list[tuple[str, int, tuple[int, int]]]:
    """(last part of the name, how many modules, shape), for people to read."""
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for name, shape in shapes.items():
        counts[leaf(name), shape] = counts.get((leaf(name), shape), 0) + 1
    return [(name, count, shape) for (name, shape), count in counts.items()]
