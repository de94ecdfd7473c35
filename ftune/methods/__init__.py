"""The `Method` interface, and lookup of methods by file name.

A method answers one question: which weights learn? The block `method:` of a recipe *is* the object: its fields are
its hyper-parameters, its functions its behaviour. Adding a method is adding one file to this folder that defines
`METHOD`; nothing else is edited. A dotted name (`method: {name: my_package.my_method}`) finds code elsewhere.

torch, transformers and peft are imported inside functions only, so that `ftune check` stays cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from ftune.errors import NotMergeable
from ftune.lookup import find, names_in

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftune.data.encode import Example
    from ftune.objectives import Head, Objective

    Features = Callable[[Sequence[Example], tuple[int, ...], tuple[str, ...]], Mapping[str, np.ndarray]]
    """What a frozen model says of examples, for some layers and poolings; see `ftune.features.FeatureSource`."""

FAMILIES = ("decoder", "encoder", "encoder_decoder")
"""How a transformer is built; `ftune.model.family_of` reads it off a configuration."""


REFERENCE_WIDTH = 4096
"""Width of models of 7 to 8 billion parameters, for which most learning rates are published."""
TRIED_WIDTHS = (256, 8192)
"""Narrowest and widest models with a measured or published rate."""


class Method(BaseModel):
    """Which weights learn. Fields are the method's hyper-parameters.

    After `attach`, `requires_grad` is the single truth about what learns: the optimizer, the counts, the checkpoint
    and the report all read it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    """The file in `ftune/methods/` (or the dotted module) that defines the method."""

    objectives: ClassVar[frozenset[str]]
    """Names of the objectives it may be combined with."""
    learns: ClassVar[str]
    """One line for `ftune methods`: what learns."""
    paper: ClassVar[str] = ""
    """URL of the paper that introduced it."""
    mergeable: ClassVar[bool] = False
    """Whether its weights can be added into the base model's."""
    standalone: ClassVar[bool] = False
    """Whether `save` writes a whole model that needs no base model beside it."""
    own_base: ClassVar[str | None] = None
    """Folder inside the artefact with the base model, where `save` writes it beside what learned."""
    backpropagates: ClassVar[bool] = True
    """Whether gradients pass through the base model."""
    learning_rate: ClassVar[float]
    """Default learning rate of a model of `REFERENCE_WIDTH`, used when the recipe says `auto`."""
    learning_rate_power: ClassVar[float] = 0.0
    """How much higher a rate narrower models want, see `default_learning_rate`."""
    learning_rate_evidence: ClassVar[str]
    """Where that default comes from; the plan prints it."""

    @classmethod
    def default_learning_rate(cls, width: int) -> float:
        """`learning_rate` x (`REFERENCE_WIDTH` / width) ** `learning_rate_power`, to two digits.

        Beyond `TRIED_WIDTHS` the rate is that of the nearest of them. That a power of the width fits is Schulman and
        Thinking Machines Lab 2025, https://thinkingmachines.ai/blog/lora/, who fit 0.78 for Llama.

        Args:
            width: of the model's hidden states.
        """
        lowest, highest = TRIED_WIDTHS
        ratio = REFERENCE_WIDTH / min(max(width, lowest), highest)
        return float(f"{cls.learning_rate * ratio**cls.learning_rate_power:.1e}")

    @property
    def learner(self) -> Method:
        """The method that holds the weights: this one, unless it is a preset that is laid over another."""
        return self

    def accepts(self, formats: frozenset[str]) -> frozenset[str]:
        """Which of an objective's row formats it takes."""
        return formats

    def default_metrics(self, objective: Objective) -> tuple[str, ...]:
        """What `eval.metrics: auto` computes."""
        return objective.forward_metrics

    @classmethod
    def refusal(cls, objective: str, family: str) -> str | None:
        """Why an objective of `objectives` cannot be had on models of one of the `FAMILIES`, or None."""
        return None

    @property
    def positions_taken(self) -> int:
        """Positions of the model that virtual tokens take from the text."""
        return 0

    @property
    def identity_at_start(self) -> bool:
        """Whether `attach` leaves the model's function unchanged."""
        return True

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions between fields, as (field, message); an empty list when there are none."""
        return []

    def bound(self, objective: Objective) -> Self:
        """The same method once the objective is known; its `problems` may be more."""
        return self

    def dead_keys(self) -> dict[str, str]:
        """Dotted recipe keys that a bound method does not obey, with the reason."""
        return {}

    def base_head(self, head: Head) -> Head:
        """What the base model must end in, where the method puts something else there than the objective would."""
        return head

    def precision_constraint(self) -> str | None:
        """Why computation is in fp32 whatever the device prefers, or None."""
        return None

    def storage_constraint(self) -> str | None:
        """Why frozen weights must be kept in fp32 whatever the device prefers, or None."""
        return None

    def checkpointing_constraint(self) -> str | None:
        """Why activations cannot be recomputed in the backward pass, or None."""
        return None

    @property
    def layers_named(self) -> int:
        """How many layers a model must have for every layer that the settings name to be there."""
        return 0

    def packing_constraint(self) -> str | None:
        """Why rows cannot be laid end to end, or None."""
        return None

    @property
    def quantised_bits(self) -> float | None:
        """Bits that a weight of a quantised layer takes with its constants; None where nothing is quantised."""
        return None

    def quantised_parameters(self, model: PreTrainedModel) -> int:
        """Weights of `model` that are kept quantised."""
        return 0

    def load_options(self, compute_dtype: torch.dtype) -> dict[str, Any]:
        """Keywords for transformers' `from_pretrained` of the base model besides its `dtype`."""
        return {}

    def quantise(self, model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
        """Keep frozen weights in fewer bits, in place: right after loading, before they are cast."""

    def prepare(
        self,
        model: torch.nn.Module,
        batches: Iterable[dict[str, torch.Tensor]],
        run: Callable[[torch.nn.Module, dict[str, torch.Tensor]], object],
    ) -> None:
        """Look at training rows once, before the very first step; what learns may be set, its shapes stay.

        Args:
            model: what `attach` returned, on its device.
            batches: of the objective, on the same device, one epoch at most; may be left unread.
            run: one forward pass on a batch.
        """

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add what the method needs to the tokenizer, in place, before any row is encoded."""

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Add the method's weights to `model` and mark, by `requires_grad`, exactly what learns.

        Random initialisation draws from torch's global generator, which the caller has seeded.
        """
        raise NotImplementedError

    def skeleton(self) -> Method:
        """The same method with an initialisation that needs no weights, for counting on the meta device."""
        return self

    def learning_rate_factors(self, model: torch.nn.Module) -> dict[str, float]:
        """Names of parameters whose learning rate is a multiple of the recipe's, with that multiple."""
        return {}

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each layer that gets weights beside it, by name; empty where there are none."""
        return {}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """Closed form of the number of trainable parameters for targets of these shapes, where there is one."""
        return None

    def frozen_body(self, model: torch.nn.Module) -> PreTrainedModel | None:
        """The part of `model` that reads rows once, before training; None where rows stay tokens.

        A method that has one defines `settle`, `settled`, `put_back` and `featurise` too.
        """
        return None

    def settle(self, model: torch.nn.Module, examples: Sequence[Example], features: Features, seed: int) -> None:
        """Choose in `model`, before the first step, what the training rows decide."""
        raise NotImplementedError

    def settled(self, model: torch.nn.Module) -> dict[str, Any] | None:
        """What `settle` chose, as JSON: checkpoints keep it beside what learns. None where there is nothing."""
        return None

    def put_back(self, model: torch.nn.Module, settled: Mapping[str, Any]) -> None:
        """Put what `settled` told into a fresh model."""
        raise NotImplementedError

    def featurise(self, model: torch.nn.Module, examples: Sequence[Example], features: Features) -> list[Example]:
        """Examples with features in place of tokens."""
        raise NotImplementedError

    @property
    def fits_at_once(self) -> bool:
        """Whether a bound method is fitted by `fit` in one step instead of by the training loop."""
        return False

    def fit(self, model: torch.nn.Module, examples: Sequence[Example]) -> str | None:
        """Fit what learns to all training rows; returns a remark for the user, if there is one."""
        raise NotImplementedError

    def details(self, model: torch.nn.Module) -> dict[str, Any]:
        """What the report says of the method: numbers, words, lists of these, and tables as lists of dicts."""
        return {}

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the artefact in the ecosystem's own format into the existing, empty `folder`."""
        raise NotImplementedError

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put the artefact that `save` wrote onto a fresh base model.

        Raises:
            ArtifactError: a weight is missing, unexpected, or of another shape.
        """
        raise NotImplementedError

    def on_original_base(self) -> Method:
        """Of a method over quantised weights: the one that puts its artefact onto the base as it was published.

        Raises:
            NotMergeable: the artefact makes up for the quantisation.
        """
        return self

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Add the method's weights into the base model's and return a plain model.

        Raises:
            NotMergeable: the method's function is not one of the base model's weights.
        """
        raise NotMergeable(f"method {self.name}: its weights cannot be added into the base model's.")


def names() -> list[str]:
    """Names of the methods that ship with ftune, without importing any of them."""
    return names_in(__name__)


def load(name: str) -> type[Method]:
    """The method class called `name`.

    Raises:
        LookupError: no such method; the message lists those there are and the nearest.
    """
    return find(__name__, name, "METHOD", Method)


def parse(block: Any) -> type[Method]:
    """The class that a `method:` block asks for.

    Raises:
        LookupError: the block names no method or an unknown one.
    """
    name = block.get("name") if isinstance(block, dict) else block
    if not isinstance(name, str):
        raise LookupError(f"no method is named. Known: {', '.join(names())}.")
    return load(name)
