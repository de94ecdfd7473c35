"""What the methods with virtual tokens share: the head, and the folder they write.

The folder is peft's: `adapter_config.json` and `adapter_model.safetensors` with `prompt_embeddings` and the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune import targets
from ftune.errors import ArtifactError
from ftune.methods import _peft

if TYPE_CHECKING:
    import torch
    from peft import PromptLearningConfig
    from transformers import PreTrainedModel

EMBEDDINGS = "prompt_embeddings"
"""peft's name for what learns."""
BASE = "base_model."
"""What peft writes before the name of a weight of the head."""


def freeze_all_but_head(model: PreTrainedModel) -> None:
    """Let a classification head learn, in fp32, and nothing else; what it is given is cast to its type."""
    model.requires_grad_(False)
    for name in targets.head_modules(model):
        head = model.get_submodule(name)
        head.float().requires_grad_(True)
        head.register_forward_pre_hook(_in_own_type)


def _in_own_type(head: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    own = next(head.parameters()).dtype
    return tuple(x.to(own) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


def head_weights(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Weights of the head, by name; none for language models."""
    heads = targets.head_modules(model)
    return {name: p for name, p in model.named_parameters() if any(name.startswith(f"{head}.") for head in heads)}


def peft_settings(model: PreTrainedModel, length: int) -> dict[str, Any]:
    """What every `adapter_config.json` of a method with virtual tokens says."""
    text = model.config.get_text_config()
    return {
        "base_model_name_or_path": model.config._name_or_path,
        "task_type": _peft.task_type(model),
        "inference_mode": True,
        "num_virtual_tokens": length,
        "num_layers": int(text.num_hidden_layers),
        "num_transformer_submodules": 1,
        "modules_to_save": sorted(targets.leaf(name) for name in targets.head_modules(model)) or None,
    }


def text_problems(init: str, init_text: str | None) -> list[tuple[str, str]]:
    """Contradictions between the two, as (field, message)."""
    if init == "text" and init_text is None:
        return [("init_text", "is missing. init: text starts from these words; describe the task in a few.")]
    if init != "text" and init_text is not None:
        return [("init_text", f"has no effect with init: {init}. Set init: text, or remove it.")]
    return []


def save(model: PreTrainedModel, folder: Path, config: PromptLearningConfig, embeddings: torch.Tensor) -> None:
    """Write a folder that peft reads."""
    config.save_pretrained(str(folder))
    head = {f"{BASE}{name}": weight for name, weight in head_weights(model).items()}
    write(folder / _peft.WEIGHTS, {EMBEDDINGS: embeddings, **head}, {"format": "pt"})


def write(path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, each with memory of its own."""
    from safetensors.torch import save_file

    own = {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
    save_file(own, path, metadata=dict(metadata))


def read(path: Path, expected: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read tensors whose names must be `expected`.

    Raises:
        ArtifactError: the file cannot be read, or a weight is missing or unexpected.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}. Train it again.") from error
    names = set(expected)
    missing, unexpected = sorted(names - weights.keys()), sorted(weights.keys() - names)
    if missing or unexpected:
        raise ArtifactError(
            f"{path}: does not fit this base model. Missing: {missing[:3] or 'none'}, unexpected: "
            f"{unexpected[:3] or 'none'}. Use the base it was trained on, with the same kind of head."
        )
    return weights


def read_peft(model: PreTrainedModel, path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What learned, and the head by name, from the weights of a folder that `save` wrote.

    Raises:
        ArtifactError: the file cannot be read, or a weight is missing or unexpected.
    """
    names = list(head_weights(model))
    weights = read(path, [EMBEDDINGS, *(f"{BASE}{name}" for name in names)])
    if weights[EMBEDDINGS].dim() != 2:
        raise ArtifactError(f"{path}: {EMBEDDINGS} has {weights[EMBEDDINGS].dim()} dimensions, not 2. Train it again.")
    return weights[EMBEDDINGS], {name: weights[f"{BASE}{name}"] for name in names}


def put_head(model: PreTrainedModel, path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the head of an artefact, with names as `head_weights` has them, into `model`.

    Raises:
        ArtifactError: a shape differs.
    """
    for name, parameter in head_weights(model).items():
        check_shape(path, name, weights[name], tuple(parameter.shape))
        parameter.data.copy_(weights[name])


def check_shape(path: Path, name: str, weight: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise ArtifactError unless `weight` has `shape`."""
    if tuple(weight.shape) != shape:
        raise ArtifactError(
            f"{path}: {name} is {tuple(weight.shape)}, not {shape}. Use the base it was trained on, with as many "
            "labels."
        )
