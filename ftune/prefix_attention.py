"""Keys and values that learn, before those of every attention layer: the mechanism of prefix tuning.

    softmax(q [Kp; K]^T) [Vp; V]      Li & Liang 2021, section 4.2

A model keeps its class and its names. A prefix is the child `prefix` of an attention layer, and an attention function
of ours reads it there. It is no part of the cache: activations may be recomputed, caches hold real tokens alone, and a
sliding window never loses it.

Tensors: B rows, T positions of text, P virtual tokens, S positions seen so far (T and the cache), H heads of keys and
values, C channels of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ftune import virtual
from ftune.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PREFIX = "prefix"
"""Name of the child of an attention layer that holds its prefix."""

_seen: ContextVar[dict[int, tuple[Any, Any]] | None] = ContextVar("seen", default=None)
"""Keys and values of the layers that run, while somebody looks."""


def attention_layers(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [H, P, C] that every attention layer computes for the tokens `ids` [P], by the layer's name.

    They are in the order in which the layers run; the encoder and the decoder of a model that has both read `ids`.

    Raises:
        RecipeError: the model's attention cannot be extended.
    """
    import torch

    body = model.base_model
    inputs = {"input_ids": ids[None], "decoder_input_ids": ids[None], "use_cache": False}
    if virtual.is_causal(body) and not model.config.is_encoder_decoder:
        # without a mask, decoders look for packed rows, which the meta device cannot
        inputs["attention_mask"] = torch.ones_like(ids)[None]
    accepted = virtual.argument_names(body)
    training, before = model.training, model.config._attn_implementation
    _use_prefixes(model)
    collected: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    token = _seen.set(collected)
    try:
        with torch.no_grad():
            model.eval()
            body(**{name: value for name, value in inputs.items() if name in accepted})
    finally:
        _seen.reset(token)
        model.train(training)
        model.set_attn_implementation(before)
    names = {id(module): name for name, module in model.named_modules()}
    if not collected:
        raise RecipeError([Problem("method.name", _no_attention(model))])
    return {names[key]: pair for key, pair in collected.items()}


def add_prefixes(
    model: PreTrainedModel, start: Mapping[str, tuple[torch.Tensor, torch.Tensor]], width: int | None, shift: bool
) -> None:
    """Give each attention layer named in `start` a prefix that starts there, in fp32.

    Args:
        model: is changed in place.
        start: keys and values [H, P, C] by name of the layer.
        width: hidden width of the projection that changes the prefix, or None to learn it directly.
        shift: whether the text's positions begin at P instead of 0.
    """
    import torch

    first, _ = next(iter(start.values()))
    length = first.shape[1]
    if width is not None:  # drawn on the CPU, so that it is the same on every device
        embedding = torch.nn.Parameter(torch.randn(length, width, device="cpu").to(first.device))
        hidden = torch.nn.Linear(width, width, device="cpu").to(first.device)
    for name, (keys, values) in start.items():
        prefix = torch.nn.Module()
        prefix.keys = torch.nn.Parameter(keys.detach().float().clone())
        prefix.values = torch.nn.Parameter(values.detach().float().clone())
        if width is not None:
            prefix.embedding, prefix.hidden = embedding, hidden
            prefix.output = torch.nn.Linear(width, 2 * keys.shape[0] * keys.shape[2], bias=False, device=keys.device)
            torch.nn.init.zeros_(prefix.output.weight)
        model.get_submodule(name).add_module(PREFIX, prefix)
    _use_prefixes(model)
    if shift:
        body = virtual.embedder(model)
        names, causal = virtual.argument_names(body), virtual.is_causal(body)
        body.register_forward_pre_hook(partial(_shifted, names=names, length=length, causal=causal), with_kwargs=True)
        virtual.check_reached(model, body)


def prefixes(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [H, P, C] of each prefix in `model`, by the name of its attention layer."""
    holders = {name: module._modules.get(PREFIX) for name, module in model.named_modules()}
    return {name: _keys_values(holder) for name, holder in holders.items() if holder is not None}


def _keys_values(prefix: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What learns directly, plus W2 tanh(W1 e + b) for each virtual token's e where there is a projection (4.3)."""
    keys, values = prefix.keys, prefix.values
    if "output" in prefix._modules:
        made = prefix.output(prefix.hidden(prefix.embedding).tanh())  # [P, 2 H C]
        made = made.view(keys.shape[1], 2, keys.shape[0], keys.shape[2]).permute(1, 2, 0, 3)
        keys, values = keys + made[0], values + made[1]
    return keys, values


def _use_prefixes(model: PreTrainedModel) -> None:
    """Let the model, and no other, attend by our function; it keeps to the kernel it had.

    Raises:
        RecipeError: the model does not let its attention be chosen.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    before = str(model.config._attn_implementation)
    kernel = "eager" if before.endswith("eager") else "sdpa"
    name = f"ftune_{PREFIX}_{kernel}"
    AttentionInterface.register(name, partial(_attend, kernel=kernel))
    AttentionMaskInterface.register(name, partial(_mask, kernel=kernel))
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise RecipeError([Problem("method.name", _no_attention(model))])


def _no_attention(model: PreTrainedModel) -> str:
    return (
        f"prefix puts keys and values into the attention of the model, and {type(model).__name__} computes it in a way "
        "that cannot be extended. Use lora or prompt."
    )


def _mask(*arguments: Any, kernel: str, **keywords: Any) -> Any:
    """The kernel's mask over real tokens, never left out where it is causal: a prefix in front moves the diagonal."""
    from transformers import AttentionMaskInterface

    return AttentionMaskInterface()[kernel](*arguments, **{**keywords, "allow_is_causal_skip": False})


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: str,
    **keywords: Any,
) -> Any:
    """Attend to the prefix of `module`, if it has one, and to the real tokens: [B, H, S, C] become [B, H, P + S, C]."""
    import torch
    from torch.nn.functional import pad
    from transformers import AttentionInterface

    collected = _seen.get()
    if collected is not None:
        collected.setdefault(id(module), (key[0], value[0]))
    prefix = module._modules.get(PREFIX)
    if prefix is not None:
        causal = keywords.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if attention_mask is None and causal and kernel == "sdpa" and query.shape[2] > 1:
            shape = (1, 1, query.shape[2], key.shape[2])
            attention_mask = torch.ones(shape, dtype=torch.bool, device=key.device).tril()
        keys, values = _keys_values(prefix)
        length = keys.shape[1]
        key = torch.cat([keys.to(key.dtype).expand(len(key), -1, -1, -1), key], dim=2)
        value = torch.cat([values.to(value.dtype).expand(len(value), -1, -1, -1), value], dim=2)
        if attention_mask is not None:
            visible = True if attention_mask.dtype == torch.bool else 0.0
            attention_mask = pad(attention_mask, (length, 0), value=visible)
        if keywords.get("position_bias") is not None:
            keywords["position_bias"] = pad(keywords["position_bias"], (length, 0))
    if kernel == "eager":
        return _eager(module)(module, query, key, value, attention_mask, **keywords)
    return AttentionInterface()[kernel](module, query, key, value, attention_mask, **keywords)


def _eager(module: torch.nn.Module) -> Callable[..., Any]:
    """The model's own plain attention, which transformers keeps beside the layer instead of in its table."""
    home = inspect.getmodule(type(module))
    return cast("Callable[..., Any]", vars(home)["eager_attention_forward"])


def _shifted(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    names: tuple[str, ...],
    length: int,
    causal: bool,
) -> tuple[tuple[()], dict[str, Any]]:
    """Let the text's positions begin at P, as if the prefix were tokens."""
    given = virtual.named(names, arguments, keywords)
    positions = given.get("position_ids")
    if positions is None:
        positions = virtual.default_positions(module, given, causal)
    return (), {**given, "position_ids": positions + length}
