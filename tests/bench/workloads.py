"""What everyone trains: two Llama shapes with random weights, a tokenizer of their own, and chats to learn.

`build` writes a folder once: the model as transformers saves it, and `rows.jsonl`, one chat of a question and an answer
a line. The text is that of the reference sets beside the checkout; where they are not, that of Python's own library.
Rows are cut so that their lengths are like those of instruction data: lognormal with median 120 tokens, 24 to 500.
"""

from __future__ import annotations

import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES = {
    "W1": {"vocab_size": 32000, "hidden_size": 384, "intermediate_size": 2560, "num_hidden_layers": 8,
           "num_attention_heads": 6, "num_key_value_heads": 6},
    "W2": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
           "num_attention_heads": 9, "num_key_value_heads": 3},
}  # fmt: skip
"""28 million parameters beside the embedding, and 135 million with it; the second is the shape of SmolLM2-135M."""
NUM_ROWS = 2000
LONGEST = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without a line break behind each turn: trainers differ in whether the last one belongs to the row."""


def texts(shared: Path) -> list[str]:
    """Plain text to cut rows from: questions with answers, policies and plays, or Python's library."""
    if (shared / "gsm8k").is_dir():
        return list(_reference_texts(shared))
    library = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(library.rglob("*.py")) if not {"site-packages", "test"} & set(f.parts)]
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files[:900]]


def _reference_texts(shared: Path) -> Iterator[str]:
    for line in (shared / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield f"{row['question']}\n{row['answer']}\n"
    for file in sorted([*(shared / "legal_site_policy").glob("*.md"), *(shared / "tiny_shakespeare").glob("*.txt")]):
        if file.stem not in ("SOURCE", "LICENSE"):
            yield file.read_text(encoding="utf-8")


def make_tokenizer(corpus: list[str], vocabulary: int) -> Any:
    """A byte-level BPE with ChatML; tokens that the text is too short for are filled up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, START, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(corpus, trainer)
    core.add_tokens([f"<extra_{i}>" for i in range(vocabulary - core.get_vocab_size())])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=PAD, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )  # fmt: skip


def make_rows(tokenizer: Any, corpus: list[str], count: int) -> Iterator[list[dict[str, str]]]:
    """Chats of one question and one answer, cut from anywhere in the text, none longer than `LONGEST` tokens."""
    rng = random.Random(1234)
    ids = [i for text in corpus for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    framing = len(_rendered(tokenizer, "", ""))
    while count:
        length = int(min(500, max(24, math.exp(rng.gauss(math.log(120), 0.8))))) - framing
        asked = max(4, int(length * rng.betavariate(2, 4)))
        answered = max(4, length - asked)
        start = rng.randrange(len(ids) - 600)
        prompt, answer = (
            tokenizer.decode(part).strip()
            for part in (ids[start : start + asked], ids[start + asked : start + asked + answered])
        )
        whole = prompt and answer and "\ufffd" not in prompt + answer
        if whole and len(_rendered(tokenizer, prompt, answer)) <= LONGEST:
            count -= 1
            yield [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _rendered(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    ids: list[int] = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    return ids


def build(name: str, folder: Path, shared: Path) -> Path:
    """Make the workload in `folder`, unless it is there.

    Args:
        name: of `SHAPES`.
        folder: for all workloads.
        shared: where the reference sets are, if anywhere.

    Returns:
        The folder with the model, its tokenizer and `rows.jsonl`.
    """
    made = folder / name
    if (made / "rows.jsonl").is_file():
        return made
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    corpus = texts(shared)
    tokenizer = make_tokenizer(corpus, SHAPES[name]["vocab_size"])
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[name], max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    lines = [json.dumps({"messages": chat}) + "\n" for chat in make_rows(tokenizer, corpus, NUM_ROWS)]
    (made / "rows.tmp").write_text("".join(lines), encoding="utf-8")
    (made / "rows.tmp").rename(made / "rows.jsonl")  # last, so that a folder with rows is whole
    return made


def read_rows(workload: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a workload."""
    with (workload / "rows.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def count_tokens(workload: Path, rows: list[dict[str, Any]]) -> int:
    """Tokens of the rows as the chat template renders them: what every trainer has to read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload)
    return sum(len(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]) for row in rows)
