"""Continued pre-training on raw text of a domain: a preset over any other method.

Gururangan et al. 2020, https://arxiv.org/abs/2004.10964: the objective of pretraining, the text of the domain. Every
token is trained once an epoch; general text may be mixed in (`weight` of a source), and `eval.guard` shows what the
model forgot of it. The result is a model like its base, ready for `task`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ftune.methods._preset import Preset


class Domain(Preset):
    """Raw text of a domain, with the weights of another method."""

    name: Literal["domain"] = "domain"

    objectives: ClassVar[frozenset[str]] = frozenset({"causal_lm", "masked_lm", "seq2seq_lm"})
    learns: ClassVar[str] = "every weight (or those of `weights`), from raw text"
    paper: ClassVar[str] = "https://arxiv.org/abs/2004.10964"

    def accepts(self, formats: frozenset[str]) -> frozenset[str]:
        """Raw text only."""
        return formats & {"text"}


METHOD = Domain
