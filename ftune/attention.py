"""Attention over rows that lie end to end in one long sequence, without pads and without seeing each other.

Registered with transformers' own attention interface, so that stock models use it. A forward pass that is given
`segments`, the places of the rows, attends within each row; any other one is plain scaled-dot-product attention.

Tensors: S tokens of all rows, H heads, K key and value heads, D width of a head.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ftune.shrink import shrunken

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "ftune_packed"
"""In transformers' registries of attention functions and of masks."""
PROBE_LENGTHS = (7, 3, 7, 12)
"""Rows of the probe: two alike, and one longer than `PROBE_WINDOW`."""
PROBE_WINDOW = 5
"""Sliding window of the probe, where the model has one."""
ATTENDING = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers that mix tokens by attention alone."""
SHORT = 512
"""Rows of fewer tokens are attended to in fp32 by a processor that computes in bf16: that is faster, and more exact."""
TOLERANCE = 1e-4
"""Largest difference of packed and lone rows in the probe, in parts of the largest logit; fp32 rounding is 1e-6."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let every layer of `model` understand `segments`.

    Raises:
        ValueError: the model does not use transformers' attention interface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def keep_from_compiler() -> None:
    """Let compiled layers call the attention of rows end to end as it is: no two batches have rows of equal lengths."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Rows:
    """Where rows begin and end in a sequence. No tuple: the compiler would take each number in it for a constant.

    Args:
        lengths: tokens of each.
        edges: first token of each and the end of the last, int32 [B + 1], on the device of the model.
    """

    lengths: tuple[int, ...]
    edges: torch.Tensor


class How(NamedTuple):
    """How a layer attends: factor of the scores, share that is dropped, whether to earlier tokens only, and how far."""

    scale: float | None
    dropout: float
    causal: bool
    window: int | None


def packed_arguments(lengths: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """What a forward pass over rows that lie end to end is given besides ids and positions.

    Args:
        lengths: tokens of each row, int64 [B].
        device: of the model.
    """
    import torch

    edges = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    # transformers passes a mask of four dimensions on as it is, so no [S, S] mask is ever made
    return {
        "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
        "segments": Rows(tuple(lengths.tolist()), edges),
        "use_cache": False,
    }


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Rows | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer: query [1, H, S, D], key and value [1, K, S, D] -> [1, S, H, D].

    Raises:
        NotImplementedError: the layer asks for something that rows end to end do not have here.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if segments is None:
        window = {} if sliding_window is None else {"sliding_window": sliding_window}
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            **window, **others,
        )  # fmt: skip
        return output
    special = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
    if special or (sliding_window is not None and not causal):
        raise NotImplementedError(f"packed attention has no {', '.join(special) or 'window on both sides'}")
    how = How(scaling, dropout, causal, sliding_window)
    if query.is_cuda and dropout == 0 and query.dtype in (torch.float16, torch.bfloat16):
        return _in_one_kernel(query, key, value, segments, how), None
    return _row_by_row(query, key, value, segments, how), None


def _row_by_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Rows, how: How) -> torch.Tensor:
    """Neighbouring rows of one length go together. Returns [1, S, H, D]."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    runs = list(_runs(segments.lengths))
    # cut at once: the gradient of each single slice would be as large as the whole, and zero nearly everywhere
    sizes = [count * length for count, length in runs]
    pieces = [torch.split_with_sizes(states[0], sizes, dim=1) for states in (query, key, value)]
    outputs = []
    for (count, length), *cuts in zip(runs, *pieces, strict=True):
        shape = (count, length)
        exact = not query.is_cuda and length < SHORT
        if exact:
            cuts = [cut.float() for cut in cuts]
        queries, keys, values = (cut.unflatten(1, shape).transpose(0, 1) for cut in cuts)  # [rows, H, length, D]
        mask = None
        if how.window is not None and length > how.window:
            place = torch.arange(length, device=query.device)
            behind = place[:, None] - place[None, :]
            mask = (behind >= 0) & (behind < how.window)
        with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
            attended = scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=how.dropout, scale=how.scale,
                is_causal=how.causal and mask is None,
            )  # fmt: skip
        outputs.append(attended.to(value.dtype).transpose(1, 2).flatten(0, 1))  # [rows * length, H, D]
    return torch.cat(outputs).unsqueeze(0)


def _in_one_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Rows, how: How
) -> torch.Tensor:
    """Torch's own kernel for rows of any length, on CUDA in half precision. Returns [1, S, H, D]."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    behind = -1 if how.window is None else how.window - 1
    flat_query, flat_key, flat_value = (states[0].transpose(0, 1) for states in (query, key, value))  # [S, heads, D]
    attended = varlen_attn(
        flat_query, flat_key, flat_value, segments.edges, segments.edges, longest, longest, scale=how.scale,
        window_size=(behind, 0 if how.causal else -1), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return torch.as_tensor(attended).unsqueeze(0)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring rows of one length, as (number of rows, their length)."""
    return ((len(list(same)), length) for length, same in itertools.groupby(lengths))


def packing_refusal(config: PreTrainedConfig, auto_class: Any) -> str | None:
    """Why rows that lie end to end would see each other in models of this configuration, or None: they do not.

    Runs a random model of the same layers, but narrow, on rows end to end and alone, and changes a token of one row.

    Args:
        config: of the model.
        auto_class: transformers' auto class for its head.
    """
    kind: Any = type(config)
    return _probed(auto_class, kind, config.to_json_string(use_diff=False))


@functools.lru_cache(maxsize=16)
def _probed(auto_class: Any, config_class: Any, text: str) -> str | None:
    import json

    import torch

    config = config_class.from_dict(json.loads(text))
    words = config.get_text_config()
    other = sorted(set(getattr(words, "layer_types", None) or ()) - ATTENDING)
    if other:
        return f"layers of kind {', '.join(other)} carry a state from token to token, over the end of a row"
    config = shrunken(config, layers=None)
    words = config.get_text_config()
    if getattr(words, "sliding_window", None) is not None:
        words.sliding_window = PROBE_WINDOW
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = auto_class.from_config(config).float().eval()
        use_packed_attention(model)
        return _leak(model, words.vocab_size)
    except (NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
        return f"{config.model_type} could not be run on rows end to end: {reason}"


def _leak(model: PreTrainedModel, vocabulary: int) -> str | None:
    """What differs between rows end to end and rows alone."""
    import torch

    rows = [torch.arange(3, 3 + length) * 7 % min(vocabulary, 200) for length in PROBE_LENGTHS]
    positions = torch.cat([torch.arange(length) for length in PROBE_LENGTHS])[None]
    arguments = packed_arguments(torch.tensor(PROBE_LENGTHS), model.device)

    def together(parts: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=torch.cat(parts)[None], position_ids=positions, **arguments).logits
        return logits[0]

    with torch.no_grad():
        packed = together(rows)
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        changed = together([(rows[0] + 1) % min(vocabulary, 200), *rows[1:]])
    if not float((packed - alone).abs().max()) <= TOLERANCE * float(alone.abs().max()):
        return f"{model.config.model_type} gives rows end to end other answers than rows alone"
    if not torch.equal(packed[PROBE_LENGTHS[0] :], changed[PROBE_LENGTHS[0] :]):
        return f"what {model.config.model_type} says of a row depends on the rows before it"
    return None
