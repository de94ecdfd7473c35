"""Which layers a method puts weights beside: linear layers of any architecture, found by kind and by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules of a classification head, which is new and always learns; none for language models.

    They stand outside the body, besides a pooler, which only the head uses and which many checkpoints lack.
    """
    if model.get_output_embeddings() is not None:
        return []
    body = model.base_model
    outside = (
        []
        if body is model
        else [
            name
            for name, child in model.named_children()
            if child is not body and any(True for _ in child.parameters())
        ]
    )
    pooler = next((name for name, _ in model.named_modules() if leaf(name) == "pooler"), None)
    return outside if pooler is None or pooler in outside else [*outside, pooler]


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
    """(outputs, inputs) of a linear layer, as it states them: a quantised weight has another shape."""
    from transformers.pytorch_utils import Conv1D

    return (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)


def table(shapes: Mapping[str, tuple[int, int]]) -> list[tuple[str, int, tuple[int, int]]]:
    """(last part of the name, how many modules, shape), for people to read."""
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for name, shape in shapes.items():
        counts[leaf(name), shape] = counts.get((leaf(name), shape), 0) + 1
    return [(name, count, shape) for (name, shape), count in counts.items()]


class Sublayer(NamedTuple):
    """An attention, another mixer or the MLP of a block.

    Args:
        input: name, from the block, of the linear layer that comes first.
        output: of the one whose result is the sub-layer's.
        certain: whether the shapes leave no doubt which one that is.
    """

    input: str
    output: str
    certain: bool


def width_of(model: PreTrainedModel) -> int:
    """Width of the residual stream, which every block reads and writes.

    Raises:
        LookupError: the configuration does not say.
    """
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    if width is None:
        raise LookupError(f"the configuration of a {model.config.model_type} names no width (hidden_size)")
    return int(width)


def blocks(model: PreTrainedModel) -> dict[str, Any]:
    """The transformer blocks by name, in the order of the model; an encoder's come before its decoder's.

    They are the elements of the outermost `ModuleList`s, or of a list right inside that holds whole blocks (ALBERT).
    A block that runs several times is there once. In models that read images or sound as well, only the language
    model counts, which alone learns from text.
    """
    import torch

    width, found = width_of(model), dict[str, Any]()
    mixed = not model.config.is_encoder_decoder and model.config.get_text_config() is not model.config
    language = {id(module) for module in (model.get_decoder() if mixed else model).modules()}
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and id(module) in language
        if all(len(_linear_in(element)) > 1 for element in module)
    }
    for outer in [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]:
        inside = [name for name in lists if name.startswith(f"{outer}.")]
        for chosen in [name for name in inside if all(_is_whole(m, width) for m in lists[name])] or [outer]:
            found |= {f"{chosen}.{index}": block for index, block in enumerate(lists[chosen])}
    return found


def sublayers(block: Any, width: int) -> list[Sublayer]:
    """The sub-layers of a block in its order, but the MLP last; those before are attention and other mixers.

    The linear layers are grouped by child of the block, or by element of a list that is a child (T5). A group that
    writes the model's `width` is a sub-layer, and the last of its layers that does is its output. The MLP is the one
    whose output reads most; it begins with its group, or with the groups of one layer right before (BERT and BART
    keep its layers in two children). A mixer has at least two layers.

    Raises:
        LookupError: the block is built otherwise; the message says how.
    """
    if odd := _other_weights(block):
        raise LookupError(f"`{odd}` holds the weights of several layers in one place, as the experts of a mixture do")
    groups = [group for name, child in _children(block) if (group := list(_linear_in(child, name).items()))]
    outputs = {i: linear for i, group in enumerate(groups) for linear in group if shape_of(linear[1])[0] == width}
    mlp = max(outputs, key=lambda i: (shape_of(outputs[i][1])[1], i), default=0)
    mixers = [i for i in outputs if i != mlp and len(groups[i]) > 1]
    if not mixers or shape_of(outputs[mlp][1])[1] < width:
        raise LookupError(f"no attention and MLP were found that each end in a linear layer with {width} outputs")
    begin = mlp
    while begin and len(groups[mlp]) == len(groups[begin - 1]) == 1:
        begin -= 1
    if shape_of(groups[begin][0][1])[1] != width:
        raise LookupError(f"`{groups[begin][0][0]}`, where its MLP begins, does not read the model's width of {width}")
    attention = [Sublayer(groups[i][0][0], outputs[i][0], _is_certain(block, outputs[i][0], width)) for i in mixers]
    return [*attention, Sublayer(groups[begin][0][0], outputs[mlp][0], certain=True)]


def _is_certain(block: Any, output: str, width: int) -> bool:
    """Whether `output` ends a mixer for sure.

    Beside queries, keys, values and output there may be a gate of the output's shape; and the fast kernels of
    state-space mixers, which hold a convolution, never call the output layer.
    """
    from torch.nn.modules.conv import _ConvNd

    siblings = list(block.get_submodule(output.rpartition(".")[0]).children())
    linear = [module for module in siblings if _is_linear(module)]
    writers = [module for module in linear if shape_of(module)[0] == width]
    return (len(writers) == 1 or len(linear) <= 4) and not any(isinstance(module, _ConvNd) for module in siblings)


def _is_whole(block: Any, width: int) -> bool:
    try:
        return bool(sublayers(block, width))
    except LookupError:
        return False


def _children(block: Any) -> Iterator[tuple[str, Any]]:
    """The children of a block; elements in place of a list."""
    import torch

    for name, child in block.named_children():
        if isinstance(child, torch.nn.ModuleList):
            yield from ((f"{name}.{index}", element) for index, element in enumerate(child))
        else:
            yield name, child


def _linear_in(module: Any, prefix: str = "") -> dict[str, Any]:
    """The linear layers of a module, itself included, by name; not those that a method put inside of one."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules(prefix=prefix):
        if _is_linear(child) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = child
    return found


def _is_linear(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D))


def _other_weights(block: Any) -> str | None:
    """Name of a part of the block that is several layers in one: stacked matrices, or alternatives in a list."""
    import torch
    from torch.nn.modules.conv import _ConvNd

    for prefix, child in _children(block):
        for name, module in child.named_modules(prefix=prefix):
            alternatives = isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)) and _linear_in(module)
            stacked = any(p.dim() > 2 for p in module.parameters(recurse=False)) and not isinstance(module, _ConvNd)
            if alternatives or stacked:
                return str(name)
    return None
