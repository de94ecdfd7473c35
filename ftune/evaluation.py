"""What a model is worth on held-out rows: sums over all targets, never means of batch means.

bits per byte = loss in nats / (ln 2 x UTF-8 bytes of the supervised text); it compares models whatever their
tokenizers. 95% intervals are percentile bootstraps over rows, see `ftune.metrics`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ftune.compiled import uncompiled
from ftune.data.encode import Example
from ftune.data.order import Draw, held_out_seed
from ftune.data.pack import Cut
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DivergedError
from ftune.metrics import Score
from ftune.metrics.bootstrap import ratio
from ftune.metrics.custom import RowScores, custom
from ftune.objectives import TEXT_METRICS

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ftune.objectives import Objective

Tick = Callable[[int, int], None]
"""Called with (done, in all); may raise to stop."""


Scores = dict[str, Score]


@dataclass(frozen=True)
class RowLosses:
    """What a model says of each row.

    Args:
        nats, targets, num_bytes: [rows]; the loss over a row's targets (float64), their number, the bytes they spell.
        outputs: of a head, one array for each row; None for language models.
        examples: what was scored, with parts hidden where the objective hides any.
    """

    nats: np.ndarray
    targets: np.ndarray
    num_bytes: np.ndarray
    outputs: list[np.ndarray] | None
    examples: Sequence[Example]


def row_losses(
    module: torch.nn.Module,
    examples: Sequence[Example],
    *,
    objective: Objective,
    accelerator: Accelerator,
    pad_id: int,
    cut: Cut,
    draw: Draw | None,
    tick: Tick,
    pad_left: bool = False,
) -> RowLosses:
    """Losses of every example, whatever the batch size and the number of processes.

    Where the objective hides parts, the same parts are hidden each time, so that evaluations can be compared.

    Leaves the module in the mode it was in, and every generator and gradient as it was.

    Raises:
        DivergedError: a row's loss is not finite; names the rows.
    """
    import torch
    from accelerate.utils import gather_object

    training = module.training
    module.eval()
    if draw is not None:
        examples = [draw(example, held_out_seed(i)) for i, example in enumerate(examples)]
    order = sorted(range(len(examples)), key=lambda i: -examples[i].num_tokens)
    outputs: dict[int, np.ndarray] = {}
    batches = [order[part] for part in cut.side_by_side([examples[i] for i in order])]
    nats = torch.zeros(len(examples), dtype=torch.float32, device=accelerator.device)
    try:
        with torch.no_grad(), uncompiled():
            for number, rows in enumerate(batches):
                tick(number, len(batches))
                if number % accelerator.num_processes != accelerator.process_index:
                    continue
                batch = objective.collate([examples[i] for i in rows], pad_id, left=pad_left)
                sums, _, said = module({k: v.to(accelerator.device) for k, v in batch.items()}, scored=True)
                nats[torch.tensor(rows, device=nats.device)] = sums.float()
                if said is not None:
                    outputs.update(zip(rows, said.cpu().numpy(), strict=True))
    finally:
        module.train(training)
    if accelerator.num_processes > 1:
        nats = accelerator.reduce(nats, reduction="sum")
        outputs = dict(gather_object(list(outputs.items())))
    values = nats.double().cpu().numpy() if nats.device.type != "mps" else nats.cpu().double().numpy()
    if odd := [example.place for example, value in zip(examples, values, strict=True) if not np.isfinite(value)]:
        raise DivergedError(_not_finite(odd))
    return RowLosses(
        nats=values,
        targets=np.array([example.num_targets for example in examples], dtype=np.int64),
        num_bytes=np.array([example.num_bytes for example in examples], dtype=np.int64),
        outputs=[outputs[i] for i in range(len(examples))] if outputs else None,
        examples=examples,
    )


def _not_finite(places: list[str]) -> str:
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return f"the loss of held-out rows is not finite: {shown}. The weights have diverged, or look at these rows."


def mean_loss(losses: RowLosses) -> float:
    """Nats per target."""
    return float(losses.nats.sum() / losses.targets.sum())


def forward_scores(
    losses: RowLosses, objective: Objective, labels: Sequence[str], metrics: Sequence[str],
    functions: Mapping[str, RowScores], *, intervals: bool,
) -> Scores:  # fmt: skip
    """Loss, perplexity, bits per byte and what the objective makes of a head's outputs; those that `metrics` names.

    Raises:
        MetricError: one of `functions`, the user's own of them, fails.
    """
    scores = likelihood_scores(losses, metrics, intervals=intervals)
    wanted = [name for name in metrics if name not in scores and name not in functions]
    if losses.outputs is not None and wanted:
        scores |= objective.task_scores(losses.outputs, losses.examples, labels, wanted, intervals=intervals)
    if losses.outputs is not None and functions:
        received, expected = objective.answers(losses.outputs, losses.examples, labels)
        scores |= custom(received, expected, functions, intervals=intervals)
    return {name: scores[name] for name in metrics if name in scores}


def likelihood_scores(losses: RowLosses, metrics: Sequence[str], *, intervals: bool) -> Scores:
    """Loss, perplexity and bits per byte, those of them that `metrics` names."""
    per_target = ratio(losses.nats, losses.targets, intervals=intervals)
    scores = {"loss": per_target}
    low_high = per_target.ci95
    scores["perplexity"] = Score(
        _exp(per_target.value), None if low_high is None else (_exp(low_high[0]), _exp(low_high[1]))
    )
    if losses.num_bytes.sum() > 0:
        scores["bits_per_byte"] = ratio(losses.nats / math.log(2), losses.num_bytes, intervals=intervals)
    return {name: score for name, score in scores.items() if name in metrics}


def _exp(nats: float) -> float:
    return math.exp(min(nats, 709.0))  # near the largest float: infinity is no JSON


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
) -> list[Prediction]:
    """Greedy answers to the prompt of every sample that ends with an assistant turn of weight 1, in the order given."""
    answerable = [s for s in samples if s.turns and s.turns[-1].role == "assistant" and s.turns[-1].weight]
    prompts = [renderer.prompt(sample) for sample in answerable]
    answers = generate(
        model, prompts, renderer, pad_id=pad_id, max_new_tokens=max_new_tokens, batch_size=batch_size, tick=tick
    )
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

    Returns:
        The answers without prompt and terminator, in the order of `prompts`.
    """
    import torch

    decodes = not model.config.is_encoder_decoder  # type: ignore[union-attr]
    encoded = [renderer.prompt_ids(p, raw=raw) if decodes else renderer.encoder_ids(p) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    choice = {"do_sample": False} if sampling is None else {"do_sample": True, "top_k": 0, **sampling}
    try:
        for start in range(0, len(order), batch_size):
            tick(start, len(order))
            rows = order[start : start + batch_size]
            ids, mask = _side_by_side([encoded[i] for i in rows], pad_id, left=decodes)
            with torch.no_grad(), uncompiled(), _own_settings_aside(model):
                output = model.generate(  # type: ignore[operator]
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=pad_id,
                    eos_token_id=list(renderer.stop_ids) or None,
                    use_cache=True,
                    **choice,
                )
            for row, i in enumerate(rows):
                answers[i] = _decoded(output[row, ids.shape[1] if decodes else 1 :].tolist(), renderer)
    finally:
        model.train(training)
    return answers


def _side_by_side(prompts: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [B, T], with pads before each prompt, or after it for an encoder."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, columns] = torch.tensor(prompt)
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


def predictions_lines(predictions: Sequence[Prediction]) -> str:
    """One JSON object a line, for a predictions file."""
    lines = [json.dumps({**asdict(p), "exact": p.exact}, ensure_ascii=False) for p in predictions]
    return "\n".join(lines) + "\n"
