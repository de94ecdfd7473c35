"""One label for each word, such as named entities in BIO tags.

Tensors: B rows, T positions, K labels, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftune.cross_entropy import sums_of_rows
from ftune.metrics import names_of
from ftune.objectives import Encoding, Head, Objective
from ftune.objectives._packed import packed_losses
from ftune.objectives._padding import padded

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ftune.data.encode import Example
    from ftune.metrics import Score
    from ftune.objectives import Batch
    from ftune.objectives._answers import Answer


class TokenClassification(Objective):
    """Cross-entropy of the label of each word, read at one of the word's tokens."""

    name: Literal["token_classification"] = "token_classification"

    align: Literal["first", "last"] = "first"
    """Which token of a word has its label; decoders, which read from left to right, know more at the last."""

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    families: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder", "encoder_decoder"})
    packs: ClassVar[bool] = True
    encoding: ClassVar[Encoding] = "token_labels"

    @property
    def formats(self) -> frozenset[str]:
        """Words with tags."""
        return frozenset({"token_labels"})

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """Loss per word, spans that are right to the last token, and words."""
        return ("loss", *names_of("token_labels"))

    @property
    def has_answers(self) -> bool:
        """A label for each word."""
        return True

    @property
    def label_at(self) -> Literal["first", "last"]:
        """As the recipe says."""
        return self.align

    def head(self, labels: tuple[str, ...], pad_id: int) -> Head:
        """One output for each label at each position."""
        return Head(self.auto_class, labels, None, pad_id)

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Pad to the longest example, or lay features side by side.

        Returns:
            `input_ids` and `attention_mask` [B, T], or `features` [B, T, D]; and `labels` int64 and `is_target` bool,
            both [B, T].
        """
        import numpy as np
        import torch

        labels = padded(examples, 0, left, of="labels")
        batch = {"labels": labels["input_ids"], "is_target": labels["is_target"]}
        if examples[0].features is not None:
            width = np.asarray(examples[0].features).shape[-1]
            features = torch.zeros((*batch["labels"].shape, width))
            features[labels["attention_mask"].bool()] = torch.from_numpy(
                np.concatenate([np.asarray(example.features) for example in examples])
            )
            return {**batch, "features": features}
        return {**padded(examples, pad_id, left), **batch}

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of -log p(label) over each row's words, in fp32, and their number; both [B]."""
        if "lengths" in batch:
            return packed_losses(model, batch, ahead=0)
        sums, counts, _ = self.scored(model, batch)
        return sums, counts

    def scored(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, count, and the most likely label of each position, int64 [B, T]."""
        import torch
        from torch.nn.functional import cross_entropy

        is_target = batch["is_target"]
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "is_target")}
        logits = model(**inputs).logits.float()  # [B, T, K]
        rows = is_target.nonzero()[:, 0]  # [N]
        losses = cross_entropy(logits[is_target], batch["labels"][is_target], reduction="none")  # [N]
        sums = sums_of_rows(losses, rows, len(is_target))
        chosen = torch.where(is_target, logits.argmax(dim=-1), -1)  # pads tell which positions are words
        return sums, is_target.sum(dim=1), chosen

    def task_scores(
        self,
        outputs: Sequence[np.ndarray],
        examples: Sequence[Example],
        labels: Sequence[str],
        metrics: Sequence[str],
        *,
        intervals: bool,
    ) -> dict[str, Score]:
        """Spans and words; of labels that are no BIO tags, such as parts of speech, words only."""
        from ftune.metrics.spans import not_bio, spans

        if not_bio(labels):
            metrics = [name for name in metrics if not name.startswith("span_")]
        return spans(*_named(outputs, examples, labels), metrics, intervals=intervals)

    def answers(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> list[Answer]:
        """The label of each word that has a token of its own."""
        from ftune.objectives._answers import word_labels

        return word_labels(*_named(outputs, examples, labels))

    def class_table(
        self, outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
    ) -> dict[str, Any]:
        """Counts of the spans of each type; nothing for labels that are no BIO tags."""
        from ftune.metrics.spans import not_bio, span_table

        return {} if not_bio(labels) else span_table(*_named(outputs, examples, labels))


def _named(
    outputs: Sequence[np.ndarray], examples: Sequence[Example], labels: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Predicted and true labels of the words of each row."""
    predicted = [[labels[i] for i in row[row >= 0]] for row in outputs]
    gold = [[labels[i] for i in e.labels[e.is_target]] for e in examples if e.labels is not None]
    return predicted, gold


OBJECTIVE = TokenClassification
