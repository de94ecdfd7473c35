"""Answers that a model writes: greedy or drawn, in batches, and what they are worth beside what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ftune.compiled import uncompiled
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.evaluation import Scores, Tick
from ftune.metrics.custom import RowScores, custom
from ftune.objectives import TEXT_METRICS

if TYPE_CHECKING:
    import torch

    from ftune.label_predictions import LabelPrediction
    from ftune.prefix_cache import Prefix
    from ftune.stop_text import StopText


@dataclass(frozen=True)
class Prediction:
    """One generated answer beside what was expected."""

    file: str
    number: int
    prompt: str
    expected: str
    received: str

    @property
    def exact(self) -> bool:
        """Equal up to white space at both ends; an empty answer is wrong."""
        return bool(self.received.strip()) and self.received.strip() == self.expected.strip()


def predict(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    tick: Tick,
    prefix: Prefix | None = None,
    stop: StopText | None = None,
) -> list[Prediction]:
    """Greedy answers to the prompt of every sample that ends with an assistant turn of weight 1, in the order given."""
    answerable = [s for s in samples if s.turns and s.turns[-1].role == "assistant" and s.turns[-1].weight]
    prompts = [renderer.prompt(sample) for sample in answerable]
    answers = generate(
        model, prompts, renderer, pad_id=pad_id, max_new_tokens=max_new_tokens, batch_size=batch_size, tick=tick,
        prefix=prefix, stop=stop,
    )  # fmt: skip
    return [
        Prediction(s.row.file, s.row.number, prompt, renderer.answer(s), answer)
        for s, prompt, answer in zip(answerable, prompts, answers, strict=True)
    ]


def generate(
    model: torch.nn.Module,
    prompts: Sequence[str],
    renderer: Renderer,
    *,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    tick: Tick,
    sampling: Mapping[str, Any] | None = None,
    raw: bool = False,
    prefix: Prefix | None = None,
    stop: StopText | None = None,
) -> list[str]:
    """Continue rendered prompts, or answer them with an encoder-decoder, batched by length.

    Args:
        model: in any mode; left as it was.
        prompts: rendered text.
        renderer: the one that training used; says how prompts are tokenised and where answers stop.
        pad_id: id of the padding.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        tick: called with (done, in all).
        sampling: temperature, top_p, top_k; None is greedy.
        raw: the prompts are plain text that no template rendered.
        prefix: of a decoder, tokens that all prompts begin with, computed before.
        stop: text at which answers end as well.

    Returns:
        The answers without prompt and terminator, in the order of `prompts`.
    """
    decodes = not model.config.is_encoder_decoder  # type: ignore[union-attr]
    encoded = [renderer.prompt_ids(p, raw=raw) if decodes else renderer.encoder_ids(p) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    choice = {"do_sample": False} if sampling is None else {"do_sample": True, "top_k": 0, **sampling}
    ends = {"pad_token_id": pad_id, "eos_token_id": list(renderer.stop_ids) or None, "max_new_tokens": max_new_tokens}
    first = () if prefix is None else prefix.ids
    try:
        for start in range(0, len(order), batch_size):
            tick(start, len(order))
            rows = order[start : start + batch_size]
            ids, mask = _side_by_side([encoded[i] for i in rows], pad_id, first, left=decodes)
            written = _written(model, ids, mask, prefix=prefix, stop=stop, **ends, **choice)
            for i, row in zip(rows, written, strict=True):
                answer = _decoded(row, renderer)
                answers[i] = answer if stop is None else stop.cut(answer)
    finally:
        model.train(training)
    return answers


def _written(
    model: torch.nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    prefix: Prefix | None,
    stop: StopText | None,
    **settings: Any,
) -> list[list[int]]:
    """Ids that transformers' `generate` puts after each row, or after the start of a decoder."""
    import torch

    device = next(model.parameters()).device
    read = 1 if model.config.is_encoder_decoder else ids.shape[1]  # type: ignore[union-attr]
    if prefix is not None:
        settings["past_key_values"] = prefix.repeated(len(ids))
    if stop is not None:
        settings["stopping_criteria"] = stop.criterion(read)
    with torch.no_grad(), uncompiled(), _own_settings_aside(model):
        output: torch.Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True, **settings
        )
    rows: list[list[int]] = output[:, read:].tolist()
    return rows


def _side_by_side(
    prompts: Sequence[Sequence[int]], pad_id: int, first: Sequence[int], *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [B, T]: `first`, which all begin with, then pads before or behind the rest."""
    import torch

    width, start = max(len(prompt) for prompt in prompts), len(first)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    ids[:, :start] = torch.tensor(first, dtype=torch.int64)
    mask[:, :start] = 1
    for row, prompt in enumerate(prompts):
        rest = prompt[start:]
        columns = slice(width - len(rest), width) if left else slice(start, len(prompt))
        ids[row, columns] = torch.tensor(rest)
        mask[row, columns] = 1
    return ids, mask


@contextmanager
def _own_settings_aside(model: torch.nn.Module) -> Iterator[None]:
    """Penalties, suppressed tokens and sampling that were published with a model would change what was asked."""
    from transformers import GenerationConfig, PreTrainedModel

    owner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    own = owner.generation_config
    kept = {"bos_token_id": own.bos_token_id, "decoder_start_token_id": own.decoder_start_token_id}
    owner.generation_config = GenerationConfig(**kept)
    try:
        yield
    finally:
        owner.generation_config = own


def _decoded(ids: list[int], renderer: Renderer) -> str:
    """Text up to the first terminator."""
    stops = set(renderer.stop_ids)
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    return str(renderer.tokenizer.decode(ids[:end], skip_special_tokens=True))


def text_scores(
    predictions: Sequence[Prediction], metrics: Sequence[str], functions: Mapping[str, RowScores], *, intervals: bool
) -> Scores:
    """Those of `metrics` that compare answers with what was expected.

    Raises:
        MetricError: one of `functions`, the user's own of them, fails.
    """
    from ftune.metrics.texts import texts

    wanted = [name for name in metrics if name in TEXT_METRICS]
    received, expected = [p.received for p in predictions], [p.expected for p in predictions]
    scores = texts(received, expected, wanted, intervals=intervals) if wanted and predictions else {}
    return scores | custom(received, expected, functions, intervals=intervals)


def predictions_lines(predictions: Sequence[Prediction | LabelPrediction]) -> str:
    """One JSON object a line, for a predictions file."""
    lines = [json.dumps({**asdict(p), "exact": p.exact}, ensure_ascii=False) for p in predictions]
    return "\n".join(lines) + "\n"
