"""Continued pre-training on raw text of a domain: a preset over any other method.

Gururangan et al. 2020, https://arxiv.org/abs/2004.10964: the objective of pretraining, the text of the domain. Every
token is trained once an epoch; general text may be mixed in (`weight` of a source), and `eval.guard` shows what the
model forgot of it. The result is a model like its base, ready for `task`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import SerializeAsAny

from ftune.methods import Method
from ftune.methods.full import Full


class Domain(Method):
    """Raw text of a domain, with the weights of another method."""

    name: Literal["domain"] = "domain"

    weights: SerializeAsAny[Method] = Full()
    """The method that says which weights learn, such as `lora` or a block of it."""

    objectives: ClassVar[frozenset[str]] = frozenset({"causal_lm", "masked_lm", "seq2seq_lm"})
    learns: ClassVar[str] = "every weight (or those of `weights`), from raw text"
    paper: ClassVar[str] = "https://arxiv.org/abs/2004.10964"
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = Full.learning_rate
    learning_rate_evidence: ClassVar[str] = Full.learning_rate_evidence

    @property
    def learner(self) -> Method:
        """What holds the weights."""
        return self.weights.learner

    def accepts(self, formats: frozenset[str]) -> frozenset[str]:
        """Raw text only."""
        return formats & {"text"}


METHOD = Domain
