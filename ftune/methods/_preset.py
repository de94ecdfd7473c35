"""What `domain` and `task` share: they say what is learned from, and leave the weights to another method."""

from __future__ import annotations

from typing import ClassVar

from pydantic import SerializeAsAny

from ftune.methods import Method
from ftune.methods.full import Full


class Preset(Method):
    """A name for a common use of any other method."""

    weights: SerializeAsAny[Method] = Full()
    """The method that says which weights learn, such as `lora` or a block of it."""

    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = Full.learning_rate
    learning_rate_power: ClassVar[float] = Full.learning_rate_power
    learning_rate_evidence: ClassVar[str] = Full.learning_rate_evidence

    @property
    def learner(self) -> Method:
        """What holds the weights."""
        return self.weights.learner
