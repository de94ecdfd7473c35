"""Base models as folders: as plain transformers writes them, with dropout, and briefly pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laws import BLOCKS, Shared, recipe, start_model, train

from ftune.load import Loaded

SENTENCES = [f"The {a} {b} the {c}." for a in ("cat", "dog", "old man", "sun") for b in ("saw", "met", "likes")
             for c in ("bird", "river", "small house")]  # fmt: skip


def plain_base(shared: Shared, family: str) -> Path:
    """The builtin base as a folder that plain transformers opens."""

    def fill(folder: Path) -> None:
        start_model(recipe(folder / "recipe", model=f"builtin:tiny-{family}")).save_pretrained(folder / "plain")

    return shared.make(f"base-{family}", fill) / "plain"


def noisy(
    folder: Path, shared: Shared, method: str, family: str, block: Mapping[str, Any] | None = None, **sections: Any
) -> Loaded:
    """A recipe with dropout: LoRA's own, or for other methods the base's. `block` is laid over the method's."""
    whole = {"name": method, **BLOCKS.get(method, {}), **(block or {})}
    if method == "lora":
        return recipe(folder, model=f"builtin:tiny-{family}", method={**whole, "dropout": 0.1}, **sections)
    return recipe(folder, model=str(noisy_base(shared, family)), method=whole, **sections)


def noisy_base(shared: Shared, family: str) -> Path:
    """The builtin model as a local folder, with dropout in its configuration."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from ftune import builtin

        config = builtin.config(family)
        rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if family == "gpt2" else ("attention_dropout",)
        for rate in rates:
            setattr(config, rate, 0.1)
        torch.manual_seed(builtin.SEED)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        builtin.tokenizer().save_pretrained(folder)

    return shared.make(f"noisy-{family}", fill)


def pretrained(shared: Shared, family: str) -> Path:
    """A model folder whose model has read some English."""

    def fill(folder: Path) -> None:
        loaded = recipe(
            folder,
            rows=[{"text": text} for text in SENTENCES],
            model=f"builtin:tiny-{family}",
            method="full",
            data={"template": None},
            train={"duration": "60 steps", "batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3},
            checkpoint={"every": 60},
        )
        report = train(loaded)
        assert report["steps"] == 60

    return shared.make(f"pretrained-{family}", fill) / "run" / "model"
