"""Encoder-decoders: write the answer to a prompt, or what was taken out of a text.

    span corruption   Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4 (T5)
    text infilling    Lewis et al. 2020, https://arxiv.org/abs/1910.13461, section 2.2 (BART)

Tensors: B rows, T positions of the encoder, U positions of the decoder, V vocabulary, N targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ftune.cross_entropy import sums_of_rows, token_losses
from ftune.errors import Problem, RecipeError
from ftune.objectives import TEXT_METRICS, Encoding, Objective
from ftune.objectives._padding import padded

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from ftune.data.encode import Example
    from ftune.data.order import Draw
    from ftune.objectives import Batch


class Seq2SeqLM(Objective):
    """Cross-entropy of each token of the answer given the prompt and the answer so far."""

    name: Literal["seq2seq_lm"] = "seq2seq_lm"

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that is spread over the vocabulary in training; 0 to below 1."""
    corrupted: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Of plain text: share of the tokens that are taken out."""
    mean_span: Annotated[float, Field(ge=1)] = 3.0
    """Of plain text: mean length of what is taken out in one piece, in tokens; >= 1."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    families: ClassVar[frozenset[str]] = frozenset({"encoder_decoder"})
    predicts_tokens: ClassVar[bool] = True
    encoding: ClassVar[Encoding] = "pairs"
    generation_metrics: ClassVar[tuple[str, ...]] = TEXT_METRICS

    @property
    def formats(self) -> frozenset[str]:
        """Anything with an answer, and plain text to take spans out of."""
        return frozenset({"text", "prompt_completion", "instruction", "pairs", "multiple_choice"})

    @property
    def forward_metrics(self) -> tuple[str, ...]:
        """Per token of the answer."""
        return ("loss", "perplexity", "bits_per_byte")

    def drawer(self, tokenizer: PreTrainedTokenizerBase) -> Draw:
        """Take spans out of plain text: T5's way where the tokenizer has its sentinels, else BART's."""
        sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)]
        unknown = {None, tokenizer.unk_token_id}
        marks = [int(i) for i in sentinels if isinstance(i, int) and i not in unknown]
        mask_id, eos = tokenizer.mask_token_id, tokenizer.eos_token_id

        def draw(example: Example, seed: int) -> Example:
            if example.answer is not None:
                return example  # a prompt with an answer: nothing is hidden
            if not marks and mask_id is None:
                message = "the tokenizer has neither <extra_id_0> nor a mask token to put for what is taken out."
                raise RecipeError([Problem("data.format", f"{message} Use rows with a source and a target.")])
            spans = _spans(example.is_target, seed, self.corrupted, self.mean_span)
            if marks:
                return _with_sentinels(example, spans[: len(marks) - 1], marks, eos)
            return _infilled(example, spans, int(mask_id))

        return draw

    def collate(self, examples: list[Example], pad_id: int, left: bool = False) -> Batch:
        """Pad each side to its longest.

        Returns:
            `input_ids`, `attention_mask` [B, T], `answer` [B, U] int64 and `is_target` bool [B, U]. The decoder's side
            is padded on the right, which no target sees.
        """
        prompts = padded(examples, pad_id, left)
        answers = padded(examples, pad_id, False, of="answer")
        names = ("input_ids", "attention_mask")
        return {**{n: prompts[n] for n in names}, "answer": answers["input_ids"], "is_target": answers["is_target"]}

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of -log p(token) over each row's answer, in fp32, and its length; both [B]."""
        import torch

        answer, is_target = batch["answer"], batch["is_target"]
        config: Any = model.config
        start = torch.full_like(answer[:, :1], int(config.decoder_start_token_id))
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": torch.cat([start, answer[:, :-1]], dim=1),
            "use_cache": False,
        }
        places = is_target.nonzero(as_tuple=True)  # [N]
        losses = token_losses(
            model, inputs, places, answer[is_target], chunk=self._chunk,
            smoothing=self.label_smoothing if model.training else 0.0,
        )  # fmt: skip
        return sums_of_rows(losses, places[0], len(is_target)), is_target.sum(dim=1)


def _spans(hideable: np.ndarray, seed: int, share: float, mean_length: float) -> list[tuple[int, int]]:
    """Disjoint spans (start, stop) over about `share` of the hideable positions, in order, never touching."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=seed))
    places = np.flatnonzero(hideable)
    size = len(places)
    budget = min(max(1, round(size * share)), max(1, size - 1))
    count = min(max(1, round(budget / mean_length)), budget, max(1, size - budget))
    lengths = _parts(budget, count, random)
    gaps = _parts(size - budget, count + 1, random, empty_ends=True)
    spans, position = [], 0
    for gap, length in zip(gaps[:-1], lengths, strict=True):
        position += gap
        spans.append((int(places[position]), int(places[position + length - 1]) + 1))
        position += length
    return spans


def _parts(total: int, count: int, random: np.random.Generator, *, empty_ends: bool = False) -> list[int]:
    """`total` as a sum of `count` numbers, evenly over all such sums; each >= 1, but the first and last with leave."""
    import numpy as np

    spare = 2 if empty_ends else 0  # lend each end one, and take it back
    cuts: list[int] | np.ndarray = (
        np.sort(random.choice(total + spare - 1, size=count - 1, replace=False)) + 1 if count > 1 else []
    )
    parts = np.diff([0, *cuts, total + spare])
    if empty_ends:
        parts[0] -= 1
        parts[-1] -= 1
    return [int(part) for part in parts]


def _with_sentinels(example: Example, spans: list[tuple[int, int]], marks: list[int], eos: int | None) -> Example:
    """`Thank you <X> to your party <Y>` and `<X> for inviting me <Y> last week <Z>`."""
    import numpy as np

    ids, kept, answer, position = example.ids, list[int](), list[int](), 0
    for mark, (start, stop) in zip(marks, spans, strict=False):
        kept += [*ids[position:start], mark]
        answer += [mark, *ids[start:stop]]
        position = stop
    kept += [*ids[position:]]
    answer += [marks[len(spans)], *([] if eos is None else [eos])]
    return _pair(example, np.array(kept, dtype=np.int32), np.array(answer, dtype=np.int32))


def _infilled(example: Example, spans: list[tuple[int, int]], mask_id: int) -> Example:
    """One mask for each span; the answer is the whole text."""
    import numpy as np

    kept, position = list[int](), 0
    for start, stop in spans:
        kept += [*example.ids[position:start], mask_id]
        position = stop
    return _pair(example, np.array([*kept, *example.ids[position:]], dtype=np.int32), example.ids)


def _pair(example: Example, ids: np.ndarray, answer: np.ndarray) -> Example:
    import numpy as np

    return replace(example, ids=ids, answer=answer, is_target=np.ones(len(answer), dtype=bool))


OBJECTIVE = Seq2SeqLM
