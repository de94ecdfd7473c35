"""QLoRA: LoRA beside frozen layers that are kept in 4 or 8 bits.

    y = dequantise(q(W0)) x + scale B A x     Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, eq. 5
    s B0 A0 = top SVD of W0 - q(W0)           LoftQ, Li et al. 2023, https://arxiv.org/abs/2310.08659, one iteration

All linear layers of the model's blocks are quantised, whether they get an update or not. The adapter is plain LoRA in
peft's format, with `quantised_base.json` beside it: which codes it was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ftune import quantisation
from ftune.errors import ArtifactError, NotMergeable, Problem, RecipeError
from ftune.methods import _lora_start, _peft
from ftune.methods.lora import SPLITS, Lora
from ftune.quantisation import Kind, Quantisation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "quantised_base.json"
"""Beside the adapter: kind, number of layers and SHA-256 of the quantised weights it was trained on."""


LEAST_QUANTISED = 0.5
"""Share of the blocks' weights below which quantisation is refused as a promise that would not be kept."""


class QLora(Lora):
    """LoRA beside quantised layers."""

    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]

    quantisation: Kind = "nf4"
    """How the frozen layers are kept: `nf4` (4 bits) or `int8`."""
    double_quantisation: bool = True
    """Keep NF4's constants in 8 bits too, which makes 4.13 bits for a weight instead of 4.5. int8 does not read it."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"] = "default"  # type: ignore[assignment]
    """Start of A and B: as in lora, or `loftq`, which puts what the quantisation rounded away into B.A as far as the
    rank can hold it. `pissa` and `olora` cannot be had."""

    learns: ClassVar[str] = "a low-rank update B.A beside layers kept in 4 or 8 bits"
    paper: ClassVar[str] = "https://arxiv.org/abs/2305.14314"
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_evidence: ClassVar[str] = (
        "the paper's for models of 7 and 13 billion parameters; it has 1e-4 for larger ones"
    )

    @property
    def _how(self) -> Quantisation:
        return Quantisation(self.quantisation, self.double_quantisation)

    @property
    def identity_at_start(self) -> bool:
        """As in LoRA, of the quantised model; `loftq` moves it towards the original."""
        return super().identity_at_start and self.init != "loftq"

    @property
    def quantised_bits(self) -> float | None:
        """Bits of a weight of a quantised layer with its constants."""
        return self._how.bits

    def quantised_parameters(self, model: PreTrainedModel) -> int:
        """Weights in the layers that are kept quantised; biases are not."""
        return quantisation.num_weights(model)

    def problems(self) -> list[tuple[str, str]]:
        """What LoRA refuses, what would change W0 after it was rounded, and keys without an effect."""
        found = super().problems()
        if self.quantisation == "int8" and not self.double_quantisation:
            message = "has no effect with quantisation: int8, whose constants are not quantised. Remove it."
            found.append(("double_quantisation", message))
        if self.init in SPLITS:
            message = f"{self.init} changes W0, and what is left would be rounded again. Use loftq or default."
            found.append(("init", message))
        if self.dora and self.quantisation == "int8":
            found.append(("dora", "needs the norms of W0, which peft cannot read from int8. Use quantisation: nf4."))
        if self.dora and self.init == "loftq":
            found.append(("dora", "cannot be combined with init: loftq, both correct W0. Choose one."))
        return found

    def load_options(self, compute_dtype: torch.dtype) -> dict[str, Any]:
        """Quantise while loading, from the published type. LoftQ needs the weights whole: `quantise` comes later.

        Raises:
            MachineError: bitsandbytes is not installed.
        """
        return {"dtype": "auto"} if self.init == "loftq" else self._how.loading(compute_dtype)

    def quantise(self, model: PreTrainedModel, compute_dtype: torch.dtype | None = None) -> None:
        """Quantise the layers of `model` that are not yet, in place. Nothing is done on the meta device.

        Args:
            model: its weights in the type they were published in.
            compute_dtype: type in which NF4 layers multiply; None takes that of their weights.
        """
        if model.device.type != "meta":
            quantisation.quantise(model, self._how, compute_dtype, keep_original=self.init == "loftq")

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """Every layer that gets an update.

        Raises:
            RecipeError: as in LoRA, and where quantisation would leave most of the model as it is.
        """
        quantised = quantisation.share(model)
        if not quantisation.quantised(model) and quantised < LEAST_QUANTISED:
            message = (
                f"only {quantised:.0%} of the weights of this model's blocks are in linear layers that can be "
                "quantised; stacked experts cannot. The memory you expect would not be saved. Use method: lora."
            )
            raise RecipeError([Problem("method.name", message)])
        return super().target_shapes(model)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Quantise what is not yet, freeze it, and put A and B (fp32) beside each target.

        Raises:
            RecipeError: a target or pattern matches no linear layer, rows of the embeddings cannot learn, or LoftQ
                finds weights that are rounded already.
            MachineError: bitsandbytes is not installed.
        """
        self.quantise(model)
        attached = super().attach(model, tokenizer)
        if self.init == "loftq" and model.device.type != "meta":
            _take_up_rounding(attached)
        return attached

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a peft adapter folder, and which quantised weights it belongs to."""
        super().save(model, folder)
        text = json.dumps(self._record(cast("PeftModel", model).get_base_model()), indent=2, sort_keys=True)
        (folder / RECORD).write_text(text, encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put an adapter folder onto a fresh base, quantised now if it is not yet.

        Raises:
            ArtifactError: the quantised weights are not those it was trained on, or the adapter does not fit.
        """
        self.quantise(model)
        for layer in quantisation.quantised(model).values():
            layer.original = None
        _compare(folder, self._record(model))
        return super().load(model, folder)

    def _record(self, base: torch.nn.Module) -> dict[str, Any]:
        return {
            "quantisation": self.quantisation,
            "double_quantisation": self.quantisation == "nf4" and self.double_quantisation,
            "layers": len(quantisation.quantised(base)),
            "sha256": quantisation.fingerprint(base),
        }

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """dequantise(q(W0)) + scale B A in fp32, as plain layers; the caller casts last."""
        transposed = quantisation.dequantise(model)
        merged = super().merge(model)
        quantisation.as_conv1d(merged, transposed)
        return merged

    def on_original_base(self) -> Lora:
        """The method that puts this one's artefact onto the base as it was published, to load and to merge there.

        Raises:
            NotMergeable: after LoftQ, B A holds what the quantisation rounded away, which the original still has.
        """
        if self.init == "loftq":
            raise NotMergeable(
                "the update holds what LoftQ took up of the rounding, which the original base still has. "
                "Merge into the dequantised base."
            )
        shared = self.model_dump(exclude={"name", "quantisation", "double_quantisation"})
        return Lora(**shared)


def _compare(folder: Path, found: dict[str, Any]) -> None:
    """Raise ArtifactError unless the record in `folder` says the same as `found`."""
    try:
        expected = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{folder / RECORD}: cannot be read: {error}. The folder is not whole. Train again."
        raise ArtifactError(message) from error
    if expected != found:
        raise ArtifactError(
            f"{folder}: was trained on the quantised weights {_shown(expected)}, but this base gives {_shown(found)}. "
            "Use the base and the settings it was trained with."
        )


def _shown(record: dict[str, Any]) -> str:
    kind = record.get("quantisation")
    return f"{str(record.get('sha256'))[:16]} ({kind}, {record.get('layers')} layers)"


def _take_up_rounding(model: torch.nn.Module) -> None:
    """LoftQ: let s B A be the best approximation of W0 - q(W0) that the rank can hold; forget W0.

    The singular vectors come from a randomised SVD (Halko et al. 2009) with so many iterations that nearly all the
    rank could take up is taken up, in a hundredth of the time of a whole one.
    """
    import torch

    for _, layer in _lora_start.lora_layers(model):
        base = layer.get_base_layer()
        if not quantisation.is_quantised(base):
            continue
        if getattr(base, "original", None) is None:
            message = "loftq needs the weights before they were rounded; this base is published quantised. Use default."
            raise RecipeError([Problem("method.init", message)])
        a, b, scale = layer.lora_A[_peft.ADAPTER], layer.lora_B[_peft.ADAPTER], layer.scaling[_peft.ADAPTER]
        rest = base.original.float() - quantisation.weight_of(base)
        u, s, v = torch.svd_lowrank(rest, q=min(2 * len(a.weight), *rest.shape), niter=16)
        rank = min(len(a.weight), len(s))
        root = (s[:rank] / scale).sqrt()
        with torch.no_grad():
            a.weight[:rank] = root[:, None] * v[:, :rank].T
            b.weight[:, :rank] = u[:, :rank] * root
        base.original = None


METHOD = QLora
