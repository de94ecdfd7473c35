"""Full fine-tuning: every weight of the model learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from ftune import objectives
from ftune.methods import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Full(Method):
    """Every weight learns; the artefact is a plain transformers folder."""

    name: Literal["full"] = "full"

    objectives: ClassVar[frozenset[str]] = frozenset(objectives.names())
    learns: ClassVar[str] = "every weight"
    standalone: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_power: ClassVar[float] = 1.0
    learning_rate_evidence: ClassVar[str] = (
        "peft's comparison has 1e-5 for 3B parameters, Llama 2 has 2e-5 for 7B; narrower models in docs/methods.md"
    )

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Let every parameter learn."""
        model.requires_grad_(True)
        return cast("torch.nn.Module", model)

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a plain transformers folder."""
        cast("PreTrainedModel", model).save_pretrained(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """The folder is itself a model: the caller has loaded it as the base."""
        return cast("torch.nn.Module", model)

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Nothing to add: the weights are already plain."""
        return cast("PreTrainedModel", model)


METHOD = Full
