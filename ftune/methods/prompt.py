"""Prompt tuning: embeddings that learn, before the embedded text of a frozen model.

    f([E; embed(text)])      Lester et al. 2021, https://arxiv.org/abs/2104.08691, section 2

`ftune.virtual` says how the virtual tokens get into the model. The folder that is written is peft's. Two lines load it
where plain peft computes another function:

    from ftune.methods.prompt import load_prompt
    model = load_prompt(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), "runs/x/model")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from ftune import virtual
from ftune.errors import ArtifactError, NotMergeable
from ftune.methods import Method, _peft, _virtual

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Prompt(Method):
    """A soft prompt before every text; the base model stays frozen."""

    name: Literal["prompt"] = "prompt"

    length: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Number of virtual tokens, which take as many positions of the model; >= 1."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """Where the virtual tokens start: at the embeddings of common tokens, of `init_text`, or at random ones of the same
    size."""
    init_text: Annotated[str, Field(min_length=1)] | None = None
    """Words to start from with `init: text`, repeated or cut to `length` tokens; a description of the task, say."""

    objectives: ClassVar[frozenset[str]] = frozenset(
        {"causal_lm", "seq2seq_lm", "sequence_classification", "token_classification"}
    )
    learns: ClassVar[str] = "embeddings of virtual tokens before the text"
    paper: ClassVar[str] = "https://arxiv.org/abs/2104.08691"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_power: ClassVar[float] = 1.0
    learning_rate_evidence: ClassVar[str] = (
        "peft's comparison has 1e-3 for 3B parameters; narrower models in docs/methods.md"
    )

    @property
    def identity_at_start(self) -> bool:
        """False: the virtual tokens are seen from the first step."""
        return False

    @property
    def positions_taken(self) -> int:
        """Positions of the model's limit that are not left for text."""
        return self.length

    def packing_constraint(self) -> str | None:
        """Rows that lie end to end have one beginning."""
        return "method prompt puts its tokens before each row of a batch"

    def problems(self) -> list[tuple[str, str]]:
        """`init_text` belongs to `init: text`."""
        return _virtual.text_problems(self.init, self.init_text)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
        """Freeze `model` but for its head and put a soft prompt (fp32) before its text.

        Raises:
            RecipeError: `init_text` has no tokens.
        """
        _virtual.freeze_all_but_head(model)
        virtual.add_soft_prompt(model, self._start(model, tokenizer))
        return cast("torch.nn.Module", model)

    def _start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
        """Embeddings [P, D] to start from."""
        ids = virtual.real_tokens(model, tokenizer, self.length, self.init_text)
        embeddings = model.get_input_embeddings()(ids).detach()
        return virtual.drawn_like(embeddings) if self.init == "random" else cast("torch.Tensor", embeddings)

    def target_shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, int]]:
        """The embedding of the text, whose rows [D] the virtual tokens are like."""
        embed = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embed)
        return {name: tuple(embed.weight.shape)}

    def trainable_parameters(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """P x D."""
        return sum(self.length * width for _, width in shapes.values())

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a peft adapter folder with the soft prompt and the head."""
        from peft import PromptTuningConfig

        base, prompt = cast("PreTrainedModel", model), virtual.soft_prompt(model)
        if prompt is None:
            raise AssertionError("the model has no soft prompt")
        settings = _virtual.peft_settings(base, len(prompt))
        config = PromptTuningConfig(
            **settings,
            token_dim=prompt.shape[1],
            num_attention_heads=int(base.config.get_text_config().num_attention_heads),
            prompt_tuning_init="RANDOM",
        )
        _virtual.save(base, folder, config, prompt)

    def load(self, model: PreTrainedModel, folder: Path) -> torch.nn.Module:
        """Put the soft prompt in `folder` onto a fresh base model; the folder's own settings count.

        Raises:
            ArtifactError: see `load_prompt`.
        """
        return cast("torch.nn.Module", load_prompt(model, folder))

    def merge(self, model: torch.nn.Module) -> PreTrainedModel:
        """Refuse: the prompt is an input.

        Raises:
            NotMergeable: always.
        """
        raise NotMergeable(
            "method prompt: a soft prompt stands before the text and changes no weight of the model. Use the artefact "
            "beside its base model."
        )


def load_prompt(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put a soft prompt that ftune saved, with its head, onto a fresh base model, changed in place and returned.

    Nothing of the result learns.

    Raises:
        ArtifactError: a weight is missing, unexpected or of another shape, or the model has a soft prompt already.
    """
    if virtual.soft_prompt(model) is not None:
        raise ArtifactError(f"{folder}: the model has a soft prompt already. Load the base model anew.")
    path = Path(folder) / _peft.WEIGHTS
    _virtual.freeze_all_but_head(model)
    prompt, head = _virtual.read_peft(model, path)
    width = model.get_input_embeddings().weight.shape[1]
    _virtual.check_shape(path, _virtual.EMBEDDINGS, prompt, (len(prompt), width))
    _virtual.put_head(model, path, head)
    virtual.add_soft_prompt(model, prompt.to(model.device))
    return model.requires_grad_(False)


METHOD = Prompt
