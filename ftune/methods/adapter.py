"""Bottleneck adapters: small networks inside the blocks of a frozen model.

    houlsby:   y = h + s Up f(Down h)   behind attention and behind the MLP   Houlsby et al. 2019, section 2.1,
                                                                              https://arxiv.org/abs/1902.00751
    pfeiffer:  the same behind the MLP only                                   Pfeiffer et al. 2020,
                                                                              https://arxiv.org/abs/2005.00247
    parallel:  y = h + s Up f(Down x)   beside the MLP, x what the MLP reads  He et al. 2022, table 1,
                                                                              https://arxiv.org/abs/2110.04366

The adapted model is the base model with more modules inside, so it generates, caches and recomputes as it did. The
folder has peft's layout, but peft knows no such adapter; two lines load it:

    from ftune.methods.adapter import load_adapter
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), "runs/x/model")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from ftune import targets
from ftune.errors import ArtifactError, NotMergeable, Problem, RecipeError
from ftune.layers import ADAPTER, NonLinearity, adapters, bottleneck, insert
from ftune.methods import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PEFT_TYPE = "BOTTLENECK"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before the names of weights."""
TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
"""peft's word for the head, by the end of the model's class."""


class Adapter(Method):
    """Bottlenecks in each block; the base model stays frozen."""

    name: Literal["adapter"] = "adapter"

    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Where they sit: `houlsby` behind attention and MLP, `pfeiffer` behind the MLP only, `parallel` beside the MLP."""
    reduction_factor: Annotated[int, Field(ge=1)] = 16
    """Width of the model divided by the size of the bottleneck, rounded down; >= 1. Lower learns more parameters."""
    non_linearity: NonLinearity = "relu"
    """The function between Down and Up."""
    scaling: Annotated[float, Field(gt=0)] = 1.0
    """Factor s of what an adapter adds; > 0. He et al. use 4 for `parallel`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping a value inside the bottleneck in training; 0 to below 1."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Numbers of the blocks that get adapters, from 0; null is all. A decoder's go on from where its encoder's end."""

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"causal_lm", "masked_lm", "seq2seq_lm", "sequence_classification", "token_classification"}
    )
    learns: ClassVar[str] = "bottleneck layers behind or beside the parts of each block"
    paper: ClassVar[str] = "https://arxiv.org/abs/1902.00751"
    learning_rate: ClassVar[float] = 3e-4
    learning_rate_power: ClassVar[float] = 1.2
    learning_rate_evidence: ClassVar[str] = (
        "inside the 3e-5 to 3e-3 that Houlsby et al. searched on BERT; narrower models in docs/methods.md"
    )

    @property
    def layers_named(self) -> int:
        """One more than the last block of `layers`, which count from 0."""
        return max(self.layers or [-1]) + 1

    def problems(self) -> list[tuple[str, str]]:
        """A block can be named once."""
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            return [("layers", f"names a block twice: {sorted(self.layers)}. Remove one.")]
        return []

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model`, insert the adapters, and let them and a classification head learn. Returns `model` itself.

        Raises:
            RecipeError: a block is not there, is built in a way that leaves no place, or is too narrow.
        """
        places = self._places(model)
        model.requires_grad_(False)
        self._insert(model, places)
        for parameter in _learned(model).values():
            parameter.requires_grad_(True)
        return cast("torch.nn.Module", model)

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """Every layer whose result an adapter changes; its outputs are the width of the adapter."""
        return {name: targets.shape_of(model.get_submodule(name)) for name in self._places(model)}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """2 d m + d + m for each adapter of width d and size m; a classification head comes on top."""
        sizes = [(width, self._size(width)) for width, _ in shapes.values()]
        return sum(2 * width * size + width + size for width, size in sizes)

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the adapters and a classification head in peft's layout."""
        from safetensors.torch import save_file

        base = cast("PreTrainedModel", model)
        state = {f"{PREFIX}{name}": p.detach().cpu().contiguous() for name, p in _learned(base).items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": PEFT_TYPE,
            "task_type": _task_type(base),
            "base_model_name_or_path": base.config._name_or_path,
            "inference_mode": True,
            **self.model_dump(mode="json", exclude={"name"}),
            "target_modules": sorted(adapters(base)),
            "modules_to_save": sorted(set(targets.head_modules(base))) or None,
        }
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put the adapter in `folder` onto a fresh base model; the folder's own settings count.

        Raises:
            ArtifactError: see `load_adapter`.
        """
        return cast("torch.nn.Module", load_adapter(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Refused: f stands between Down and Up, so their product is no matrix that could be added to a weight."""
        raise NotMergeable(
            "method adapter: an adapter holds a non-linear function, so it cannot be added into the base model's "
            "weights. Load it beside its base with ftune.methods.adapter.load_adapter, or train with method lora."
        )

    def _size(self, width: int) -> int:
        return width // self.reduction_factor

    def _places(self, model: PreTrainedModel) -> dict[str, str | None]:
        """The layers whose results are changed, each with the layer whose input its adapter reads, or None.

        Raises:
            RecipeError: a block is not there, is built in a way that leaves no place, or is too narrow.
        """
        try:
            blocks, width = targets.blocks(model), targets.width_of(model)
        except LookupError as error:
            raise RecipeError([_no_place(str(error))]) from error
        if not blocks:
            raise RecipeError([_no_place("it has no list of transformer blocks")])
        if not self._size(width):
            message = f"{self.reduction_factor} leaves nothing of the model's width of {width}. Choose at most {width}."
            raise RecipeError([Problem("method.reduction_factor", message)])
        if beyond := [index for index in self.layers or () if index >= len(blocks)]:
            message = f"there is no block {beyond[0]}: the model has {len(blocks)}, numbered 0 to {len(blocks) - 1}."
            raise RecipeError([Problem("method.layers", message)])
        places: dict[str, str | None] = {}
        for index, (name, block) in enumerate(blocks.items()):
            if self.layers is None or index in self.layers:
                places |= self._places_in(f"block {index} (`{name}`)", name, block, width)
        return places

    def _places_in(self, what: str, name: str, block: Any, width: int) -> dict[str, str | None]:
        try:
            parts = targets.sublayers(block, width)
        except LookupError as error:
            raise RecipeError([_no_place(f"{what}: {error}")]) from error
        chosen = parts if self.variant == "houlsby" else parts[-1:]
        if doubtful := [part for part in chosen if not part.certain]:
            message = (
                f"houlsby cannot tell for sure which layer ends the attention of {what}; `{doubtful[0].output}` might. "
                "Choose pfeiffer or parallel, which adapt the MLP only."
            )
            raise RecipeError([Problem("method.variant", message)])
        beside = self.variant == "parallel"
        return {f"{name}.{part.output}": f"{name}.{part.input}" if beside else None for part in chosen}

    def _insert(self, model: PreTrainedModel, places: Mapping[str, str | None]) -> None:
        width = targets.width_of(model)
        for output, reads in places.items():
            adapter = bottleneck(width, self._size(width), self.non_linearity, self.dropout)
            beside = None if reads is None else model.get_submodule(reads)
            insert(adapter, model.get_submodule(output), scaling=self.scaling, beside=beside)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put an adapter that ftune saved onto a fresh base model, which is changed in place and returned.

    Nothing of the result learns. A classification head is replaced by the one that was trained.

    Args:
        model: the base, with the head the adapter was trained with and as many labels.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ArtifactError: a file is missing or damaged, the base has other layers, or a weight is missing, unexpected or
            of another shape.
    """
    import torch

    folder = Path(folder)
    if adapters(model):
        raise ArtifactError(f"{folder}: the model has an adapter already. Load the base model anew.")
    method, weights, stored_targets = _read(folder)
    try:
        places = method._places(model)
    except RecipeError as error:
        message = f"{folder}: the adapter does not fit this base model: {error.problems[0].message}"
        raise ArtifactError(message) from error
    if sorted(places) != stored_targets:
        differing = sorted(set(places) ^ set(stored_targets))[:3]
        raise ArtifactError(f"{folder}: was trained on a base with other layers ({differing}). Use that base.")
    method._insert(model, places)
    wanted = _learned(model)
    _require_same(folder, wanted, weights)
    adapted = tuple(f"{name}.{ADAPTER}." for name in places)
    with torch.no_grad():
        for name, parameter in wanted.items():
            if name.startswith(adapted):
                parameter.data = weights[name].to(parameter.device)  # in the type it was saved in
            else:
                parameter.copy_(weights[name])
    return model.requires_grad_(False)


def _read(folder: Path) -> tuple[Adapter, dict[str, torch.Tensor], list[str]]:
    """Settings, weights by the model's own names, and names of the adapted layers.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["peft_type"] != PEFT_TYPE:
            raise ArtifactError(f"{folder}: is a {config['peft_type']} adapter, no bottleneck adapter of ftune.")
        method = Adapter(**{name: config[name] for name in Adapter.model_fields if name != "name"})
        adapted = sorted(map(str, config["target_modules"]))
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        message = f"{folder}: the adapter cannot be read: {error!r}. It is damaged or not of ftune."
        raise ArtifactError(message) from error
    return method, weights, adapted


def _require_same(folder: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not exactly those of the model.

    Raises:
        ArtifactError: naming the first of each kind.
    """
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name} is {list(found[name].shape)}, the model's {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if missing or unexpected or misshapen:
        raise ArtifactError(
            f"{folder}: the adapter does not fit this base model. Missing: {missing[:3] or 'none'}, unexpected: "
            f"{unexpected[:3] or 'none'}, of another shape: {misshapen[:3] or 'none'}. Use the base it was trained "
            "on, with the same head and as many labels."
        )


def _learned(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The weights of the adapters and of a classification head, by name."""
    learning = [*(f"{name}.{ADAPTER}" for name in adapters(model)), *targets.head_modules(model)]
    starts = tuple(f"{name}." for name in learning)
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(starts)}


def _task_type(model: PreTrainedModel) -> str | None:
    """What the model's head does, in peft's words; it has none for masked words."""
    for ending, word in TASK_TYPES.items():
        if type(model).__name__.endswith(ending):
            return word
    if not model.can_generate():
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _no_place(what: str) -> Problem:
    message = f"adapter finds no place in this model: {what}. Choose other blocks in method.layers, or method lora."
    return Problem("method", message)


METHOD = Adapter
