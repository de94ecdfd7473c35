"""Find, load, freeze, count and fingerprint models. Knows transformers; knows nothing of runs."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ftune import builtin, targets
from ftune.data.order import derived_seed
from ftune.errors import ArtifactError, MachineError, Problem, RecipeError
from ftune.facts import ModelFacts
from ftune.methods import Method
from ftune.objectives import Head
from ftune.recipe import Model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """A base model that was found.

    Args:
        name: as the user wrote it.
        kind: where it comes from.
        location: folder, hub id or builtin family.
        revision: commit of a hub model, resolved.
        trust_remote_code: whether its own code may run.
        random: weights are drawn from the seed instead of loaded.
    """

    name: str
    kind: Literal["builtin", "folder", "hub"]
    location: str
    revision: str | None = None
    trust_remote_code: bool = False
    random: bool = False

    @property
    def reference(self) -> str:
        """What an adapter's configuration names as its base: an absolute folder, a hub id or builtin:NAME."""
        return self.name if self.kind == "builtin" else self.location

    def _keywords(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def find_base(model: Model, folder: Path) -> Base:
    """Resolve `model:` of a recipe; folders are relative to the recipe's `folder`.

    Raises:
        RecipeError: an unknown builtin name.
        MachineError: no such folder.
    """
    random = model.init == "random"
    if model.name.startswith("builtin:"):
        try:
            return Base(model.name, "builtin", builtin.family(model.name))
        except LookupError as error:
            raise RecipeError([Problem("model.name", str(error))]) from error
    path = folder / model.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ArtifactError(f"{path}: is no model folder: it has no config.json.")
        return Base(model.name, "folder", str(path.resolve()), None, model.trust_remote_code, random)
    if model.name.startswith((".", "/", "~")):
        raise MachineError(f"{path}: no such model folder. Relative paths start from the recipe's folder.")
    return Base(model.name, "hub", model.name, model.revision, model.trust_remote_code, random)


def load_config(base: Base) -> PreTrainedConfig:
    """Configuration of `base`, without weights.

    Raises:
        MachineError: it is not here and cannot be had.
    """
    if base.kind == "builtin":
        return builtin.config(base.location)
    from transformers import AutoConfig

    with _explained(base):
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(base.location, **base._keywords()))


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Tokenizer of `base`; it must know the place of each token in the text.

    Raises:
        MachineError: it is not here, cannot be had, or has no fast implementation.
    """
    if base.kind == "builtin":
        return builtin.tokenizer()
    from transformers import AutoTokenizer

    with _explained(base):
        tokenizer = AutoTokenizer.from_pretrained(base.location, **base._keywords())
    if not tokenizer.is_fast:
        raise MachineError(f"model '{base.name}': its tokenizer has no fast implementation, which masks need.")
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_model(
    base: Base,
    head: Head,
    dtype: torch.dtype,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    whole: bool = False,
) -> PreTrainedModel:
    """Weights of `base` in `dtype`, in evaluation mode, with nothing marked as learning.

    Args:
        base: which model.
        head: what it must end in; a classification head that the base lacks is drawn from the seed.
        dtype: type of all weights.
        seed: draws the head, and all weights when the base is random.
        options: more keywords for transformers, such as a quantisation.
        whole: the base must bring its head too.

    Raises:
        MachineError: it is not here, cannot be had, or is not in safetensors.
        ArtifactError: some weights are missing.
    """
    if base.kind == "builtin" or base.random:
        draw = builtin.SEED if base.kind == "builtin" else derived_seed("init", seed)
        config = with_head(load_config(base), head)
        with _drawn_from(draw):
            model = auto_class(head, config).from_config(config)
        cast_weights(model, dtype)
        if options:  # transformers quantises while it loads
            model = reloaded(model, head, dtype, seed, options)
    else:
        config = with_head(load_config(base), head)
        keywords = {**base._keywords(), **(options or {})}
        with _explained(base):
            model = _read(base.location, config, head, dtype, seed, keywords, whole, base.name)
    model.config._name_or_path = base.reference
    return cast("PreTrainedModel", model.eval().requires_grad_(False))


def reloaded(
    model: PreTrainedModel, head: Head, dtype: torch.dtype, seed: int, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model as if it had been read from a folder: quantised, or with another head."""
    name = str(model.config._name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = _read(folder, with_head(model.config, head), head, dtype, seed, dict(options or {}), False, name)
    again.config._name_or_path = name
    return again.eval().requires_grad_(False)


def _read(
    location: str,
    config: PreTrainedConfig,
    head: Head,
    dtype: torch.dtype,
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
            location, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **keywords
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


def family_of(config: PreTrainedConfig) -> str:
    """`decoder`, `encoder` or `encoder_decoder`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder_decoder"
    return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter a type. Buffers keep theirs: rotary tables in bf16 would put late tokens elsewhere."""
    for parameter in model.parameters():
        parameter.grad = None  # torch allows none of another type
        parameter.data = parameter.data.to(dtype)


def limit_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model can take, in tokens, or None when its configuration names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def look_at_model(
    base: Base, head: Head, method: Method, tokenizer: PreTrainedTokenizerBase, fingerprint: str
) -> ModelFacts:
    """Count parameters on the meta device, with the method attached, without loading a weight."""
    import torch

    config = with_head(load_config(base), head)
    with torch.device("meta"):
        model = auto_class(head, config).from_config(config)
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
    )


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


def fingerprint_of(base: Base, config: PreTrainedConfig) -> str:
    """Identity of the base weights: commit of a hub model, SHA-256 of a folder's files, the recipe of a builtin."""
    if base.random:
        return f"random:{config.model_type}"
    if base.kind == "builtin":
        shape = json.dumps(builtin.SHAPES[base.location], sort_keys=True)
        return f"builtin:{base.location}:{builtin.SEED}:{hashlib.sha256(shape.encode()).hexdigest()[:16]}"
    commit = getattr(config, "_commit_hash", None)
    if base.kind == "hub" and commit:
        return f"hub:{base.location}@{commit}"
    folder = Path(base.location)
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draw random weights from `seed` without disturbing the generator of the run."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _explained(base: Base) -> Iterator[None]:
    """What transformers says about a missing or refused model, in one line."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        message = f"model '{base.name}' ends in a head of another size. Name the base model it was tuned from instead."
        raise ArtifactError(message) from error
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        where = "is no folder here and cannot be had from the hub" if base.kind == "hub" else "cannot be loaded"
        raise MachineError(
            f"model '{base.name}' {where}: {first} Check the name, or download it first and name its folder."
        ) from error
