"""One label, several labels or one number for each row, from a fresh head over the whole text.

    focal loss   -(1 - p)^gamma log p, Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 4

Tensors: B rows, T positions, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr

from ftune.errors import Problem, RecipeError, suggestion
from ftune.metrics import names_of
from ftune.objectives import Encoding, Head, Objective
from ftune.objectives._padding import padded

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ftune.data.encode import Example
    from ftune.metrics import Score
    from ftune.objectives import Batch
    from ftune.objectives._answers import Answer

Weight = Annotated[float, Field(gt=0)]
_HEADS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
CONFUSION_CLASSES = 200
"""Classes up to which a report has the confusion matrix."""
_FORMATS = {"single_label": "classification", "multi_label": "multi_label", "regression": "regression"}


class SequenceClassification(Objective):
    """Cross-entropy, binary cross-entropy or squared error of what the head says of each row.

    `class_weights`, `label_smoothing` and `focal_gamma` shape training only: losses of held-out rows are plain, so that
    runs with different settings can be compared.
    """

    name: Literal["sequence_classification"] = "sequence_classification"

    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """Exactly one label, any number of labels, or a number."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that is spread over all labels; 0 to below 1."""
    class_weights: Literal["balanced"] | dict[str, Weight] | None = None
    """Weight of each label's rows; those that are not named have 1. `balanced` is rows / (labels x rows of the
    label)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Above 0, rows that are right already count less: focal loss."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    families: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder", "encoder_decoder"})
    encoding: ClassVar[Encoding] = "row_labels"

    _weights: tuple[float, ...] | None = PrivateAttr(default=None)

    @property
    def formats(self) -> frozenset[str]:
        """The one format of this problem."""
        return frozenset({_FORMATS[self.problem]})

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """Loss, and what suits the problem."""
        return ("loss", *names_of(self.problem))

    @property
    def has_answers(self) -> bool:
        """A label, labels or a number."""
        return True

    def problems(self) -> list[tuple[str, str]]:
        """Settings that mean nothing for this problem."""
        needs_one = f"has no effect on problem {self.problem}, it is for single_label. Remove it."
        fields = ("label_smoothing", "class_weights", "focal_gamma")
        return [(name, needs_one) for name in fields if getattr(self, name) and self.problem != "single_label"]

    def head(self, labels: tuple[str, ...], pad_id: int) -> Head:
        """One output for each label, or one number."""
        return Head(self.auto_class, labels, _HEADS[self.problem], pad_id)

    def bound(self, labels: Sequence[str], counts: Mapping[str, int]) -> Self:
        """Give each output its weight.

        Raises:
            RecipeError: a weight is for a label that no row has.
        """
        if self.class_weights is None:
            return self
        if self.class_weights == "balanced":
            rows = sum(counts.values())
            weights = [rows / (len(labels) * counts[label]) for label in labels]
        else:
            if unknown := sorted(set(self.class_weights) - set(labels)):
                message = f"no training row has the label '{unknown[0]}'.{suggestion(unknown[0], labels)}"
                raise RecipeError([Problem("objective.class_weights", message)])
            weights = [self.class_weights.get(label, 1.0) for label in labels]
        copy = self.model_copy()
        copy._weights = tuple(weights)
        return copy

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Pad to the longest example, or lay features side by side.

        Returns:
            `input_ids` and `attention_mask` [B, T], or `features` [B, ...]; and `labels` [B] or, of several, [B, K].
        """
        import numpy as np
        import torch

        labels = torch.from_numpy(np.stack([example.labels for example in examples if example.labels is not None]))
        labels = labels.long()[:, 0] if self.problem == "single_label" else labels
        if examples[0].features is not None:
            features = np.stack([np.asarray(example.features) for example in examples])
            return {"features": torch.from_numpy(features), "labels": labels}
        batch = padded(examples, pad_id, left)
        batch.pop("is_target", None)  # of the label, in case the row is as long
        return {**batch, "labels": labels}

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's loss in fp32, and 1, or for several labels their sum and number; both [B]."""
        sums, counts, _ = self.scored(model, batch)
        return sums, counts

    def scored(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, count, and the head's outputs [B, K] in fp32."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()  # [B, K]
        if self.problem == "single_label":
            sums = self._cross_entropy(logits, labels, model.training)
        elif self.problem == "multi_label":
            sums = binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)
        else:
            sums = mse_loss(logits, labels, reduction="none")[:, 0]
        each = labels.shape[1] if self.problem == "multi_label" else 1
        return sums, torch.full((len(logits),), each, device=logits.device), logits

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, training: bool) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        smoothing = self.label_smoothing if training else 0.0
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        if training and self.focal_gamma > 0:
            probability = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
            losses = losses * (1 - probability) ** self.focal_gamma
        if training and self._weights is not None:
            losses = losses * torch.tensor(self._weights, device=losses.device)[labels]
        return losses

    def task_scores(
        self,
        outputs: Sequence[np.ndarray],
        examples: Sequence[Example],
        labels: Sequence[str],
        metrics: Sequence[str],
        *,
        intervals: bool,
    ) -> dict[str, Score]:
        """Metrics of the problem."""
        from ftune.metrics.labels import multi_label, single_label
        from ftune.metrics.regression import regression

        scores, gold = _stacked(outputs, examples)
        if self.problem == "single_label":
            return single_label(scores, gold[:, 0], metrics, intervals=intervals)
        if self.problem == "multi_label":
            return multi_label(scores, gold, metrics, intervals=intervals)
        return regression(scores[:, 0], gold[:, 0], metrics, intervals=intervals)

    def answers(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> list[Answer]:
        """One label, several, or a number for each row."""
        from ftune.objectives import _answers

        scores, gold = _stacked(outputs, examples)
        if self.problem == "single_label":
            return _answers.one_label(scores, gold[:, 0], labels)
        if self.problem == "multi_label":
            return _answers.several_labels(scores, gold, labels)
        return _answers.numbers(scores[:, 0], gold[:, 0])

    def class_table(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> dict[str, Any]:
        """Counts of each label; which was taken for which, where there are not too many."""
        from ftune.metrics.labels import multi_label_table, single_label_table

        scores, gold = _stacked(outputs, examples)
        if self.problem == "single_label":
            table = single_label_table(scores, gold[:, 0], labels)
            return table if len(labels) <= CONFUSION_CLASSES else {"classes": table["classes"]}
        return multi_label_table(scores, gold, labels) if self.problem == "multi_label" else {}


def _stacked(outputs: Sequence[np.ndarray], examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """What the head said, [N, K], and what was expected, [N, 1] or [N, K]."""
    import numpy as np

    gold = [example.labels for example in examples if example.labels is not None]
    return np.stack(outputs), np.stack(gold)


OBJECTIVE = SequenceClassification
