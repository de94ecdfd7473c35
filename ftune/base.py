"""Find a base model, its configuration, its tokenizer and its identity; loads no weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ftune import builtin
from ftune.errors import ArtifactError, FtuneError, MachineError, Problem, RecipeError
from ftune.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


COMMIT = re.compile(r"[0-9a-f]{40}")
KERNELS = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
"""Names that are no repository with code."""
MOST_LAYERS = 10_000
"""More are no model: to count them alone would take hours."""


@dataclass(frozen=True)
class Base:
    """A base model that was found.

    Args:
        name: as the user wrote it.
        kind: where it comes from.
        location: folder, hub id or builtin family.
        revision: of a hub model, see `at_commit`.
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
        ArtifactError: the folder is no model, or leads elsewhere.
    """
    random = model.init == "random"
    if builtin.is_starter(model.name):
        return Base(model.name, "folder", str(builtin.STARTER), random=random)
    if model.name.startswith("builtin:"):
        try:
            return Base(model.name, "builtin", builtin.family(model.name))
        except LookupError as error:
            raise RecipeError([Problem("model.name", str(error))]) from error
    path = folder / model.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ArtifactError(f"{path}: is no model folder: it has no config.json.")
        _refuse_other_places(path)
        return Base(model.name, "folder", str(path.resolve()), random=random)  # no commit pins the code of a folder
    if model.name.startswith((".", "/", "~")):
        raise MachineError(f"{path}: no such model folder. Relative paths start from the recipe's folder.")
    return Base(model.name, "hub", model.name, model.revision, model.trust_remote_code, random)


def _refuse_other_places(folder: Path) -> None:
    """What would make transformers load something else than the safetensors of the folder that was named.

    Raises:
        ArtifactError: an adapter leads to another model, or an index to files elsewhere or of another kind.
    """
    if (folder / "adapter_config.json").is_file():
        message = "holds a model and an adapter, which names a model of its own. Take the adapter's files out."
        raise ArtifactError(f"{folder}: {message}")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = [str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{index}: is no index of weights: {type(error).__name__}. Download it again.") from error
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ArtifactError(f"{index}: names {name!r}, which is no safetensors file beside it.")


def at_commit(base: Base, fingerprint: str = "") -> Base:
    """A hub model with its commit in place of a branch: all files are then of this one, also when the branch moves.

    Args:
        base: any.
        fingerprint: of the base as a run recorded it, whose commit is taken; without one the hub is asked.

    Raises:
        MachineError: the hub has no such model, or does not answer.
    """
    if base.kind != "hub":
        return base
    recorded = re.fullmatch(rf"hub:{re.escape(base.location)}@({COMMIT.pattern})", fingerprint)
    commit = base.revision if recorded is None else recorded[1]
    if commit is None or not COMMIT.fullmatch(commit):
        from huggingface_hub import hf_hub_download

        with explained(base):
            commit = Path(hf_hub_download(base.location, "config.json", revision=base.revision)).parent.name
    return replace(base, revision=commit)


def load_config(base: Base) -> PreTrainedConfig:
    """Configuration of `base`, without weights.

    Raises:
        MachineError: it is not here and cannot be had.
    """
    if base.kind == "builtin":
        return builtin.config(base.location)
    from transformers import AutoConfig

    with explained(base):
        config = cast("PreTrainedConfig", AutoConfig.from_pretrained(base.location, **base._keywords()))
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ArtifactError(f"model '{base.name}': its configuration asks for {layers:,} layers. It is damaged.")
    kernel = getattr(config, "_attn_implementation", None)
    if kernel is not None and kernel not in KERNELS:
        message = f"its configuration asks for the attention kernel {kernel!r}, which is code. Take the key out."
        raise MachineError(f"model '{base.name}': {message}")
    return config


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Tokenizer of `base`; it must know the place of each token in the text.

    Raises:
        MachineError: it is not here, cannot be had, or has no fast implementation.
    """
    if base.kind == "builtin":
        return builtin.tokenizer()
    from transformers import AutoTokenizer

    with explained(base):
        tokenizer = AutoTokenizer.from_pretrained(base.location, **base._keywords())
    if not tokenizer.is_fast:
        raise MachineError(f"model '{base.name}': its tokenizer has no fast implementation, which masks need.")
    return cast("PreTrainedTokenizerBase", tokenizer)


def family_of(config: PreTrainedConfig) -> str:
    """`decoder`, `encoder` or `encoder_decoder`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder_decoder"
    return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"


def limit_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model can take, in tokens, or None when its configuration names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def fingerprint_of(base: Base, config: PreTrainedConfig) -> str:
    """Identity of the base weights: commit of a hub model, SHA-256 of a folder's files, the recipe of a builtin."""
    if base.random:
        return f"random:{config.model_type}"
    if base.kind == "builtin":
        shape = json.dumps(builtin.SHAPES[base.location], sort_keys=True)
        return f"builtin:{base.location}:{builtin.SEED}:{hashlib.sha256(shape.encode()).hexdigest()[:16]}"
    if base.kind == "hub":
        return f"hub:{base.location}@{base.revision}"
    folder = Path(base.location)
    digest = hashlib.sha256()
    for file in sorted(path for path in [*folder.glob("*.safetensors"), folder / "config.json"] if path.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def explained(base: Base) -> Iterator[None]:
    """What transformers says about a missing or refused model, in one line."""
    try:
        yield
    except FtuneError:
        raise  # it says itself what is wrong, and may be a ValueError
    except _damage() as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(
            f"model '{base.name}': its files are damaged, or are not those of a model: {type(error).__name__}: {said}. "
            "Download it again, or name another."
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        message = f"model '{base.name}' ends in a head of another size. Name the base model it was tuned from instead."
        raise ArtifactError(message) from error
    except _refusals() as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "is no folder here and cannot be had from the hub" if base.kind == "hub" else "cannot be loaded"
        raise MachineError(
            f"model '{base.name}' {where}: {first} Check the name, or download it first and name its folder."
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """What libraries raise over a model that is not there, and what the hub's client does not turn into an OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, ImportError, *HfHubHTTPError.__bases__


def _damage() -> tuple[type[Exception], ...]:
    """What libraries raise over files of another content than they expect, besides what says itself what is wrong."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        SafetensorError,
        StrictDataclassError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    )
