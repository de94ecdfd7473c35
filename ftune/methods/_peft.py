"""What the methods built on peft share: the head that learns beside the adapter, and adapter folders.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, so anything that reads peft adapters reads it.
Reading it here is strict: a weight that is missing, too many, or of another shape is an error. peft's own reader
warns and goes on with a weight drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftune import targets
from ftune.errors import ArtifactError
from ftune.methods import _tokens
from ftune.methods._lora_layer import use_lean_layers

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name for the only adapter of a model."""
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def task_type(model: PreTrainedModel) -> str | None:
    """The word that peft has for what the model computes; None for masked language models."""
    for ending, word in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if type(model).__name__.endswith(ending):
            return word
    if not model.can_generate():
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def attach(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freeze `model`, put the adapter that `config` describes beside its layers, and let the head learn.

    `config.modules_to_save` must be `targets.head_modules(model)`. peft adds names of its own for classifiers, but not
    those of T5 and BART, whose head would silently not be saved.
    """
    from peft import get_peft_model
    from peft.utils import ModulesToSaveWrapper

    use_lean_layers(config)
    attached = get_peft_model(model, config)
    attached.peft_config[ADAPTER].base_model_name_or_path = model.config._name_or_path
    for module in attached.modules():
        if isinstance(module, ModulesToSaveWrapper):
            head = module.modules_to_save[ADAPTER].float()
            module.own_type = head.register_forward_pre_hook(_in_own_type)
    return attached


def _in_own_type(head: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The head learns in fp32 beside a body that may be kept in bf16: what it is given is cast to its type."""
    import torch

    own = next(head.parameters()).dtype
    return tuple(x.to(own) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


def weights_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """What an adapter folder holds: the adapter, rows of embeddings that learn, and the head."""
    from peft import get_peft_model_state_dict

    return cast("dict[str, torch.Tensor]", get_peft_model_state_dict(model, save_embedding_layers=False))


def save(
    model: torch.nn.Module,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter folder; `weights` and `settings` replace those of the model.

    Lists of names are sorted: peft keeps sets, whose order changes by run.
    """
    from safetensors.torch import save_file

    peft_model = cast("PeftModel", model)
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    if weights is not None:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | dict(settings or {})
    config["modules_to_save"] = sorted(targets.head_modules(peft_model.get_base_model())) or None
    for key, value in config.items():
        if key.endswith("_modules") and isinstance(value, list):
            config[key] = sorted(value)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def load(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put an adapter folder onto a fresh base, in the type it was saved in; nothing learns.

    Raises:
        ArtifactError: a weight is missing, unexpected or of another shape, or the head is not in it.
    """
    from peft import set_peft_model_state_dict

    config, weights = _read(folder)
    without = sorted(set(targets.head_modules(model)) - set(config.modules_to_save or []))
    if without:
        message = f"{folder}: does not hold the head ({', '.join(without)}) that this model needs. Train it again."
        raise ArtifactError(message)
    if rows := getattr(config, "trainable_token_indices", None):
        _tokens.make_room(model, [row for ids in rows.values() for row in ids])
    attached = attach(model, config)
    _check(folder, {name: w.shape for name, w in weights_of(attached).items()}, weights)
    learning = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    result = set_peft_model_state_dict(attached, weights)
    if lost := sorted(learning & set(result.missing_keys)) + list(result.unexpected_keys):
        raise ArtifactError(f"{folder}: peft did not find the place of {lost[:3]} in this base model.")
    return cast("PeftModel", attached.requires_grad_(False))


def _read(folder: Path) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Settings and weights of an adapter folder.

    Raises:
        ArtifactError: they are damaged, or ask for more than any adapter of ours has.
    """
    from peft import PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS)
        json.loads((folder / CONFIG).read_text(encoding="utf-8"))  # without the file peft would ask the hub for one
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        message = f"{folder}: the adapter cannot be read: {error!r}. It is damaged or not of ftune."
        raise ArtifactError(message) from error
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    if isinstance(getattr(config, "target_modules", None), str) or getattr(config, "r", 0) > largest:
        raise ArtifactError(f"{folder / CONFIG}: has a pattern for names of layers, or a rank that no weight has.")
    return config, weights


def _check(folder: Path, expected: Mapping[str, Any], found: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactError unless names and shapes are the same on both sides."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if missing or unexpected or wrong:
        raise ArtifactError(
            f"{folder}: the adapter does not fit this base model. Missing: {missing[:3] or 'none'}, unexpected: "
            f"{unexpected[:3] or 'none'}, of another shape: {wrong[:3] or 'none'}. Use the base it was trained on, "
            "with as many labels."
        )


def merge(model: torch.nn.Module) -> PreTrainedModel:
    """The base model with the adapter added into its weights and the learned head in place."""
    from peft.utils import ModulesToSaveWrapper

    peft_model = cast("PeftModel", model)
    base = peft_model.get_base_model()
    heads = {name: module for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    for name, wrapper in heads.items():  # before peft does: its IA3 fails on a head that is no single layer
        wrapper.own_type.remove()
        base.set_submodule(name, wrapper.modules_to_save[ADAPTER])
    return cast("PreTrainedModel", peft_model.merge_and_unload())
