"""Full fine-tuning: every weight of the model learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ftune.methods import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Full(Method):
    """Every weight learns; the artefact is a plain transformers folder."""

    name: Literal["full"] = "full"

    objectives: ClassVar[frozenset[str]] = frozenset({"causal_lm"})
    learns: ClassVar[str] = "every weight"
    standalone: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_evidence: ClassVar[str] = "full tuning of pretrained models: 1e-5 to 2e-5 in peft's method comparison"

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Let every parameter learn."""
        return model.requires_grad_(True)

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a plain transformers folder."""
        model.save_pretrained(folder)  # type: ignore[operator]

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """The folder is itself a model: the caller has loaded it as the base."""
        return model

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Nothing to add: the weights are already plain."""
        return model  # type: ignore[return-value]


METHOD = Full
