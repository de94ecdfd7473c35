"""Train the tokenizer: byte-level BPE, so that any text encodes and decodes without loss, with ChatML as template.

train(texts, Path("out/tokenizer"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ftune.builtin import CHATML

VOCABULARY = 4096
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<mask>", "<|spare_0|>", "<|spare_1|>", "<|spare_2|>"]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pieces, but each digit alone: a small model learns to add column by column."""
MAX_LENGTH = 1024


def train(texts: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    """Learn 4096 tokens from `texts` and save them; the same texts in the same order give the same file."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=24,
    )
    core.train_from_iterator(texts, trainer)
    return _saved(core, folder)


def _saved(core: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    pad, start, end, *_ = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        mask_token="<mask>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"  # indented by default: half of it is blanks
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    return tokenizer
