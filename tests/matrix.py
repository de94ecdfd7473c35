"""Every legal cell of method x objective x model family, as a recipe on a tiny random model.

A cell is legal when the method lists the objective and does not refuse it on the family, and transformers has the
class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laws import recipe

from ftune import methods, objectives
from ftune.load import Loaded

MODELS = {"llama": "decoder", "gpt2": "decoder", "qwen3": "decoder", "gemma3": "decoder", "bert": "encoder",
          "t5": "encoder_decoder", "bart": "encoder_decoder"}  # fmt: skip
NO_CLASS = {("token_classification", "gemma3"), ("token_classification", "bart")}
"""transformers 5.23 has no such class; `feature_based` needs none."""
BLOCKS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8},
    "qlora": {"rank": 4, "alpha": 8},
    "adapter": {"reduction_factor": 8},
    "prefix": {"length": 4},
    "prompt": {"length": 4},
    "feature_based": {"head": "linear"},
}
"""Settings that suit a tiny model."""
RATES = {"full": 1e-3, "domain": 1e-3, "task": 1e-3, "feature_based": 1e-2, "prompt": 3e-2, "prefix": 1e-1}
"""Rates at which a few steps show; 1e-2 for the others."""
LEARNING = {
    "full": r".+",
    "domain": r".+",
    "task": r".+",
    "lora": r".+\.(lora_A|lora_B)\.default\.weight",
    "feature_based": r"head\..+",
    "prefix": r".+\.prefix\.(keys|values)",
    "prompt": r".+\.soft_prompt\.weight",
    "ia3": r".+\.ia3_l\.default",
    "adapter": r".+\.adapter\.(down|up)\.(weight|bias)",
    "qlora": r".+\.(lora_A|lora_B)\.default\.weight",
}
"""Names of what learns besides a fresh head, by method. A new method states its own here."""
HEAD = r"(.+\.)?(score|classifier|classification_head|pooler)(\.modules_to_save\.default)?\..+"
WORDS = ["red", "green", "blue", "of", "the", "sea"]
TAGS = ["B-x", "O", "I-x", "O", "B-y"]


def _tagged(i: int) -> dict[str, Any]:
    words = WORDS[i % 3 : 2 + i % 4 + i % 3]
    return {"tokens": words, "tags": TAGS[: len(words)]}


_QUESTIONS = [(f"{i} + {3 * i}" + " =" * (i % 3), f"{4 * i}" + "!" * (i % 4)) for i in range(11)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": " ".join(WORDS[: 2 + i % 5]) + f" {i * 7}"} for i in range(11)],
    "prompt_completion": [{"prompt": question, "completion": answer} for question, answer in _QUESTIONS],
    "pairs": [{"source": question, "target": answer} for question, answer in _QUESTIONS],
    "classification": [
        {"text": f"{WORDS[i % 3]} {WORDS[i % 5]} " * (1 + i % 3), "label": WORDS[i % 3]} for i in range(11)
    ],
    "token_labels": [_tagged(i) for i in range(11)],
}
"""Eleven uneven rows of each format."""


@dataclass(frozen=True)
class Cell:
    """One legal combination."""

    method: str
    objective: str
    model: str

    def __str__(self) -> str:
        return f"{self.method}-{self.objective}-{self.model}"

    @property
    def format(self) -> str:
        """Row format that the cell learns from."""
        if self.objective == "masked_lm" or self.method == "domain":
            return "text"
        wanted = {"causal_lm": "prompt_completion", "seq2seq_lm": "pairs", "sequence_classification": "classification"}
        return wanted.get(self.objective, "token_labels")

    @property
    def template(self) -> str | None:
        """A plain prompt instead of the tokenizer's chat template."""
        return {"prompt_completion": "{{ prompt }} ", "pairs": "{{ source }} "}.get(self.format)

    def block(self, **fields: Any) -> dict[str, Any]:
        """`method:` of the recipe."""
        return {"name": self.method, **BLOCKS.get(self.method, {}), **fields}

    def recipe(self, folder: Path, *, fields: dict[str, Any] | None = None, **sections: Any) -> Loaded:
        """Five steps of four rows in two micro-batches; held out are the same rows."""
        train = {"learning_rate": RATES.get(self.method, 1e-2), **sections.pop("train", {})}
        return recipe(
            folder,
            rows=sections.pop("rows", ROWS[self.format]),
            model=sections.pop("model", f"builtin:tiny-{self.model}"),
            objective=self.objective,
            method=self.block(**(fields or {})),
            data={"eval": "rows.jsonl", "format": self.format, "template": self.template},
            train=train,
            **{"eval": {"every": 5}, "checkpoint": {"every": 5, "best": None}, **sections},
        )


def illegal(method: str, objective: str, model: str) -> str | None:
    """Why a combination is no cell, or None for a cell."""
    kind = methods.load(method)
    family = MODELS[model]
    if family not in objectives.load(objective).families:
        return f"{objective} is not for {family} models"
    if (objective, model) in NO_CLASS and method != "feature_based":
        return f"transformers has no {objective} class for {model}"
    if objective not in kind.objectives:
        return f"{method} does not learn from {objective}"
    return kind.refusal(objective, family)


def cells() -> list[Cell]:
    """All legal cells."""
    return [Cell(*names) for names in _combinations() if illegal(*names) is None]


def illegal_cells() -> list[tuple[str, str, str, str]]:
    """All others, each with the reason."""
    return [(*names, why) for names in _combinations() if (why := illegal(*names)) is not None]


def fast_cells() -> list[Cell]:
    """One model for each method and objective, another family for each method; the others are for `make e2e`."""
    chosen: dict[tuple[str, str], Cell] = {}
    for number, method in enumerate(methods.names()):
        for objective in objectives.names():
            fitting = [cell for cell in cells() if (cell.method, cell.objective) == (method, objective)]
            if fitting:
                chosen[method, objective] = fitting[number % len(fitting)]
    return list(chosen.values())


def _combinations() -> Iterator[tuple[str, str, str]]:
    for method in methods.names():
        for objective in objectives.names():
            for model in MODELS:
                yield method, objective, model


def outputs(model: Any, cell: Cell) -> Any:
    """Logits in evaluation mode on three rows of bytes; encoder-decoders' rows end in EOS, where their heads look."""
    import torch

    ids = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(7))
    family = MODELS[cell.model]
    if family == "encoder_decoder":
        ids[:, -1] = 258
    more = {"decoder_input_ids": ids[:, :9]} if cell.objective == "seq2seq_lm" else {}
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
    model.train(training)
    return found


def without_head(names: set[str]) -> set[str]:
    """Names that are not of a classification head."""
    import re

    return {name for name in names if not re.fullmatch(HEAD, name)}
