"""LoRA: a low-rank update B.A beside chosen linear layers of a frozen model.

    y = W0 x + (alpha / rank) B A x          Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3
    y = W0 x + (alpha / sqrt(rank)) B A x    rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732
    W' = m (W0 + BA) / ||W0 + BA||_column    DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5
    B learns `learning_rate_ratio` times faster than A: LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354

Where A and B start is in `_lora_start`. The layers are peft's and so is the folder that is written: anything that reads
peft adapters reads ours. A classification head learns whole and is saved with the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from ftune import targets
from ftune.errors import Problem, RecipeError
from ftune.methods import Method, _adaptable, _lora_start, _peft, _tokens

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Word = Annotated[str, Field(min_length=1)]
SPLITS = ("pissa", "olora")
"""Starts that move a part of W0 into B.A; the artefact has twice the rank."""


class Lora(Method):
    """A low-rank update beside chosen linear layers; the base model stays frozen."""

    name: Literal["lora"] = "lora"

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Inner dimension of the update. Higher holds more intricate changes; >= 1."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Numerator of the update's scale alpha/rank; > 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an input of A in training; 0 to below 1."""
    target_modules: Literal["all_linear"] | Annotated[list[Word], Field(min_length=1)] = "all_linear"
    """Layers that get an update: `all_linear` (all but the output head), or ends of module names."""
    rank_pattern: dict[Word, Annotated[int, Field(ge=1)]] = {}
    """Another rank for modules whose name ends in the key."""
    alpha_pattern: dict[Word, Annotated[float, Field(gt=0)]] = {}
    """Another alpha for modules whose name ends in the key."""
    rslora: bool = False
    """Scale by alpha/sqrt(rank) instead of alpha/rank, which keeps high ranks stable."""
    dora: bool = False
    """Learn the magnitude of each output column apart from its direction."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva"] = "default"
    """Start of A and B: `default` and `gaussian` draw A and leave the model unchanged (B = 0). `pissa` and `olora` move
    the top singular part, or the first directions of a QR split, of W0 into B.A, so that these learn first. `eva`
    points A where the layer's inputs vary most, read from the training rows."""
    learning_rate_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: how many times faster B learns than A; null gives both the recipe's learning rate."""
    new_tokens: list[Word] = []
    """Tokens to add to the vocabulary. Only their rows of the embeddings learn."""
    trainable_tokens: list[Word] = []
    """Tokens of the vocabulary whose rows of the embeddings learn too."""

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"causal_lm", "masked_lm", "seq2seq_lm", "sequence_classification", "token_classification"}
    )
    learns: ClassVar[str] = "a low-rank update B.A beside chosen linear layers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_power: ClassVar[float] = 1.0
    learning_rate_evidence: ClassVar[str] = (
        "ten times full tuning's, as peft's comparison and Schulman et al. have it; narrower models in docs/methods.md"
    )

    @property
    def identity_at_start(self) -> bool:
        """True without new tokens: B is zero, or W0 is split into parts whose sum is W0."""
        return not self.new_tokens

    @property
    def _token_field(self) -> str:
        return "new_tokens" if self.new_tokens else "trainable_tokens"

    def problems(self) -> list[tuple[str, str]]:
        """`dora` and the splits each redefine W0, and only one of them can; a token has one row."""
        found = []
        if self.dora and self.init in SPLITS:
            found.append(("dora", f"cannot be combined with init: {self.init}, both redefine W0. Choose one."))
        for field, tokens in (("new_tokens", self.new_tokens), ("trainable_tokens", self.trainable_tokens)):
            if len(set(tokens)) < len(tokens):
                found.append((field, "holds the same token twice. Remove one."))
        if both := sorted(set(self.new_tokens) & set(self.trainable_tokens)):
            found.append(("trainable_tokens", f"{both} is in new_tokens too, whose rows learn anyway. Remove it here."))
        return found

    def storage_constraint(self) -> str | None:
        """A split subtracts B.A from W0 and DoRA divides by its norms: half precision would move the start visibly."""
        if self.init in SPLITS:
            return f"{'PiSSA' if self.init == 'pissa' else 'OLoRA'} splits W0, exact in fp32 only"
        return "DoRA divides by column norms of W0, exact in fp32 only" if self.dora else None

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add `new_tokens` at the end of the vocabulary.

        Raises:
            RecipeError: a new token exists, or a trainable one does not.
        """
        _tokens.ids_of(tokenizer, self.trainable_tokens)
        _tokens.add_tokens(tokenizer, self.new_tokens)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model`, put A and B (fp32) beside each target, and let the head learn.

        Raises:
            RecipeError: a target or pattern matches no linear layer, or rows of the embeddings cannot learn.
        """
        if self.init == "eva" and model.config.is_encoder_decoder:
            message = "eva reads one stack of layers; an encoder-decoder has two, with masks of their own. Use default."
            raise RecipeError([Problem("method.init", message)])
        matched = self._matched(model)
        ids = _tokens.ids_of(tokenizer, self.trainable_tokens)
        readers = _tokens.readers_of_embeddings(model)
        if self.new_tokens:
            ids = _tokens.grow_embeddings(model, tokenizer, self.new_tokens) + ids
        attached = _peft.attach(model, self._peft_config(model, matched, ids))
        if ids:
            _tokens.check_readers(attached, readers, self._token_field)
        if self.init in SPLITS:
            _lora_start.split_weights(attached, self.init)
        return cast("torch.nn.Module", attached)

    def prepare(
        self,
        model: torch.nn.Module,
        batches: Iterable[dict[str, torch.Tensor]],
        run: Callable[[torch.nn.Module, dict[str, torch.Tensor]], object],
    ) -> None:
        """EVA: point A where the inputs of its layer vary most. Shapes stay as they are.

        Args:
            model: what `attach` returned, on its device.
            batches: of the objective, on the same device; read until the directions settle.
            run: one forward pass on a batch, such as the objective's `loss`.
        """
        if self.init == "eva":
            _lora_start.follow_inputs(model, batches, run)

    def _matched(self, model: PreTrainedModel) -> dict[str, Any]:
        """The linear layers that get an update, by name.

        Raises:
            RecipeError: a target, or a pattern's key, matches none of them.
        """
        layers = _adaptable.lora_layers(model)
        wanted = None if self.target_modules == "all_linear" else self.target_modules
        matched = targets.matching(layers, wanted)
        problems = _adaptable.unmatched("method.target_modules", wanted or [], layers, model)
        problems += targets.unmatched("method.rank_pattern", self.rank_pattern, matched, layers)
        problems += targets.unmatched("method.alpha_pattern", self.alpha_pattern, matched, layers)
        if wanted is None and not layers:
            problems.append(Problem("model.name", "has no linear layer, so LoRA has nothing to adapt."))
        if problems:
            raise RecipeError(problems)
        return matched

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """Every layer that gets an update."""
        return {name: targets.shape_of(module) for name, module in self._matched(model).items()}

    def _peft_config(self, model: PreTrainedModel, matched: Mapping[str, Any], token_ids: list[int]) -> LoraConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            r=self.rank,
            lora_alpha=cast("int", self.alpha),
            lora_dropout=self.dropout,
            target_modules=targets.shortest_names(model, list(matched)),
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=cast("dict[str, int]", dict(self.alpha_pattern)),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
            fan_in_fan_out=all(isinstance(module, Conv1D) for module in matched.values()),
            trainable_token_indices=cast("Any", _tokens.learning_rows(model, token_ids, self._token_field)),
            modules_to_save=targets.head_modules(model) or None,
            task_type=_peft.task_type(model),
        )

    def skeleton(self) -> Method:
        """Without a split of W0, which does not exist on the meta device."""
        return self.model_copy(update={"init": "default"})

    def learning_rate_factors(self, model: torch.nn.Module) -> dict[str, float]:
        """LoRA+ (section 4): every B learns `learning_rate_ratio` times faster."""
        if self.learning_rate_ratio is None:
            return {}
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return {name: self.learning_rate_ratio for name in names if ".lora_B." in name}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """Sum over targets of rank x (inputs + outputs), and for DoRA one magnitude for each output."""
        total = 0
        for name, (outputs, inputs) in shapes.items():
            rank = next((r for key, r in self.rank_pattern.items() if targets.ends_in(name, key)), self.rank)
            total += rank * (inputs + outputs) + (outputs if self.dora else 0)
        return total

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a peft adapter folder; after a split of W0, plain LoRA of twice the rank over the original base."""
        peft_model = cast("PeftModel", model)
        if self.init not in SPLITS:
            _peft.save(peft_model, folder)
            return
        weights = _lora_start.against_original_base(peft_model, _peft.weights_of(peft_model))
        settings = _lora_start.as_plain_lora(peft_model.peft_config[_peft.ADAPTER], rslora=self.rslora)
        _peft.save(peft_model, folder, weights, settings)

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put a peft adapter folder onto a fresh base; every weight must be there.

        Raises:
            ArtifactError: a weight is missing, unexpected or of another shape.
        """
        return cast("torch.nn.Module", _peft.load(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """W0 + scale B A in the weights' own type; the caller loads them in fp32 and casts last."""
        return _peft.merge(model)


METHOD = Lora
