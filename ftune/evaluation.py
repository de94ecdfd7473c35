"""What a model is worth on held-out rows: sums over all targets, never means of batch means.

bits per byte = loss in nats / (ln 2 x UTF-8 bytes of the supervised text); it compares models whatever their
tokenizers. 95% intervals are percentile bootstraps over rows, see `ftune.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ftune.compiled import uncompiled
from ftune.data.encode import Example
from ftune.data.order import Draw, held_out_seed
from ftune.data.pack import Cut
from ftune.errors import DivergedError
from ftune.metrics import Score
from ftune.metrics.bootstrap import ratio
from ftune.metrics.custom import RowScores, custom

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ftune.objectives import Objective

Tick = Callable[[int, int], None]
"""Called with (done, in all); may raise to stop."""


Scores = dict[str, Score]
LARGEST_EXPONENT = 709.0
"""Of the largest float, nearly: infinity is no JSON."""


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
        raise DivergedError(not_finite(odd))
    return RowLosses(
        nats=values,
        targets=np.array([example.num_targets for example in examples], dtype=np.int64),
        num_bytes=np.array([example.num_bytes for example in examples], dtype=np.int64),
        outputs=[outputs[i] for i in range(len(examples))] if outputs else None,
        examples=examples,
    )


def not_finite(places: list[str]) -> str:
    """What to say of rows without a finite loss."""
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
        answers = objective.answers(losses.outputs, losses.examples, labels)
        received, expected = [one.received for one in answers], [one.expected for one in answers]
        scores |= custom(received, expected, functions, intervals=intervals)
    return {name: scores[name] for name in metrics if name in scores}


def likelihood_scores(losses: RowLosses, metrics: Sequence[str], *, intervals: bool) -> Scores:
    """Loss, perplexity and bits per byte, those of them that `metrics` names."""
    per_target = ratio(losses.nats, losses.targets, intervals=intervals)
    scores = {"loss": per_target}
    low_high, resamples = per_target.ci95, per_target.resamples
    scores["perplexity"] = Score(
        _exp(per_target.value),
        None if low_high is None else (_exp(low_high[0]), _exp(low_high[1])),
        None if resamples is None else np.exp(np.minimum(resamples, LARGEST_EXPONENT)),
    )
    if losses.num_bytes.sum() > 0:
        scores["bits_per_byte"] = ratio(losses.nats / math.log(2), losses.num_bytes, intervals=intervals)
    return {name: score for name, score in scores.items() if name in metrics}


def _exp(nats: float) -> float:
    return math.exp(min(nats, LARGEST_EXPONENT))
