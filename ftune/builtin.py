"""`builtin:NAME` models, which need no network.

`builtin:starter` is a small pretrained language model that comes with the package; its card is `starter/README.md`.
`builtin:tiny-FAMILY` are random and built in code, for tests and `--smoke`: their tokenizer knows the 256 bytes and a
few special tokens, so any text can be encoded; its chat template is ChatML.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.errors import suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

STARTER = Path(__file__).with_name("starter")
"""A folder as transformers writes it."""
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 272
"""256 bytes, the special tokens, and a few spare rows, as in real models whose matrix is padded."""
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 2048,
    "classifier_dropout": 0.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "tie_word_embeddings": False},
    "qwen3": {**_DECODER, "head_dim": 16, "tie_word_embeddings": True},
    "gemma3": {
        **_DECODER,
        "head_dim": 24,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 24,
    },
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024,
        "initializer_range": 0.1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "classifier_dropout": 0.0,
    },
    "bert": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "decoder_start_token_id": 0,
    },
    "bart": {
        "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "max_position_embeddings": 1024, "dropout": 0.0, "attention_dropout": 0.0, "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
}  # fmt: skip
_MODEL_TYPE = {"gemma3": "gemma3_text"}
SEED = 20240501
"""Fixed, so that a builtin model is the same model in every run, like a pretrained one."""


def is_starter(name: str) -> bool:
    """Whether `name` is that of the pretrained model in the package."""
    return name == "builtin:starter"


def family(name: str) -> str:
    """The family that `builtin:tiny-FAMILY` names.

    Raises:
        LookupError: there is no such model.
    """
    short = name.removeprefix("builtin:")
    known = ["starter", *(f"tiny-{shape}" for shape in SHAPES)]
    if short not in known:
        raise LookupError(f"unknown builtin model '{short}'.{suggestion(short, known)}")
    return short.removeprefix("tiny-")


def config(shape: str) -> PreTrainedConfig:
    """Configuration of the tiny model of a family."""
    from transformers import AutoConfig

    ids = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    built: PreTrainedConfig = AutoConfig.for_model(_MODEL_TYPE.get(shape, shape), **SHAPES[shape], **ids)
    built._name_or_path = f"builtin:tiny-{shape}"
    return built


def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer without merges: one token for each byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = _byte_letters()
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    pad, bos, eos, unk, mask = SPECIAL[:5]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        mask_token=mask,
        chat_template=CHATML,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE writes for each byte, in byte order (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {}
    spare = 256
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(spare)
            spare += 1
    return [letters[byte] for byte in range(256)]
