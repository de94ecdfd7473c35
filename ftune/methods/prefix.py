"""Prefix tuning: keys and values that learn, before those of every attention layer of a frozen model.

    softmax(q [Kp; K]^T) [Vp; V]                      Li & Liang 2021, https://arxiv.org/abs/2101.00190, section 4.2
    [Kp; Vp] = P + W2 tanh(W1 e + b), with a projection      section 4.3; P, e, W1, b, W2 learn, P alone is written

`ftune.prefix_attention` says how they get into the model. Where plain peft computes the same function, the folder that
is written is peft's; elsewhere it is one file of ours. Two lines load either:

    from ftune.methods.prefix import load_prefix
    model = load_prefix(AutoModelForSeq2SeqLM.from_pretrained(base), "runs/x/model")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from ftune import prefix_attention, virtual
from ftune.errors import ArtifactError, NotMergeable
from ftune.methods import Method, _peft, _virtual

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Keys and values [H, P, C] by name of the attention layer."""

OWN = "prefix.safetensors"
"""Weights where peft has no layout: keys and values by layer, and the head."""


class Prefix(Method):
    """Keys and values before those of every attention layer; the base model stays frozen."""

    name: Literal["prefix"] = "prefix"

    length: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Number of virtual tokens; >= 1. Decoders and BERT-like encoders count them among their positions."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """Where keys and values start: at those the model computes for common tokens, for `init_text`, or at random ones of
    the same size."""
    init_text: Annotated[str, Field(min_length=1)] | None = None
    """Words to start from with `init: text`, repeated or cut to `length` tokens; a description of the task, say."""
    projection: Annotated[int, Field(ge=1)] | None = None
    """Hidden width of a small network that shapes keys and values in training and is gone afterwards; null: none."""

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"causal_lm", "seq2seq_lm", "sequence_classification", "token_classification"}
    )
    learns: ClassVar[str] = "keys and values of virtual tokens in every attention layer"
    paper: ClassVar[str] = "https://arxiv.org/abs/2101.00190"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_power: ClassVar[float] = 1.0
    learning_rate_evidence: ClassVar[str] = (
        "peft's comparison has 1e-3 and 5e-3 for 3B parameters; narrower models in docs/methods.md"
    )

    @property
    def identity_at_start(self) -> bool:
        """False: the prefix is attended to from the first step."""
        return False

    @property
    def positions_taken(self) -> int:
        """Positions of the model's limit that are not left for text."""
        return self.length

    def packing_constraint(self) -> str | None:
        """Rows that lie end to end have one beginning."""
        return "method prefix puts its keys before each row of a batch"

    def problems(self) -> list[tuple[str, str]]:
        """`init_text` belongs to `init: text`."""
        return _virtual.text_problems(self.init, self.init_text)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model` but for its head and give every attention layer a prefix (fp32).

        Raises:
            RecipeError: the attention of the model cannot be extended, or `init_text` has no tokens.
        """
        ids = virtual.real_tokens(model, tokenizer, self.length, self.init_text)
        layers = prefix_attention.attention_layers(model, ids)
        if self.init == "random":
            like = virtual.drawn_like
            layers = {name: (like(keys), like(values)) for name, (keys, values) in layers.items()}
        _virtual.freeze_all_but_head(model)
        prefix_attention.add_prefixes(model, layers, self.projection, shift=_is_pefts(model, layers))
        return cast("torch.nn.Module", model)

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """(2, H C) of every attention layer: the widths of a key and a value."""
        layers = prefix_attention.attention_layers(model, _any_token(model))
        return {name: (2, keys.shape[0] * keys.shape[2]) for name, (keys, _) in layers.items()}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """P x 2 x H x C for each layer, and with a projection of width w: P w + w (w + 1) + 2 H C w for each layer."""
        each = sum(two * width for two, width in shapes.values())
        own = self.length * each
        if self.projection is None:
            return own
        return own + self.length * self.projection + self.projection * (self.projection + 1) + each * self.projection

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write what the prefix has become, without the projection, and the head."""
        base = cast("PreTrainedModel", model)
        pairs = prefix_attention.prefixes(model)
        if _is_pefts(base, pairs):
            _save_as_peft(base, folder, pairs)
            return
        weights = {
            name: weight for layer, pair in pairs.items() for name, weight in zip(_names(layer), pair, strict=True)
        }
        _virtual.write(folder / OWN, {**weights, **_virtual.head_weights(base)}, {"format": "pt"})

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put the prefix in `folder` onto a fresh base model; the folder's own settings count.

        Raises:
            ArtifactError: see `load_prefix`.
        """
        return cast("torch.nn.Module", load_prefix(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Refuse: the prefix is no weight of the model.

        Raises:
            NotMergeable: always.
        """
        raise NotMergeable(
            "method prefix: keys and values that are attended to beside the text's change no weight of the model. Use "
            "the artefact beside its base model."
        )


def load_prefix(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put a prefix that ftune saved, with its head, onto a fresh base model, which is changed in place and returned.

    Nothing of the result learns.

    Raises:
        ArtifactError: a weight is missing, unexpected or of another shape, or the model has a prefix already.
    """
    if prefix_attention.prefixes(model):
        raise ArtifactError(f"{folder}: the model has a prefix already. Load the base model anew.")
    layers = prefix_attention.attention_layers(model, _any_token(model))
    own = Path(folder) / OWN
    _virtual.freeze_all_but_head(model)
    pairs = _load_own(model, own, layers) if own.is_file() else _load_from_peft(model, Path(folder), layers)
    prefix_attention.add_prefixes(model, pairs, None, shift=not own.is_file())
    return model.requires_grad_(False)


def _names(layer: str) -> tuple[str, str]:
    """What the keys and the values of an attention layer are called in a file of ours."""
    return f"{layer}.keys", f"{layer}.values"


def _any_token(model: PreTrainedModel) -> torch.Tensor:
    """A token [1] to learn the shapes of the model's keys and values from."""
    import torch

    return torch.zeros(1, dtype=torch.int64, device=model.device)


def _is_pefts(model: PreTrainedModel, layers: Pairs) -> bool:
    """Whether peft computes this function: one stack of equal layers that takes a cache and positions.

    peft hands the prefix over as a filled cache, so the text's positions begin at P. It gives an encoder-decoder a
    prefix in its decoder alone, which is another function.
    """
    alike = {tuple(keys.shape) for keys, _ in layers.values()}
    body = virtual.embedder(model)
    return (
        not model.config.is_encoder_decoder
        and {"past_key_values", "position_ids"} <= set(virtual.argument_names(body))
        and (virtual.is_causal(body) or virtual.position_table(body) is not None)
        and len(alike) == 1
        and len(layers) == int(model.config.get_text_config().num_hidden_layers)
    )


def _save_as_peft(model: PreTrainedModel, folder: Path, pairs: Pairs) -> None:
    """`prompt_embeddings` [P, 2 L H C]: for each of L layers its keys, then its values."""
    import torch
    from peft import PrefixTuningConfig

    stacked = torch.stack([part for pair in pairs.values() for part in pair])  # [2 L, H, P, C]
    _, heads, length, channels = stacked.shape
    config = PrefixTuningConfig(
        **_virtual.peft_settings(model, length),
        token_dim=heads * channels,
        num_attention_heads=heads,
        encoder_hidden_size=heads * channels,
    )
    _virtual.save(model, folder, config, stacked.permute(2, 0, 1, 3).reshape(length, -1))


def _load_from_peft(model: PreTrainedModel, folder: Path, layers: Pairs) -> Pairs:
    """Undo `_save_as_peft`."""
    path = folder / _peft.WEIGHTS
    found, head = _virtual.read_peft(model, path)
    heads, _, channels = next(iter(layers.values()))[0].shape
    _virtual.check_shape(path, _virtual.EMBEDDINGS, found, (len(found), 2 * len(layers) * heads * channels))
    _virtual.put_head(model, path, head)
    stacked = found.to(model.device).view(len(found), len(layers), 2, heads, channels).permute(1, 2, 3, 0, 4)
    return {name: (pair[0], pair[1]) for name, pair in zip(layers, stacked, strict=True)}


def _load_own(model: PreTrainedModel, path: Path, layers: Pairs) -> Pairs:
    """Undo the rest of `save`."""
    names = [name for layer in layers for name in _names(layer)]
    weights = _virtual.read(path, [*names, *_virtual.head_weights(model)])
    _virtual.put_head(model, path, weights)
    length = weights[_names(next(iter(layers)))[0]].shape[1]
    pairs = {}
    for layer, (keys, _) in layers.items():
        for name in _names(layer):
            _virtual.check_shape(path, name, weights[name], (keys.shape[0], length, keys.shape[2]))
        pairs[layer] = tuple(weights[name].to(model.device) for name in _names(layer))
    return cast("Pairs", pairs)


METHOD = Prefix
