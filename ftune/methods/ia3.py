"""IA3: keys, values and the inner activations of each MLP are rescaled by learned vectors; all weights are frozen.

    K = l_k * (W_k x),  V = l_v * (W_v x)    Liu et al. 2022, https://arxiv.org/abs/2205.05638, section 3.3
    MLP(x) = W_down (l_ff * act(W_up x))

l_* are vectors of ones at the start, so the model starts exactly as it was. Where queries, keys and values come out of
one layer (GPT-2), all of its outputs are rescaled, those of the queries too.
The layers are peft's and so is the folder that is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from ftune import targets
from ftune.errors import Problem, RecipeError
from ftune.methods import Method, _adaptable, _peft

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Word = Annotated[str, Field(min_length=1)]
KEYS_AND_VALUES = frozenset(
    {"k", "v", "key", "value", "k_proj", "v_proj", "key_proj", "value_proj", "k_lin", "v_lin"}
    | {"c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "attn_qkv", "att_proj"}
)
"""What architectures call the layers that keys and values come from: apart, and in one with the queries."""


class Ia3(Method):
    """Learned vectors rescale keys, values and MLP activations; every weight is frozen."""

    name: Literal["ia3"] = "ia3"

    target_modules: Literal["auto"] | list[Word] = "auto"
    """Layers whose outputs are rescaled: `auto` (keys and values), or ends of module names."""
    feedforward_modules: Literal["auto"] | list[Word] = "auto"
    """Layers whose inputs are rescaled: `auto` (the last layer of each MLP), or ends of module names."""

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"causal_lm", "masked_lm", "seq2seq_lm", "sequence_classification", "token_classification"}
    )
    learns: ClassVar[str] = "vectors that rescale keys, values and the inner activations of the MLPs"
    paper: ClassVar[str] = "https://arxiv.org/abs/2205.05638"
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-3
    learning_rate_power: ClassVar[float] = 1.2
    learning_rate_evidence: ClassVar[str] = (
        "the paper's rate for T0 of 3 and 11 billion parameters; narrower models in docs/methods.md"
    )

    def problems(self) -> list[tuple[str, str]]:
        """Something must learn, and a layer is rescaled on one side."""
        if self.target_modules == [] and self.feedforward_modules == []:
            return [("target_modules", "is empty, and so is feedforward_modules: nothing would learn. Name layers.")]
        if "auto" in (self.target_modules, self.feedforward_modules):
            return []
        both = sorted(set(self.target_modules) & set(self.feedforward_modules))
        message = f"{both} is in target_modules too. A layer is rescaled at its outputs or at its inputs: choose one."
        return [("feedforward_modules", message)] if both else []

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model`, put a vector of ones (fp32) at each target, and let the head learn.

        Raises:
            RecipeError: a name matches no linear layer, or `auto` finds no layers in this architecture.
        """
        from peft import IA3Config
        from transformers.pytorch_utils import Conv1D

        outputs, inputs = self._matched(model)
        chosen = outputs | inputs
        config = IA3Config(
            target_modules=list(chosen),
            feedforward_modules=list(inputs),
            fan_in_fan_out=all(isinstance(module, Conv1D) for module in chosen.values()),
            modules_to_save=targets.head_modules(model) or None,
            task_type=_peft.task_type(model),
        )
        return cast("torch.nn.Module", _peft.attach(model, config))

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """Every layer that gets a vector."""
        outputs, inputs = self._matched(model)
        return {name: targets.shape_of(module) for name, module in (outputs | inputs).items()}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """Sum over targets of the size of the side that is rescaled."""
        return sum(inputs if self._is_feedforward(name) else outputs for name, (outputs, inputs) in shapes.items())

    def _is_feedforward(self, name: str) -> bool:
        if self.feedforward_modules != "auto":
            return any(targets.ends_in(name, end) for end in self.feedforward_modules)
        if self.target_modules != "auto":
            return not any(targets.ends_in(name, end) for end in self.target_modules)
        return targets.leaf(name) not in KEYS_AND_VALUES

    def _matched(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
        """Layers whose outputs are rescaled, and those whose inputs are, by name.

        Raises:
            RecipeError: a name matches none, or `auto` finds none.
        """
        layers = _adaptable.layers(model)
        found, problems = [], []
        for path, wanted in (
            ("method.target_modules", self.target_modules),
            ("method.feedforward_modules", self.feedforward_modules),
        ):
            if wanted == "auto":
                names, problem = _by_structure(model, layers, feedforward=path.endswith("feedforward_modules"))
                problems += [Problem(path, problem)] if problem else []
                found.append({name: layers[name] for name in names})
            else:
                problems += _adaptable.unmatched(path, wanted, layers, model)
                found.append(targets.matching(layers, wanted))
        outputs, inputs = found
        if both := sorted(set(outputs) & set(inputs)):
            problems.append(Problem("method.feedforward_modules", f"{both[0]} would be rescaled on both sides."))
        if problems:
            raise RecipeError(problems)
        return outputs, inputs

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a peft adapter folder."""
        from peft.tuners.ia3 import IA3Layer

        base = cast("Any", model).get_base_model()
        adapted = {name: module for name, module in base.named_modules() if isinstance(module, IA3Layer)}
        inputs = [name for name, module in adapted.items() if module.is_feedforward]
        # peft shortens long lists of targets, and then refuses to read them beside the other list
        _peft.save(model, folder, settings={"target_modules": list(adapted), "feedforward_modules": inputs})

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put a peft adapter folder onto a fresh base; every weight must be there.

        Raises:
            ArtifactError: a weight is missing, unexpected or of another shape.
        """
        return cast("torch.nn.Module", _peft.load(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Multiply rows of W_k and W_v, and columns of W_down; the caller loads in fp32 and casts last."""
        return _peft.merge(model)


def _by_structure(
    model: PreTrainedModel, layers: Mapping[str, Any], *, feedforward: bool
) -> tuple[list[str], str | None]:
    """Names of the keys' and values' layers, or of the last layer of each MLP; or why there are none."""
    architecture, advice = model.config.model_type, "Name the layers yourself."
    found: list[str] = []
    try:
        width = targets.width_of(model)
        for prefix, block in targets.blocks(model).items():
            inside = [name for name in layers if name.startswith(f"{prefix}.")]
            if not inside:  # of a vision tower
                continue
            *mixers, mlp = targets.sublayers(block, width)
            named = [name for name in inside if targets.leaf(name) in KEYS_AND_VALUES]
            if feedforward:
                found.append(f"{prefix}.{mlp.output}")
            elif len(named) < len(mixers):
                return [], f"auto knows no layer of {prefix} in a {architecture} as keys or values. {advice}"
            else:
                found += named
    except LookupError as error:
        return [], f"auto cannot tell the parts of a {architecture} apart: {error}. {advice}"
    return found, None if found else f"auto finds no transformer blocks in a {architecture}. {advice}"


METHOD = Ia3
