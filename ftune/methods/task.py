"""One task, from labelled or paired rows, with a fresh head where the task has labels: a preset over any other method.

Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, and Devlin et al. 2019, https://arxiv.org/abs/1810.04805,
section 3.2. Metrics of the task are computed by default: of labels as training goes, of written answers at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ftune.methods._preset import Preset

if TYPE_CHECKING:
    from ftune.objectives import Objective


class Task(Preset):
    """Rows of one task, with the weights of another method."""

    name: Literal["task"] = "task"

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"sequence_classification", "token_classification", "seq2seq_lm", "causal_lm"}
    )
    learns: ClassVar[str] = "every weight (or those of `weights`) and a fresh head, from labelled or paired rows"
    paper: ClassVar[str] = "https://arxiv.org/abs/1801.06146"

    def accepts(self, formats: frozenset[str]) -> frozenset[str]:
        """Rows that say what is wanted; raw text does not."""
        return formats - {"text"}

    def default_metrics(self, objective: Objective) -> tuple[str, ...]:
        """Of the answers too, where the task is to write."""
        written = [name for name in objective.generation_metrics if name != "numeric_match"]  # few answers are numbers
        return (*objective.forward_metrics, *written)


METHOD = Task
