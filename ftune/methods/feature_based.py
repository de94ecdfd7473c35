"""A head on the features of a frozen body: the body reads each row once, and the head learns from what it said.

    logits = head((pool(body(text)) - mean) / deviation)

Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805, call it the feature-based approach. The head is
logistic regression (scikit-learn, one step), a linear layer, or a network with one hidden layer; mean and deviation are
those of the training rows. The artefact is one folder with body and head; two lines load it:

    from ftune.methods.feature_based import load_features_model
    model = load_features_model("runs/x/model")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, PrivateAttr

from ftune.errors import NotMergeable, Problem, RecipeError
from ftune.methods import Method, _probe
from ftune.methods._feature_folder import BODY, load_features_model, put_head, write
from ftune.methods._feature_model import POOLINGS, TOKEN, Reading, build, build_head, num_layers_of, width_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftune.data.encode import Example
    from ftune.methods import Features
    from ftune.objectives import Head, Objective

__all__ = ["METHOD", "FeatureBased", "load_features_model"]
OF_STEPS = (
    "train.duration", "train.max_minutes", "train.learning_rate", "train.optimizer", "train.schedule", "train.warmup",
    "train.weight_decay", "train.max_grad_norm", "train.early_stopping",
)  # fmt: skip
"""Keys that a fit without steps does not obey."""
OF_LOSS = ("objective.label_smoothing", "objective.focal_gamma")
"""Keys that scikit-learn's loss does not obey."""


class FeatureBased(Method):
    """A head on cached features; the body stays frozen and is run once."""

    name: Literal["feature_based"] = "feature_based"

    head: Literal["auto", "logistic", "linear", "mlp"] = "auto"
    """`logistic` is fitted by scikit-learn in one step, for one label of a row or token; `linear` and `mlp` (one hidden
    layer) learn in steps. `auto` is logistic for single_label, else linear."""
    layer: int | Literal["sweep"] | Annotated[list[int], Field(min_length=1)] = -1
    """Hidden state to read: 0 is the embeddings, -1 the last; several are laid side by side. `sweep` tries all and
    takes the best on a held-out fifth of the training rows."""
    pooling: Literal["mean", "last", "first", "max", "sweep"] = "mean"
    """How the tokens of a row become one vector, without pads: mean, last or first token, largest value, or `sweep`."""
    normalise: bool = True
    """Subtract the training rows' mean from each feature and divide by their deviation."""
    regularisation: Annotated[float, Field(gt=0)] = 1.0
    """Of logistic: factor of |W|^2 / 2 beside the sum of the rows' losses; scikit-learn's C is 1 / regularisation. > 0;
    higher keeps weights smaller."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Of mlp: size of the hidden layer; null is the number of features."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of linear and mlp: probability of dropping a feature, or a hidden value, in training; 0 to below 1."""

    objectives: ClassVar[frozenset[str]] = frozenset({"sequence_classification", "token_classification"})
    learns: ClassVar[str] = "a head on features that the frozen model computes once"
    paper: ClassVar[str] = "https://arxiv.org/abs/1810.04805"
    own_base: ClassVar[str | None] = BODY
    backpropagates: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 3e-3
    learning_rate_evidence: ClassVar[str] = (
        "least held-out loss of 3e-4 to 1e-2, linear and mlp, on banking77 with MiniLM; see docs/methods.md"
    )

    _objective: Objective | None = PrivateAttr(default=None)

    def problems(self) -> list[tuple[str, str]]:
        """Fields of another head; and, once bound, what the objective does not allow."""
        found = []
        if self.hidden is not None and self.head != "mlp":
            found.append(("hidden", f"is the hidden layer of head mlp, and head is {self.head}. Remove it."))
        if self.dropout and self._kind == "logistic":
            found.append(("dropout", "is for heads that learn in steps; logistic is fitted at once. Remove it."))
        if isinstance(self.layer, list) and len(set(self.layer)) < len(self.layer):
            found.append(("layer", f"names a hidden state twice: {self.layer}. Remove one."))
        if self._objective is not None and self._kind == "logistic" and self._problem in ("multi_label", "regression"):
            found.append(("head", f"logistic is for one label, not for {self._problem}. Take linear or mlp."))
        return found

    def bound(self, objective: Objective) -> Self:
        """The same method once it is known what the head says."""
        copy = self.model_copy()
        copy._objective = objective
        return copy

    def dead_keys(self) -> dict[str, str]:
        """Keys of training steps beside logistic, and of pooling where each token has its features."""
        dead = {"method.pooling": "tokens are not pooled"} if self._per_token else {}
        if self._kind == "logistic":
            return dead | dict.fromkeys((*OF_STEPS, *OF_LOSS), "head logistic is fitted at once, by scikit-learn")
        return dead | {"method.regularisation": f"head {self._kind} has train.weight_decay instead"}

    @property
    def fits_at_once(self) -> bool:
        """True of logistic."""
        return self._kind == "logistic"

    @property
    def identity_at_start(self) -> bool:
        """There is no function before the head is there."""
        return False

    @property
    def _problem(self) -> str | None:
        return getattr(self._objective, "problem", None)

    @property
    def _per_token(self) -> bool:
        return self._objective is not None and self._objective.encoding == "token_labels"

    @property
    def _kind(self) -> str:
        """The head once `auto` is decided, or `auto` before the method is bound."""
        if self.head != "auto" or self._objective is None:
            return self.head
        return "logistic" if self._problem == "single_label" else "linear"

    def base_head(self, head: Head) -> Head:
        """The bare body; labels stay in its configuration."""
        return replace(head, auto_class="AutoModel")

    def precision_constraint(self) -> str | None:
        """Features are computed once and kept."""
        return "features are computed once and kept, in full precision"

    @property
    def layers_named(self) -> int:
        """Hidden state n comes from layer n; state -n needs n - 1 layers."""
        return max(number if number >= 0 else -number - 1 for number in self._wanted)

    def packing_constraint(self) -> str | None:
        """The body reads each row by itself."""
        return "method feature_based trains on features, not on tokens"

    def checkpointing_constraint(self) -> str | None:
        """Nothing is saved for a backward pass."""
        return "no gradient passes through the frozen model, so there is nothing to recompute"

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze the body and put a fresh head on it; a logistic head starts at zero.

        Raises:
            RecipeError: the body has no such hidden state.
        """
        import torch

        if self._objective is None:
            raise AssertionError("bind the method to an objective first")
        reading = Reading(self._layers(num_layers_of(model)), self._poolings[0])
        width = len(reading.layers) * width_of(model)
        hidden = (self.hidden or width) if self._kind == "mlp" else None
        head = build_head(width, int(model.config.num_labels), hidden, self.dropout)
        if self._kind == "logistic":
            for parameter in head.parameters():
                torch.nn.init.zeros_(parameter)
        return cast("torch.nn.Module", build(model, head, reading))

    @property
    def _wanted(self) -> list[int]:
        return [-1] if self.layer == "sweep" else self.layer if isinstance(self.layer, list) else [self.layer]

    def _layers(self, last: int) -> tuple[int, ...]:
        """Numbers of the hidden states to read, before a sweep has chosen one.

        Raises:
            RecipeError: there is no such hidden state.
        """
        wanted = self._wanted
        if beyond := [number for number in wanted if not -last - 1 <= number <= last]:
            message = f"there is no hidden state {beyond[0]}: the model has {last} layers, so 0 to {last}, or -1 back."
            raise RecipeError([Problem("method.layer", message)])
        layers = tuple(number % (last + 1) for number in wanted)
        if len(set(layers)) < len(layers):
            raise RecipeError([Problem("method.layer", f"{wanted} names a hidden state twice. Remove one.")])
        return layers

    @property
    def _poolings(self) -> tuple[str, ...]:
        if self._per_token:
            return (TOKEN,)
        return POOLINGS if self.pooling == "sweep" else (self.pooling,)

    def frozen_body(self, model: torch.nn.Module) -> PreTrainedModel | None:
        """All but the head."""
        return cast("PreTrainedModel", cast("Any", model).body)

    def settle(self, model: torch.nn.Module, examples: Sequence[Example], features: Features, seed: int) -> None:
        """Choose layer and pooling where the recipe says `sweep`, and read mean and deviation off the training rows.

        Raises:
            DataError: there are too few rows for a sweep.
        """
        import torch

        built = cast("Any", model)
        if self.layer == "sweep" or self.pooling == "sweep":
            last = num_layers_of(built.body)
            layers = tuple(range(last + 1)) if self.layer == "sweep" else self._layers(last)
            found = features(examples, layers, self._poolings)
            ways = _probe.candidates(found, layers, one_by_one=self.layer == "sweep")
            built.notes["sweep"], built.reading = _probe.sweep(ways, self._labels(built, examples), seed)
        if self.normalise:
            mean, deviation = _probe.statistics(self._rows(built.reading, examples, features))
            built.mean.copy_(torch.from_numpy(mean))
            built.deviation.copy_(torch.from_numpy(deviation))

    def _labels(self, model: Any, examples: Sequence[Example]) -> _probe.Labels:
        num_classes = int(model.config.num_labels) if self._per_token or self._problem == "single_label" else 0
        return _probe.labels_of(examples, num_classes, per_token=self._per_token)

    def settled(self, model: torch.nn.Module) -> dict[str, Any]:
        """What `settle` found."""
        built = cast("Any", model)
        return {
            "layers": list(built.reading.layers),
            "pooling": built.reading.pooling,
            "mean": built.mean.tolist(),
            "deviation": built.deviation.tolist(),
            "notes": built.notes,
        }

    def put_back(self, model: torch.nn.Module, settled: Mapping[str, Any]) -> None:
        """Read the body as a run did before."""
        import torch

        built = cast("Any", model)
        built.reading = Reading(tuple(settled["layers"]), settled["pooling"])
        built.mean.copy_(torch.tensor(settled["mean"]))
        built.deviation.copy_(torch.tensor(settled["deviation"]))
        built.notes = dict(settled["notes"])

    def featurise(self, model: torch.nn.Module, examples: Sequence[Example], features: Features) -> list[Example]:
        """Examples with features; of words only the labelled tokens stay."""
        import numpy as np

        rows = self._rows(cast("Any", model).reading, examples, features)
        if not self._per_token:
            return [replace(example, features=row) for example, row in zip(examples, rows, strict=True)]
        ends = np.cumsum([example.num_targets for example in examples])
        return [
            replace(
                example,
                is_target=np.ones(example.num_targets, dtype=bool),
                labels=cast("np.ndarray", example.labels)[example.is_target],
                features=rows[end - example.num_targets : end],
            )
            for example, end in zip(examples, ends, strict=True)
        ]

    def _rows(self, reading: Reading, examples: Sequence[Example], features: Features) -> np.ndarray:
        """Features as the head reads them, but for the scale, [N, F]."""
        array = features(examples, reading.layers, (reading.pooling,))[reading.pooling]
        return array.reshape(len(array), -1)

    def fit(self, model: torch.nn.Module, examples: Sequence[Example]) -> str | None:
        """Logistic regression on all training rows at once; its coefficients become the weights of the head.

        Raises:
            DataError: a label has no row left, or there is only one.
        """
        import numpy as np
        import torch

        built = cast("Any", model)
        rows = np.concatenate([np.asarray(e.features).reshape(-1, len(built.mean)) for e in examples])
        rows = (rows - built.mean.cpu().numpy()) / built.deviation.cpu().numpy()
        names = [built.config.id2label[number] for number in range(built.config.num_labels)]
        weights = getattr(self._objective, "class_weights", None)
        weight, bias, notes = _probe.logistic(
            rows, self._labels(built, examples), names, penalty=self.regularisation, class_weight=weights
        )
        with torch.no_grad():
            built.head.output.weight.copy_(torch.from_numpy(weight))
            built.head.output.bias.copy_(torch.from_numpy(bias))
        built.notes |= notes
        if notes["converged"]:
            return None
        return f"the logistic fit was ended after {notes['iterations']} iterations. Raise method.regularisation."

    def details(self, model: torch.nn.Module) -> dict[str, Any]:
        """What was chosen, and what the choices scored."""
        built = cast("Any", model)
        chosen = {"head": self._kind, "layers": list(built.reading.layers), "pooling": built.reading.pooling}
        return {**chosen, "features": len(built.mean), **built.notes}

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write body, head and what was chosen; see `load_features_model`."""
        write(model, folder, self.model_dump(mode="json"))

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put the head in `folder` onto its own body.

        Raises:
            ArtifactError: a file is damaged, or a weight is missing, unexpected or of another shape.
        """
        return cast("torch.nn.Module", put_head(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Refused: the head's normalised, pooled features are no part of a plain transformers model."""
        raise NotMergeable(
            "method feature_based: its head reads pooled features, which no plain transformers model does, so there is "
            "nothing to add to the base. model/ is whole: load it with ftune.methods.feature_based.load_features_model."
        )


METHOD = FeatureBased
