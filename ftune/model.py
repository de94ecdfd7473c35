"""Load, freeze and count models, and take their weights out. Knows transformers; knows nothing of runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftune import builtin, targets
from ftune.base import Base, explained, family_of, limit_of, load_config
from ftune.data.order import derived_seed
from ftune.errors import ArtifactError, FtuneError, Problem, RecipeError
from ftune.facts import ModelFacts
from ftune.methods import Method
from ftune.objectives import Head

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    base: Base,
    head: Head,
    dtype: torch.dtype,
    seed: int,
    *,
    method: Method | None = None,
    whole: bool = False,
) -> PreTrainedModel:
    """Weights of `base` in `dtype`, in evaluation mode, with nothing marked as learning.

    Args:
        base: which model.
        head: what it must end in; a classification head that the base lacks is drawn from the seed.
        dtype: type of all weights.
        seed: draws the head, and all weights when the base is random.
        method: may have its own way to load, and quantises before the weights are cast.
        whole: the base must bring its head too.

    Raises:
        MachineError: it is not here, cannot be had, or is not in safetensors.
        ArtifactError: some weights are missing.
    """
    import torch

    if base.kind == "builtin" or base.random:
        draw = builtin.SEED if base.kind == "builtin" else derived_seed("init", seed)
        config = with_head(load_config(base), head)
        with _drawn_from(draw):
            model = auto_class(head, config).from_config(config, dtype=torch.float32)
    else:
        config = with_head(load_config(base), head)
        keywords = {"dtype": dtype, **base._keywords(), **(method.load_options(dtype) if method else {})}
        with explained(base):
            model = _read(base.location, config, head, seed, keywords, whole, base.name)
    model.config._name_or_path = base.reference
    if method is not None:
        method.quantise(model, dtype)
    cast_weights(model, dtype)
    return cast("PreTrainedModel", model.eval().requires_grad_(False))


def with_new_head(model: PreTrainedModel, head: Head, seed: int) -> PreTrainedModel:
    """The body of `model` under another head, which is drawn from the seed.

    Raises:
        ArtifactError: the body lacks weights that the new model needs.
    """
    config = with_head(model.config, head)
    with _drawn_from(derived_seed("head", seed)):
        new = auto_class(head, config).from_config(config)
    report = new.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    fresh = tuple(f"{targets.leaf(name)}." for name in targets.head_modules(new))
    if lacking := sorted(key for key in report.missing_keys if not (fresh and key.startswith(fresh))):
        raise ArtifactError(f"model '{model.config._name_or_path}': has no weights for {lacking[:3]}.")
    new.config._name_or_path = model.config._name_or_path
    return cast("PreTrainedModel", new)


def _read(
    location: str,
    config: PreTrainedConfig,
    head: Head,
    seed: int,
    keywords: Mapping[str, Any],
    whole: bool,
    name: str,
) -> PreTrainedModel:
    """Weights of a folder or hub id; only a fresh head may be lacking, and is drawn from the seed.

    Raises:
        ArtifactError: some weights are missing: transformers would go on with random ones.
    """
    with _drawn_from(derived_seed("head", seed)):
        model, report = auto_class(head, config).from_pretrained(
            location, config=config, use_safetensors=True, output_loading_info=True, **keywords
        )
    fresh = () if whole or not head.fresh else tuple(f"{module}." for module in targets.head_modules(model))
    if lacking := sorted(key for key in report["missing_keys"] if not (fresh and key.startswith(fresh))):
        made_for = head.auto_class.removeprefix("AutoModelFor")
        raise ArtifactError(
            f"model '{name}': has no weights for {lacking[:3]}. The folder is not whole, or is no model for {made_for}."
        )
    return cast("PreTrainedModel", model)


def auto_class(head: Head, config: PreTrainedConfig) -> Any:
    """Transformers' auto class for a head.

    A multimodal model that is tuned on text keeps its own class: the class for text would drop its other tensors.
    """
    import transformers

    name = head.auto_class
    multimodal = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if name == "AutoModelForCausalLM" and type(config) in multimodal and config.get_text_config() is not config:
        name = "AutoModelForImageTextToText"
    kind = getattr(transformers, name)
    if type(config) not in kind._model_mapping:
        what = name.removeprefix("AutoModelFor")
        message = f"transformers has no {what} class for {config.model_type} models. Choose another model or objective."
        raise RecipeError([Problem("objective.name", message)])
    return kind


def with_head(config: PreTrainedConfig, head: Head) -> PreTrainedConfig:
    """The configuration with the head's labels, problem and padding written into it."""
    if not head.fresh:
        return config
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
    else:
        config.num_labels = 1
    if head.problem is not None:
        config.problem_type = head.problem
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = head.pad_id
    return config


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter a type. Buffers keep theirs: rotary tables in bf16 would put late tokens elsewhere."""
    for parameter in model.parameters():
        parameter.grad = None  # torch allows none of another type
        if parameter.is_floating_point():  # codes of quantised weights stay what they are
            parameter.data = parameter.data.to(dtype)


def look_at_model(
    base: Base, head: Head, method: Method, tokenizer: PreTrainedTokenizerBase, fingerprint: str
) -> ModelFacts:
    """Count parameters on the meta device, with the method attached, without loading a weight."""
    import torch

    config = with_head(load_config(base), head)
    try:
        with torch.device("meta"), explained(base):
            model = auto_class(head, config).from_config(config)
    except RuntimeError as error:
        if isinstance(error, FtuneError):
            raise
        message = f"model '{base.name}': its configuration describes no model: {str(error).splitlines()[0]}"
        raise ArtifactError(message) from error
    model.config._name_or_path = base.reference
    adapted = targets.table(method.target_shapes(model))
    quantised = method.quantised_parameters(model)
    attached = method.skeleton().attach(model.requires_grad_(False), tokenizer)
    total, trainable = count_parameters(attached)
    text = config.get_text_config()
    return ModelFacts(
        architecture=str(config.model_type),
        num_layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        max_positions=limit_of(config),
        stored_dtype=str(config.dtype or "float32").removeprefix("torch."),
        total_parameters=total,
        trainable_parameters=trainable,
        fingerprint=fingerprint,
        targets=tuple(adapted),
        family=family_of(config),
        quantised_parameters=quantised,
        tokenizer_bytes=_bytes_of(tokenizer),
    )


def _bytes_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """What it takes on disk; nearly nothing where it is not one of the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return 0 if backend is None else len(backend.to_str(pretty=True).encode())


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters, and those that learn; a tied weight counts once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What learns, by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ArtifactError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return cast("dict[str, torch.Tensor]", load_file(path))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}.") from error


def load_trainable(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy `state` into what learns; the names must be the same on both sides.

    Raises:
        ArtifactError: a name or a shape differs.
    """
    import torch

    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    if missing or unexpected or wrong:
        raise ArtifactError(
            f"the checkpoint does not fit the model. Missing: {missing[:3] or 'none'}, unexpected: "
            f"{unexpected[:3] or 'none'}, other shape: {wrong[:3] or 'none'}."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def frozen_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the bytes of every weight that does not learn."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draw random weights from `seed` without disturbing the generator of the run."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
