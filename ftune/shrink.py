"""A configuration made narrow: the same architecture at a size that runs anywhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 16, "n_embd": 64, "n_head": 4, "n_inner": 128, "d_model": 64, "d_kv": 16, "d_ff": 128,
         "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
         "decoder_ffn_dim": 128, "dim": 64, "hidden_dim": 128, "n_heads": 4}  # fmt: skip
FEW = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
       "moe_intermediate_size": 32}  # fmt: skip
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
          "decoder_layers")  # fmt: skip


def shrunken(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    """A narrow copy of `config`.

    Args:
        config: of any model; keys that it lacks are left out.
        layers: how many layers stay; None keeps one of each kind where the configuration names kinds, else all.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    written = text.to_dict()
    for key, value in SMALL.items():
        if written.get(key) is not None:
            setattr(text, key, value)
    for key, most in FEW.items():
        if written.get(key) is not None:
            setattr(text, key, min(most, written[key]))
    kinds = written.get("layer_types")
    if kinds:
        text.layer_types = list(dict.fromkeys(kinds)) if layers is None else kinds[:layers]
        layers = len(text.layer_types)
    for key in DEPTHS:
        if layers is not None and written.get(key) is not None:
            setattr(text, key, layers)
    return small
