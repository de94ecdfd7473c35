"""The `Objective` interface, and lookup of objectives by file name.

An objective answers the other question: from what signal do the weights learn? It fixes the model's head, how rows
become examples, the loss, and which metrics are computed. Adding one is adding one file that defines `OBJECTIVE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from ftune.errors import suggestion
from ftune.hook import is_hook
from ftune.lookup import find, names_in
from ftune.metrics import names_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from ftune.data.encode import Example
    from ftune.data.order import Draw
    from ftune.metrics import Score
    from ftune.objectives._answers import Answer

    Batch = dict[str, torch.Tensor]

Encoding = Literal["next_token", "hidden_tokens", "pairs", "row_labels", "token_labels"]
"""How rows become examples, see `ftune.data.build`."""
TEXT_METRICS = names_of("text")
"""Metrics that compare generated text with what was expected."""


@dataclass(frozen=True)
class Head:
    """What a model must end in.

    Args:
        auto_class: name of the transformers auto class.
        labels: names of the outputs of a classification head; empty for language models and regression.
        problem: transformers' `problem_type` of a head that scores whole rows.
        pad_id: id that fills short rows, for heads that look for the last token.
    """

    auto_class: str
    labels: tuple[str, ...] = ()
    problem: str | None = None
    pad_id: int = 0

    @property
    def fresh(self) -> bool:
        """Whether the head is new: a pretrained model does not bring it."""
        return bool(self.labels) or self.problem is not None


class Objective(BaseModel):
    """Head, collation, loss and metrics. Fields are the objective's own settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    """The file in `ftune/objectives/` that defines the objective."""

    auto_class: ClassVar[str]
    """Name of the transformers auto class that builds the model with the right head."""
    families: ClassVar[frozenset[str]]
    """Families of models it is for, of `ftune.methods.FAMILIES`."""
    encoding: ClassVar[Encoding]
    """How rows become examples."""
    generation_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that need generated text."""
    predicts_tokens: ClassVar[bool] = False
    """Whether the head has an output for each token of the vocabulary."""

    _chunk: int | None = PrivateAttr(default=None)

    @property
    def formats(self) -> frozenset[str]:
        """Row formats it can learn from."""
        raise NotImplementedError

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """Metrics that one forward pass per batch yields."""
        raise NotImplementedError

    @property
    def has_answers(self) -> bool:
        """Whether answers can be compared with what was expected, by a function of the user's own."""
        return bool(self.generation_metrics)

    def generates(self, metrics: Sequence[str]) -> bool:
        """Whether one of `metrics` needs generated text."""
        return any(name in self.generation_metrics or is_hook(name) for name in metrics if self.generation_metrics)

    def metric_problem(self, name: str, besides: Sequence[str] = ()) -> str | None:
        """Why `name` is no metric of this objective, nor one of those `besides`, or None."""
        known = (*self.forward_metrics, *besides, *self.generation_metrics)
        if name in known:
            return None
        if not is_hook(name):
            return f"{name!r} is no metric of {self.name}.{suggestion(name, known)}"
        if not self.has_answers:
            return f"{name!r} compares answers, and {self.name} gives none. Known: {', '.join(known)}."
        return None

    @property
    def label_at(self) -> Literal["first", "last"]:
        """Which token of a word has the word's label, where words have labels."""
        return "first"

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions between fields, as (field, message); an empty list when there are none."""
        return []

    def head(self, labels: tuple[str, ...], pad_id: int) -> Head:
        """What the model must end in."""
        return Head(self.auto_class, labels, pad_id=pad_id)

    def bound(self, labels: Sequence[str], counts: Mapping[str, int]) -> Self:
        """The same objective once the labels of the training rows, and how often each occurs, are known."""
        return self

    def in_chunks(self, chunk: int | None) -> Self:
        """The same objective with logits of so many targets at once; None makes those of all tokens.

        Only where `predicts_tokens`, and only on models that `ftune.loss_trial` does not refuse.
        """
        copy = self.model_copy()
        copy._chunk = chunk
        return copy

    def drawer(self, tokenizer: PreTrainedTokenizerBase) -> Draw | None:
        """What hides part of an example anew in each epoch, or None where nothing is hidden.

        Raises:
            RecipeError: the tokenizer lacks the tokens that stand for what is hidden.
        """
        return None

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Lay `examples` out as one padded batch of B rows and T positions."""
        raise NotImplementedError

    packs: ClassVar[bool] = False
    """Whether `loss` understands the rows of `collate_packed`."""

    def collate_packed(self, examples: list[Example]) -> Batch:
        """Lay `examples` end to end, without pads. Only where `packs` is true."""
        from ftune.objectives._packed import end_to_end

        return end_to_end(examples)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses of each row over its targets, and the number of its targets.

        A sum and a count, never a mean: the only form that composes over micro-batches, ranks and evaluation batches.

        Returns:
            Two float32 / int64 tensors of shape [B].
        """
        raise NotImplementedError

    def scored(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Like `loss`, with what the model said of each row, [B, ...], for `task_scores`."""
        return (*self.loss(model, batch), None)

    def task_scores(
        self,
        outputs: Sequence[np.ndarray],
        examples: Sequence[Example],
        labels: Sequence[str],
        metrics: Sequence[str],
        *,
        intervals: bool,
    ) -> dict[str, Score]:
        """Metrics beside the loss from the `outputs` of `scored`, one array for each example."""
        return {}

    def answers(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> list[Answer]:
        """What the head said of each example, from the same `outputs`; none where there is no head."""
        return []

    def class_table(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> dict[str, Any]:
        """What happened to each label, for JSON: `classes` and perhaps `confusion`, as in `ftune.metrics.labels`."""
        return {}


def names() -> list[str]:
    """Names of the objectives that ship with ftune, without importing any of them."""
    return names_in(__name__)


def load(name: str) -> type[Objective]:
    """The objective class called `name`.

    Raises:
        LookupError: no such objective; the message lists those there are and the nearest.
    """
    return find(__name__, name, "OBJECTIVE", Objective)


def parse(block: Any) -> type[Objective]:
    """The class that an `objective:` block asks for.

    Raises:
        LookupError: the block names no objective or an unknown one.
    """
    name = block.get("name") if isinstance(block, dict) else block
    if not isinstance(name, str):
        raise LookupError(f"no objective is named. Known: {', '.join(names())}.")
    return load(name)
