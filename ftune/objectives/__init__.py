"""The `Objective` interface, and lookup of objectives by file name.

An objective answers the other question: from what signal do the weights learn? It fixes the model's head, how rows
become examples, the loss, and which metrics are computed. Adding one is adding one file that defines `OBJECTIVE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from ftune.lookup import find, names_in

if TYPE_CHECKING:
    import torch

    from ftune.data.encode import Example

    Batch = dict[str, torch.Tensor]


class Objective(BaseModel):
    """Head, collation, loss and metrics. Fields are the objective's own settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    """The file in `ftune/objectives/` that defines the objective."""

    auto_class: ClassVar[str]
    """Name of the transformers auto class that builds the model with the right head."""
    formats: ClassVar[frozenset[str]]
    """Row formats it can learn from."""
    likelihood_metrics: ClassVar[tuple[str, ...]]
    """Metrics that one forward pass per batch yields."""
    generation_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that need generated text."""

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Lay `examples` out as one padded batch of B rows and T positions."""
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses of each row over its targets, and the number of its targets.

        A sum and a count, never a mean: the only form that composes over micro-batches, ranks and evaluation batches.

        Returns:
            Two float32 / int64 tensors of shape [B].
        """
        raise NotImplementedError


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
