"""Full fine-tuning: every weight of the model learns, and a new head of labels learns faster than the rest.

Rates that differ by layer are Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, cast

from pydantic import Field, PrivateAttr

from ftune import objectives, targets
from ftune.methods import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftune.objectives import Objective


class Full(Method):
    """Every weight learns; the artefact is a plain transformers folder."""

    name: Literal["full"] = "full"
    head_learning_rate_ratio: Annotated[float, Field(gt=0)] = 10.0
    """How many times faster a head of labels learns, which begins at random beside weights that know something."""

    objectives: ClassVar[frozenset[str]] = frozenset(objectives.names())
    learns: ClassVar[str] = "every weight"
    standalone: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_power: ClassVar[float] = 1.0
    learning_rate_evidence: ClassVar[str] = (
        "peft's comparison has 1e-5 for 3B parameters, Llama 2 has 2e-5 for 7B; narrower models in docs/methods.md"
    )

    _objective: Objective | None = PrivateAttr(default=None)

    def bound(self, objective: Objective) -> Self:
        """The same method once it is known whether there is a new head."""
        copy = self.model_copy()
        copy._objective = objective
        return copy

    def dead_keys(self) -> dict[str, str]:
        """The head's ratio, where the head is a language model's own."""
        if self._objective is None or self._objective.encoding in ("row_labels", "token_labels"):
            return {}
        return {"method.head_learning_rate_ratio": f"{self._objective.name} puts no new head on the model"}

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Let every parameter learn."""
        model.requires_grad_(True)
        return cast("torch.nn.Module", model)

    def learning_rate_factors(self, model: torch.nn.Module) -> dict[str, float]:
        """The head's parameters, with the ratio; none for language models, whose head is pretrained."""
        heads = tuple(f"{name}." for name in targets.head_modules(cast("PreTrainedModel", model)))
        names = [name for name, _ in model.named_parameters() if heads and name.startswith(heads)]
        return dict.fromkeys(names, self.head_learning_rate_ratio)

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
