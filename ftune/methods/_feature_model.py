"""A frozen body, what is read off it, and a small head: the model that `feature_based` trains.

    logits = head((read(body(text)) - mean) / deviation)

Tensors: B rows, T positions, D width of the body, L layers, F = L x D features, K outputs of the head.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

POOLINGS = ("mean", "last", "first", "max")
"""How the tokens of a row become one vector; pads never count."""
TOKEN = "token"  # noqa: S105 - not a secret
"""No pooling: features of each token."""


@dataclass(frozen=True)
class Reading:
    """What is read off the body.

    Args:
        layers: numbers of hidden states, 0 being the embeddings; several are laid side by side.
        pooling: one of `POOLINGS`, or `TOKEN`.
    """

    layers: tuple[int, ...]
    pooling: str


def encoder_of(body: PreTrainedModel) -> Any:
    """The part that reads a text: the encoder of a model that has a decoder too, else the whole body."""
    return body.get_encoder() if body.config.is_encoder_decoder else body


def num_layers_of(body: PreTrainedModel) -> int:
    """Layers of the part that reads; it has one hidden state more."""
    return int(encoder_of(body).config.get_text_config().num_hidden_layers)


def width_of(body: PreTrainedModel) -> int:
    """Numbers in each hidden state."""
    return int(encoder_of(body).config.get_text_config().hidden_size)


def hidden_states(
    body: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, layers: Sequence[int]
) -> torch.Tensor:
    """Hidden states of the body, in fp32, [B, L, T, D].

    Pads may be anywhere in a row. They are moved behind the text first, so every token has the position it has without
    pads, whatever a model makes of positions.

    Args:
        body: frozen, in evaluation mode.
        ids: token ids [B, T].
        mask: 1 for a token, 0 for a pad, [B, T]; None where there is no pad.
        layers: numbers of hidden states.
    """
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    encoder, last = encoder_of(body), num_layers_of(body)
    every = any(layer != last for layer in layers)
    options: dict[str, Any] = {"output_hidden_states": True} if every else {}
    if "use_cache" in inspect.signature(encoder.forward).parameters:
        options["use_cache"] = False
    with torch.no_grad():
        found = encoder(input_ids=ids.gather(1, order), attention_mask=mask.gather(1, order), **options)
        states = [found.last_hidden_state if layer == last else found.hidden_states[layer] for layer in layers]
        back = order.argsort(dim=1)[:, :, None]
        return torch.stack([s.float().gather(1, back.expand(-1, -1, s.shape[-1])) for s in states], dim=1)


def pooled(states: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector for each row and layer, [B, L, D], from `states` [B, L, T, D]; `mask` [B, T] has 1 for tokens."""
    import torch

    if mask is None:
        mask = states.new_ones(states.shape[0], states.shape[2])
    real = mask.bool()[:, None, :, None]  # [B, 1, T, 1]
    if pooling == "mean":
        return states.masked_fill(~real, 0.0).sum(dim=2) / real.sum(dim=2)
    if pooling == "max":
        return states.masked_fill(~real, -torch.inf).amax(dim=2)
    places = torch.arange(states.shape[2], device=states.device).expand(mask.shape)
    outside = places.masked_fill(~mask.bool(), -1 if pooling == "last" else states.shape[2])
    chosen = outside.amax(dim=1) if pooling == "last" else outside.amin(dim=1)  # [B]
    index = chosen[:, None, None, None].expand(-1, states.shape[1], 1, states.shape[3])
    return states.gather(2, index)[:, :, 0]


def build_head(width: int, outputs: int, hidden: int | None, dropout: float) -> torch.nn.Module:
    """Linear, or linear, ReLU, linear, from [..., width] to [..., outputs] in fp32, each behind a dropout.

    Drawn from torch's global generator on the CPU, so that the start is the same on every device.
    """
    import torch

    parts = OrderedDict[str, torch.nn.Module](dropout=torch.nn.Dropout(dropout))
    if hidden is not None:
        parts["hidden"] = torch.nn.Linear(width, hidden, device="cpu", dtype=torch.float32)
        parts["non_linearity"] = torch.nn.ReLU()
        parts["hidden_dropout"] = torch.nn.Dropout(dropout)
    parts["output"] = torch.nn.Linear(hidden or width, outputs, device="cpu", dtype=torch.float32)
    return torch.nn.Sequential(parts)


def build(body: PreTrainedModel, head: torch.nn.Module, reading: Reading) -> Any:
    """The model; only its head learns."""
    model = _kind()(body.requires_grad_(False), head.requires_grad_(True), reading)
    return model.to(body.device) if body.device.type != "meta" else model


@functools.cache
def _kind() -> Any:
    """The class, made when torch is there."""
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    class FeatureModel(torch.nn.Module):
        """Logits of a head on features of a frozen body.

        `mean` and `deviation` [F] are of the training rows; `notes` holds what was found out about them.
        """

        mean: torch.Tensor
        deviation: torch.Tensor

        def __init__(self, body: PreTrainedModel, head: torch.nn.Module, reading: Reading) -> None:
            super().__init__()
            self.body, self.head, self.reading = body, head, reading
            self.notes: dict[str, Any] = {}
            width = width_of(body) * len(reading.layers)
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))

        @property
        def config(self) -> Any:
            """The body's, with the labels of the head."""
            return self.body.config

        def train(self, mode: bool = True) -> FeatureModel:
            """The body never leaves evaluation mode: features have no dropout."""
            super().train(mode)
            self.body.eval()
            return self

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            features: torch.Tensor | None = None,
        ) -> Any:
            """Logits [B, K], or [B, T, K] of tokens, from a text or from its features [B, F] or [B, T, F].

            `position_ids` are not needed: tokens have the position they have without pads.
            """
            if features is None:
                if input_ids is None:
                    raise ValueError("expected input_ids or features, received neither")
                features = read(self.body, input_ids, attention_mask, self.reading)
            with torch.autocast(features.device.type, enabled=False):  # a head costs nothing in fp32
                return SequenceClassifierOutput(logits=self.head((features.float() - self.mean) / self.deviation))

    return FeatureModel


def read(body: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, reading: Reading) -> torch.Tensor:
    """Features [B, F] of rows, or [B, T, F] of their tokens."""
    states = hidden_states(body, ids, mask, reading.layers)
    if reading.pooling == TOKEN:
        return states.transpose(1, 2).flatten(2)
    return pooled(states, mask, reading.pooling).flatten(1)
