"""LoRA: a low-rank update B.A beside chosen linear layers of a frozen model.

    y = W0 x + (alpha / rank) B A x          Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3
    y = W0 x + (alpha / sqrt(rank)) B A x    rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732
    W' = m (W0 + BA) / ||W0 + BA||_column    DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5
    W0 = (W0 - BA) + BA, BA the top SVD part PiSSA, Meng et al. 2024, https://arxiv.org/abs/2404.02948
    B learns `learning_rate_ratio` times faster than A: LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354

The layers are peft's and so is the folder that is written: anything that reads peft adapters reads ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from ftune import targets
from ftune.errors import ArtifactError, Problem, RecipeError
from ftune.methods import Method

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "default"
Word = Annotated[str, Field(min_length=1)]


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
    init: Literal["default", "gaussian", "pissa"] = "default"
    """Start of A and B: `default` and `gaussian` leave the model unchanged (B = 0); `pissa` moves the top singular
    part of W0 into B.A, so that the principal directions learn first."""
    learning_rate_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: how many times faster B learns than A; null gives both the recipe's learning rate."""
    new_tokens: list[Word] = []
    """Tokens to add to the vocabulary. Only their rows of the embeddings learn."""

    objectives: ClassVar[frozenset[str]] = frozenset({"causal_lm"})
    learns: ClassVar[str] = "a low-rank update B.A beside chosen linear layers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    mergeable: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_evidence: ClassVar[str] = "about ten times full tuning's; peft's comparison has 1e-4 at rank 32"

    @property
    def identity_at_start(self) -> bool:
        """True: B is zero, or W0 is split into parts whose sum is W0."""
        return not self.new_tokens

    def problems(self) -> list[tuple[str, str]]:
        """`pissa` and `dora` each redefine W0, and only one of them can."""
        found = []
        if self.dora and self.init == "pissa":
            found.append(("dora", "cannot be combined with init: pissa, both redefine W0. Choose one."))
        if len(set(self.new_tokens)) < len(self.new_tokens):
            found.append(("new_tokens", "holds the same token twice. Remove one."))
        return found

    def storage_constraint(self) -> str | None:
        """PiSSA subtracts B.A from W0 and DoRA divides by its norms: half precision would move the start visibly."""
        if self.init == "pissa":
            return "PiSSA splits W0, exact in fp32 only"
        return "DoRA divides by column norms of W0, exact in fp32 only" if self.dora else None

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add `new_tokens` at the end of the vocabulary."""
        from transformers import AddedToken

        known = tokenizer.get_vocab()
        existing = [token for token in self.new_tokens if token in known and known[token] < tokenizer.vocab_size]
        if existing:
            message = f"{existing} is already in the vocabulary. Remove it from the list."
            raise RecipeError([Problem("method.new_tokens", message)])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.new_tokens])

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model` and put A and B (fp32) beside each target.

        Raises:
            RecipeError: a target or pattern matches no linear layer.
        """
        from peft import get_peft_model

        matched = self._matched(model)
        new_ids = [tokenizer.convert_tokens_to_ids(token) for token in self.new_tokens]
        if new_ids:
            grow_embeddings(model, tokenizer, self.new_tokens)
        attached = get_peft_model(model, self._peft_config(model, matched, new_ids))
        attached.peft_config[ADAPTER].base_model_name_or_path = model.config._name_or_path
        if self.init == "pissa":
            _remember_start(attached)
        return cast("torch.nn.Module", attached)

    def _matched(self, model: PreTrainedModel) -> dict[str, Any]:
        """The linear layers that get an update, by name.

        Raises:
            RecipeError: a target, or a pattern's key, matches none of them.
        """
        linear = targets.linear_modules(model)
        matched = targets.matching(linear, None if self.target_modules == "all_linear" else self.target_modules)
        problems = (
            []
            if self.target_modules == "all_linear"
            else targets.unmatched("method.target_modules", self.target_modules, linear, linear)
        )
        problems += targets.unmatched("method.rank_pattern", self.rank_pattern, matched, linear)
        problems += targets.unmatched("method.alpha_pattern", self.alpha_pattern, matched, linear)
        if problems:
            raise RecipeError(problems)
        return matched

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """Every layer that gets an update."""
        return {name: targets.shape_of(module) for name, module in self._matched(model).items()}

    def _peft_config(self, model: PreTrainedModel, matched: Mapping[str, Any], new_ids: list[int]) -> LoraConfig:
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
            init_lora_weights=cast("Any", {"default": True, "gaussian": "gaussian", "pissa": "pissa"}[self.init]),
            fan_in_fan_out=all(isinstance(module, Conv1D) for module in matched.values()),
            trainable_token_indices=cast("Any", _token_rows(model, new_ids)),
            task_type="CAUSAL_LM",
        )

    def skeleton(self) -> Method:
        """Without SVD, which does not exist on the meta device."""
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
        """Write a peft adapter folder. A PiSSA adapter becomes plain LoRA of twice the rank over the original base."""
        from safetensors.torch import load_file, save_file

        peft_model = cast("PeftModel", model)
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order changes by run
        if self.init == "pissa":
            weights = folder / "adapter_model.safetensors"
            save_file(_against_original_base(peft_model, load_file(weights)), weights, metadata={"format": "pt"})
            config |= _as_plain_lora(config, rslora=self.rslora)
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put a peft adapter folder onto a fresh base; every weight must be there.

        Raises:
            ArtifactError: a weight is missing or unexpected.
        """
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        config = LoraConfig.from_pretrained(str(folder))
        if rows := config.trainable_token_indices:
            needed = 1 + max(max(ids) for ids in cast("dict[str, list[int]]", rows).values())
            if needed > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(needed, mean_resizing=False)
        attached = get_peft_model(model, config)
        weights = load_file(folder / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(attached, save_embedding_layers=False)
        missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if missing or unexpected:
            raise ArtifactError(
                f"{folder}: the adapter does not fit this base model. Missing: {missing[:3] or 'none'}, "
                f"unexpected: {unexpected[:3] or 'none'}. Use the base it was trained on."
            )
        set_peft_model_state_dict(attached, weights)
        return cast("torch.nn.Module", attached.requires_grad_(False))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """W0 + scale B A in the weights' own type; the caller loads them in fp32 and casts last."""
        return cast("PreTrainedModel", cast("PeftModel", model).merge_and_unload())


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Give each new token a row that is the mean of the rows its text had before; grow the matrix only if it must."""
    import torch

    ids = [int(cast("int", tokenizer.convert_tokens_to_ids(token))) for token in tokens]
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    first_new = min(ids)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    with torch.no_grad():
        for token, row in zip(tokens, ids, strict=True):
            characters = tokenizer(list(token), add_special_tokens=False)["input_ids"]
            pieces = [piece for ids_of in characters for piece in ids_of if piece < first_new]
            for matrix in matrices.values():
                if pieces:
                    matrix[row] = matrix[pieces].float().mean(dim=0).to(matrix.dtype)


def _token_rows(model: PreTrainedModel, new_ids: list[int]) -> dict[str, list[int]] | None:
    """Rows that learn, by embedding module; a tied head follows its embedding without being named."""
    if not new_ids:
        return None
    modules = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {modules[id(embedding)].rsplit(".", 1)[-1]: new_ids}
    if head is not None and head.weight is not embedding.weight:
        rows[modules[id(head)].rsplit(".", 1)[-1]] = new_ids
    return rows


def _remember_start(model: torch.nn.Module) -> None:
    """Keep PiSSA's first A and B beside the learning ones: the artefact is the difference to them."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_buffer("start_A", module.lora_A[ADAPTER].weight.detach().clone(), persistent=False)
            module.register_buffer("start_B", module.lora_B[ADAPTER].weight.detach().clone(), persistent=False)


def _against_original_base(model: PeftModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W0 - B0 A0 + B A = W0 + [B, -B0] [A; A0]: the same function as plain LoRA of twice the rank."""
    import torch
    from peft.tuners.lora import LoraLayer

    converted = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            converted[a] = torch.cat([state[a], module.start_A.cpu()], dim=0).contiguous()
            converted[b] = torch.cat([state[b], -module.start_B.cpu()], dim=1).contiguous()
    return converted


def _as_plain_lora(config: Mapping[str, Any], *, rslora: bool) -> dict[str, Any]:
    """Double every rank and adjust alpha so that the scale stays what it was."""
    factor = math.sqrt(2) if rslora else 2
    return {
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {key: 2 * rank for key, rank in config["rank_pattern"].items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in config["alpha_pattern"].items()},
        "init_lora_weights": True,
    }


METHOD = Lora
