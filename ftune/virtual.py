"""Virtual tokens before the text: embeddings that learn, the positions of what follows, and real tokens to start from.

    f([E; embed(text)])      E learns      Lester et al. 2021, section 2

A model keeps its class and its names. A soft prompt is the child `soft_prompt` of the module that embeds the text, and
hooks put it in and take out what became of it.

Tensors: B rows, T positions of text, P virtual tokens, S positions seen so far (T and the cache), D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ftune import targets
from ftune.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOFT_PROMPT = "soft_prompt"
"""Name of the child that holds the soft prompt."""
COMMON = 5000
"""Real tokens to start from are drawn from so many first ids of the vocabulary, which holds the common ones first in
most tokenizers (Lester et al. 2021, section 3.2)."""


# ---------------------------------------------------------------------------------------------------------- real tokens


def real_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int, text: str | None) -> Any:
    """Ids [number] of tokens to start from: those of `text`, repeated or cut, or common ones drawn at random.

    Raises:
        RecipeError: the text has no tokens.
    """
    import torch

    if text is not None:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise RecipeError([Problem("method.init_text", "has no tokens. Write a few words.")])
        return torch.tensor((ids * (number // len(ids) + 1))[:number], device=model.device)
    special = set(tokenizer.all_special_ids)
    rows = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    common = torch.tensor([i for i in range(rows) if i not in special][:COMMON])
    drawn = torch.cat([torch.randperm(len(common), device="cpu") for _ in range(number // len(common) + 1)])
    return common[drawn[:number]].to(model.device)


def drawn_like(real: torch.Tensor) -> torch.Tensor:
    """Normal numbers of the shape and the standard deviation of `real`; the same on every device."""
    import torch

    return torch.randn(real.shape, device="cpu").to(real.device) * real.float().std()


def embedder(model: PreTrainedModel) -> torch.nn.Module:
    """The module that embeds the text: the encoder of a model that has two stacks, else the only one."""
    return cast("torch.nn.Module", model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder())


def is_causal(body: torch.nn.Module) -> bool:
    """Whether tokens see only those before them."""
    return any(getattr(module, "is_causal", False) for module in body.modules())


# --------------------------------------------------------------------------------------------------------- soft prompt


def add_soft_prompt(model: PreTrainedModel, start: torch.Tensor) -> None:
    """Put a soft prompt that starts as `start` [P, D], in fp32, before the text of every forward pass.

    It is the child of the module that embeds the text: the body of a decoder or an encoder, the encoder of a model
    that has both. What that module returns covers the text alone, so heads, losses and pooling stay as they were. Two
    things see the virtual tokens: the cross-attention of a decoder to its encoder, and a classifier that takes the
    first position of an encoder, which is then the first virtual token, as in peft.

    The prompt stands right before a row's first token, behind pads on the left, so that distances and windows do not
    depend on them; only where the first position is pooled, it stands in front of the pads.
    """
    import torch

    pair, host = bool(model.config.is_encoder_decoder), embedder(model)
    prompt = torch.nn.Module()
    prompt.weight = torch.nn.Parameter(start.detach().float().clone())
    host.add_module(SOFT_PROMPT, prompt)
    causal = not pair and is_causal(host)
    in_front = not pair and not causal and _first_is_pooled(model)
    hook = partial(_with_prompt, names=argument_names(host), causal=causal, in_front=in_front)
    host.register_forward_pre_hook(hook, with_kwargs=True)
    if pair:
        over = partial(_over_prompt, names=argument_names(model.get_decoder()), length=len(start))
        model.get_decoder().register_forward_pre_hook(over, with_kwargs=True)
    elif not in_front:
        host.register_forward_hook(_text_only, with_kwargs=True)
    check_reached(model, host)


def check_reached(model: PreTrainedModel, host: torch.nn.Module) -> None:
    """A head that goes around `host` would leave out, without a word, what its hooks do.

    Raises:
        RecipeError: it does.
    """
    import torch

    if model.device.type == "meta":  # heads that look for the end of the text read values
        return
    reached: list[bool] = []
    training = model.training
    handle = host.register_forward_pre_hook(lambda *_: reached.append(True))
    end, rows = model.config.get_text_config().eos_token_id, model.get_input_embeddings().weight.shape[0]
    ids = torch.full((1, 1), end if isinstance(end, int) and end < rows else 0, device=model.device)
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False}
    with torch.no_grad():
        model.eval()(**{name: value for name, value in inputs.items() if name in argument_names(model)})
    model.train(training)
    handle.remove()
    if not reached:
        message = f"needs a place before the text, and {type(model).__name__} has none that can be reached. Use lora."
        raise RecipeError([Problem("method.name", message)])


def _first_is_pooled(encoder: PreTrainedModel) -> bool:
    """Whether a classifier reads the first position alone, as all do but a ModernBERT that is told otherwise."""
    classifies = type(encoder).__name__.endswith("ForSequenceClassification")
    return classifies and getattr(encoder.config, "classifier_pooling", "cls") == "cls"


def soft_prompt(model: torch.nn.Module) -> torch.Tensor | None:
    """The soft prompt [P, D] in `model`, or None."""
    name = f"{SOFT_PROMPT}.weight"
    return next((p for whole, p in model.named_parameters() if targets.ends_in(whole, name)), None)


def _own(host: torch.nn.Module) -> torch.Tensor:
    return cast("torch.Tensor", cast("Any", host).soft_prompt.weight)


def _with_prompt(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    names: tuple[str, ...],
    causal: bool,
    in_front: bool,
) -> tuple[tuple[()], dict[str, Any]]:
    """Turn the ids of a forward pass into embeddings with the prompt before each row's first token.

    With a filled cache, which holds the prompt already, only masks and positions change.
    """
    import torch

    given = named(names, arguments, keywords)
    prompt, mask, positions = _own(module), given.get("attention_mask"), given.get("position_ids")
    length = len(prompt)
    _refuse_packing(mask, positions)
    if _num_cached(given):
        given["position_ids"] = None if positions is None else positions + length
    else:
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            embeddings = cast("Any", module).get_input_embeddings()(given["input_ids"])  # [B, T, D]
        rows, columns, _ = embeddings.shape
        places = _places(embeddings.new_ones(rows, columns) if mask is None or in_front else mask, length)
        virtual = prompt.to(embeddings.dtype).expand(rows, -1, -1)
        given["input_ids"], given["inputs_embeds"] = None, _placed(virtual, embeddings, places)
        if positions is not None:
            each = (*positions.shape[:-2], rows)  # models that read images have more than one for each token
            first = torch.arange(length, device=positions.device).expand(*each, -1)
            given["position_ids"] = _placed(first, positions.expand(*each, -1) + length, places)
        if (kinds := given.get("token_type_ids")) is not None:
            given["token_type_ids"] = _placed(kinds.new_zeros(rows, length), kinds, places)
    if mask is not None:
        given["attention_mask"] = _extended(mask, length, in_front)
        if positions is None and causal:
            new = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
            given["position_ids"] = _counted(given["attention_mask"], new.shape[1])
    return (), given


def _over_prompt(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    names: tuple[str, ...],
    length: int,
) -> tuple[tuple[()], dict[str, Any]]:
    """Let a decoder see the virtual tokens of its encoder."""
    given = named(names, arguments, keywords)
    if (mask := given.get("encoder_attention_mask")) is not None:
        given["encoder_attention_mask"] = _extended(mask, length, in_front=False)
    return (), given


def _text_only(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
    """Cut what the virtual tokens became out of what the body returns, where they took part."""
    embeddings, length = keywords.get("inputs_embeds"), len(_own(module))
    if embeddings is not None and _num_cached(keywords) <= embeddings.shape[1]:
        output.last_hidden_state = output.last_hidden_state[:, length:]
        if output.hidden_states is not None:
            output.hidden_states = tuple(states[:, length:] for states in output.hidden_states)
    return output


def _places(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Where column j of [pads on the left, P virtual tokens, text] comes from in [P virtual tokens, S columns]."""
    import torch

    left = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # [B, 1]
    columns = torch.arange(length + mask.shape[1], device=mask.device)[None]
    return torch.where(columns < left, columns + length, torch.where(columns < left + length, columns - left, columns))


def _placed(virtual: torch.Tensor, text: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[..., B, P] and [..., B, S], or embeddings [B, P, D] and [B, S, D], in the order of `places` [B, P + S]."""
    import torch

    if text.is_floating_point() and text.dim() == 3:
        return torch.take_along_dim(torch.cat([virtual, text], dim=1), places[..., None], dim=1)
    both = torch.cat([virtual, text], dim=-1)
    return torch.take_along_dim(both, places.expand(both.shape), dim=-1)


def _extended(mask: torch.Tensor, length: int, in_front: bool) -> torch.Tensor:
    """The mask [B, S] with P visible columns before each row's first token, or in front."""
    import torch

    visible = mask.new_ones(len(mask), length)
    return torch.cat([visible, mask], dim=1) if in_front else _placed(visible, mask, _places(mask, length))


def _refuse_packing(mask: Any, positions: torch.Tensor | None) -> None:
    """Rows laid end to end have one place for a prompt that each of them needs.

    Raises:
        RecipeError: the rows are packed, or the mask is not one of columns.
    """
    import torch

    if mask is None and positions is not None and bool((positions[..., 1:] <= positions[..., :-1]).any()):
        message = "a soft prompt stands before each row, so rows cannot share a sequence. Set it to false."
        raise RecipeError([Problem("data.packing", message)])
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        message = (
            "a soft prompt needs an attention mask of rows and columns, and was given one that is laid out already, as "
            "for packed rows, static caches and some models that read images. Use lora."
        )
        raise RecipeError([Problem("method.name", message)])


# ------------------------------------------------------------------------------------------------------------ positions


def default_positions(module: torch.nn.Module, given: Mapping[str, Any], causal: bool) -> torch.Tensor:
    """Positions [B or 1, T] that the model would take, and for decoders positions that do not count pads."""
    import torch

    ids, mask, cached = given.get("input_ids"), given.get("attention_mask"), _num_cached(given)
    new = int((given["inputs_embeds"] if ids is None else ids).shape[1])
    if causal and isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return _counted(mask, new)
    padding = getattr(position_table(module), "padding_idx", None)
    if padding is not None and ids is not None:  # RoBERTa and its kin count real tokens from behind the pad's id
        real = cast("torch.Tensor", ids != padding).long()
        return real * real.cumsum(dim=1) + int(padding)
    return torch.arange(cached, cached + new, device=next(module.parameters()).device)[None]


def position_table(encoder: torch.nn.Module) -> torch.nn.Module | None:
    """The learned positions of an encoder that is built like BERT, or None."""
    return getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)


def _counted(mask: torch.Tensor, new: int) -> torch.Tensor:
    """Positions of the last `new` columns of the mask [B, S], counting real tokens from 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]


def _num_cached(given: Mapping[str, Any]) -> int:
    """Positions in the cache that a forward pass was given."""
    past = given.get("past_key_values")
    return 0 if past is None else int(past.get_seq_length())


def argument_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def named(names: tuple[str, ...], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    return {**dict(zip(names, arguments, strict=False)), **keywords}
