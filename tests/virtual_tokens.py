"""What the tests of `prefix` and `prompt` share: rows with pads on either side, and artefacts in plain peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tiny_models import HEADS, model

from ftune import builtin
from ftune.methods import Method

CELLS = [
    ("causal", "llama"), ("causal", "gpt2"), ("causal", "qwen3"), ("causal", "gemma3"),
    ("sequence", "llama"), ("sequence", "gpt2"), ("sequence", "bert"), ("sequence", "t5"), ("sequence", "bart"),
    ("token", "llama"), ("token", "bert"), ("token", "t5"),
    ("seq2seq", "t5"), ("seq2seq", "bart"),
]  # fmt: skip
GENERATING = [cell for cell in CELLS if cell[0] in ("causal", "seq2seq")]
LENGTHS = (5, 9, 14)
"""Of the rows, in tokens."""
PAD, END = 256, 258

_SMALL = {
    "vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "pad_token_id": PAD, "bos_token_id": 257, "eos_token_id": END, "max_position_embeddings": 128,
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("causal", {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),  # the head goes around the body
    "mistral": ("causal", {**_SMALL, "num_key_value_heads": 2, "sliding_window": 24}),
    "gemma2": ("causal", {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}),  # attention that is plain on purpose
    "roberta": ("sequence", {**_SMALL, "pad_token_id": 1}),  # positions count from behind the pad's id
    "electra": ("token", {**_SMALL, "embedding_size": 32}),
    "albert": ("sequence", {**_SMALL, "embedding_size": 16}),  # one layer that runs twice
    "modernbert": ("sequence", {**_SMALL, "classifier_pooling": "mean", "cls_token_id": 257, "sep_token_id": END}),
}
"""Architectures that have surprises, by their name in transformers."""


def other(kind: str) -> Any:
    """A tiny frozen model of one of the `OTHERS`."""
    import transformers

    head, settings = OTHERS[kind]
    config = transformers.AutoConfig.for_model(kind, **settings)
    config.num_labels = 5
    torch.manual_seed(0)
    return getattr(transformers, HEADS[head]).from_config(config).eval().requires_grad_(False)


def rows(head: str, family: str, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    """Rows of bytes; those of classifiers end in EOS, where T5 and BART read."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randint(0, 250, (length,), generator=generator) for length in lengths]
    for row in found:
        if head == "sequence":
            row[-1] = END
    return found


def padded(found: list[torch.Tensor], *, left: bool, pad: int = PAD) -> dict[str, torch.Tensor]:
    """The rows as one batch."""
    longest = max(len(row) for row in found)
    ids = torch.full((len(found), longest), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(found):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, columns], mask[i, columns] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def positions(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch with positions that do not count pads."""
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


def answers(head: str) -> dict[str, torch.Tensor]:
    """What the decoder of an encoder-decoder reads, for three rows."""
    if head != "seq2seq":
        return {}
    return {"decoder_input_ids": torch.randint(0, 250, (3, 6), generator=torch.Generator().manual_seed(2))}


def by_row(built: Any, head: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each row without those at pads."""
    with torch.no_grad():
        logits = built(**inputs, **answers(head)).logits
    mask = inputs["attention_mask"].bool()
    assert head not in ("causal", "token") or logits.shape[:2] == mask.shape
    return [row if head in ("sequence", "seq2seq") else row[keep] for row, keep in zip(logits, mask, strict=True)]


def alone(built: Any, head: str, found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each row in a batch of its own."""
    logits = []
    with torch.no_grad():
        for i, row in enumerate(found):
            own = {name: value[i : i + 1] for name, value in answers(head).items()}
            logits.append(built(input_ids=row[None], attention_mask=torch.ones(1, len(row)).long(), **own).logits[0])
    return logits


def furthest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest absolute difference over all rows."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def attached(method: Method, head: str, family: str, seed: int = 5, **settings: Any) -> Any:
    """A tiny model with the method, whose start is drawn from `seed`; what learns has moved a little from there."""
    built = model(head, family, **settings)
    torch.manual_seed(seed)
    built = method.attach(built, builtin.tokenizer())
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


def learning(built: Any) -> dict[str, torch.Tensor]:
    """What learns, by name."""
    return {name: parameter for name, parameter in built.named_parameters() if parameter.requires_grad}


def gradients(built: Any, head: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a loss over all logits, in training mode, without a cache."""
    built.train().zero_grad()
    logits = built(**inputs, **answers(head), **({} if head == "token" else {"use_cache": False})).logits
    logits.log_softmax(dim=-1)[..., 1].mean().backward()
    built.eval()
    return {name: parameter.grad.clone() for name, parameter in learning(built).items()}


def greedy(
    built: Any, head: str, inputs: dict[str, torch.Tensor], *, use_cache: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, 8] of new tokens, each the most likely, and the logits [B, 8, V] they were chosen by."""
    found = built.generate(
        **inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=PAD, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    known = inputs["input_ids"].shape[1] if head == "causal" else 1
    assert found.sequences.shape == (len(inputs["input_ids"]), known + 8)
    assert head != "causal" or torch.equal(found.sequences[:, :known], inputs["input_ids"])
    return found.sequences[:, known:], torch.stack(found.logits, dim=1)


def assert_same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The same tokens, chosen by the same logits: tiny encoder-decoders repeat one token whatever they read."""
    assert torch.equal(one[0], other[0])
    assert float((one[1] - other[1]).abs().max()) < 1e-5


def in_peft(folder: Path, head: str, family: str, **settings: Any) -> Any:
    """What plain peft reads from an artefact, on a fresh base with another head."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model(head, family, seed=9, **settings), str(folder)).eval()
