"""Cases whose tokens, masks and byte counts were written down before the encoder became fast, see `test_golden.py`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tiny_tokenizers import FAMILIES, TOKENIZERS

from ftune.data.encode import Example
from ftune.data.read import Row
from ftune.data.shape import Sample, to_sample

MERGES = (("Ġ", "Ġ"), ("Ċ", "ĠĠ"), ("Ã", "¼"), ("Ġ", "a"), ("a", "b"), ("Ċ", "Ċ"))
ALPHABET = [
    "a",
    "b",
    "ab",
    " ",
    "  ",
    "\n",
    "\n\n",
    "ü",
    "漢",
    "🙂",
    "e\u0301",
    "\u200b",
    "<s>",
    "</s>",
    "x",
    "\t",
    "Z",
]


def words(rng: random.Random, most: int) -> str:
    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, most)))
    return text if text.strip() else text + "a"


def word_level() -> Any:
    """Leaves white space out, so that characters have no token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "ab": 2, "x": 3, "</s>": 4, "é": 5}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="[UNK]")


def word_piece() -> Any:
    """Decomposes letters, drops accents, and splits words into pieces between its own ends."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b", "u", "##u", "e", "##e", "x", "##x", "z", "漢", "</s>"]
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="</s>"
    )


def metaspace() -> Any:
    """Puts a mark before the text and for each space, as sentencepiece does, and falls back to bytes."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "x", "▁a", "ab", "▁▁"]
    core = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b"), ("▁", "▁")], unk_token="<unk>",
            byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


ALL = {
    **{name: lambda build=build: build(merges=MERGES) for name, build in TOKENIZERS.items()},
    "word_level": word_level, "word_piece": word_piece, "metaspace": metaspace,
}  # fmt: skip


def documents(rng: random.Random) -> list[Sample]:
    return [Sample(Row("a.txt", i, {}), text=words(rng, 60)) for i in range(1, 13)]


def pairs(rng: random.Random) -> list[Sample]:
    rows = [{"prompt": words(rng, 20), "completion": words(rng, 12)} for _ in range(12)]
    shown = ("prompt", "completion")
    samples = [to_sample(Row("p.jsonl", i, row), "prompt_completion", {}, shown) for i, row in enumerate(rows, start=1)]
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples  # type: ignore[return-value]


def chats(rng: random.Random) -> list[Sample]:
    samples = []
    for i in range(1, 13):
        roles = ["user", "assistant"] * rng.randint(1, 3)
        row = Row("c.jsonl", i, {"messages": [{"role": role, "content": words(rng, 10)} for role in roles]})
        samples.append(to_sample(row, "chat", {}))
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples  # type: ignore[return-value]


def labelled(rng: random.Random) -> list[Sample]:
    return [Sample(Row("l.csv", i, {}), text=words(rng, 20), label=rng.choice("xyz"), fields={}) for i in range(1, 13)]


def tagged(rng: random.Random) -> list[Sample]:
    samples = []
    for i in range(1, 13):
        said = [word for word in (words(rng, 3).strip() for _ in range(rng.randint(1, 6))) if word and " " not in word]
        said = said or ["ab"]
        samples.append(Sample(Row("t.conll", i, {}), words=tuple(said), label=tuple(rng.choice("xyz") for _ in said)))
    return samples


def cases() -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: C901 - a grid
    """Name and settings: kind, tokenizer, template, train_on, max_length, overlong."""
    for tokens in ALL:
        for size in (8, 30, 10_000):
            for overlong in (None, "truncate", "drop"):
                yield f"documents/{tokens}/{size}/{overlong}", {"kind": "documents", "tokens": tokens,
                      "max_length": size, "overlong": overlong}  # fmt: skip
            for overlong in ("truncate", "drop"):
                for kind in ("labelled", "tagged", "windows"):
                    yield f"{kind}/{tokens}/{size}/{overlong}", {"kind": kind, "tokens": tokens, "max_length": size,
                          "overlong": overlong}  # fmt: skip
            for overlong in ("truncate_prompt", "truncate", "drop"):
                for template in (None, "Q: {{ prompt }}\nA:", "<s>{{ prompt }} "):
                    for train_on in ("completion", "all"):
                        yield f"pairs/{tokens}/{size}/{overlong}/{template!r}/{train_on}", {
                            "kind": "pairs", "tokens": tokens, "max_length": size, "overlong": overlong,
                            "template": template, "train_on": train_on}  # fmt: skip
                yield f"written/{tokens}/{size}/{overlong}", {"kind": "written", "tokens": tokens, "max_length": size,
                      "overlong": overlong}  # fmt: skip
    for tokens in TOKENIZERS:
        for family in FAMILIES:
            for train_on in ("completion", "last", "all"):
                for overlong, size in (("truncate_prompt", 40), ("truncate", 40), (None, 10_000)):
                    yield f"chats/{tokens}/{family}/{train_on}/{overlong}", {
                        "kind": "chats", "tokens": tokens, "template": FAMILIES[family].template, "train_on": train_on,
                        "overlong": overlong, "max_length": size}  # fmt: skip


MAKERS = {"documents": documents, "windows": documents, "pairs": pairs, "written": pairs, "chats": chats,
          "labelled": labelled, "tagged": tagged}  # fmt: skip


def digest(examples: Sequence[Example], report: Any) -> str:
    """Everything that training would see, and the counts."""
    said = hashlib.sha256()
    for one in examples:
        said.update(repr((one.ids.tolist(), one.is_target.tolist(), one.num_bytes, one.file, one.number)).encode())
        for part in (one.answer, one.labels):
            said.update(repr(None if part is None else (part.dtype.str, part.tolist())).encode())
    counts = (report.rows, report.kept, sorted(report.dropped.items()), report.truncated, report.truncated_rows,
              report.windows, report.tokens, report.targets, report.longest, report.notes)  # fmt: skip
    said.update(repr(counts).encode())
    return said.hexdigest()[:12]
