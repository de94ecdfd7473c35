"""Fine-tuning in plain PyTorch: one row at a time, no padding, AdamW, clipping, schedule and LoRA written out.

Shares nothing with ftune but the order of rows, which the caller passes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids and whether each is to be predicted; both [T]."""


class PlainLora(torch.nn.Module):
    """y = W0 x + scale B A x."""

    def __init__(self, base: torch.nn.Module, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a, self.b = torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up that moves at once, then a cosine to zero just after the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def plain_loop(
    model: torch.nn.Module,
    learning: dict[str, torch.nn.Parameter],
    windows: Sequence[Sequence[Row]],
    *,
    peak: float,
    warmup: int,
    decay: float,
    max_norm: float,
) -> list[float]:
    """Train `learning` on one window of rows a step and return the loss per target of each step."""
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in learning.items()}
    losses = []
    for step, window in enumerate(windows):
        targets = sum(int(is_target.sum()) for _, is_target in window)
        loss = 0.0
        for ids, is_target in window:
            scores = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            nats = -scores[torch.arange(len(ids) - 1), ids[1:]][is_target[1:]].sum()
            (nats / targets).backward()
            loss += float(nats.detach()) / targets
        losses.append(loss)
        with torch.no_grad():
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in learning.values()))
            rate = learning_rate(step, peak=peak, warmup=warmup, steps=len(windows))
            for name, p in learning.items():
                gradient = p.grad * min(1.0, max_norm / (norm + 1e-6))
                mean, square = moments[name]
                mean.mul_(0.9).add_(gradient, alpha=0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                if p.ndim >= 2:
                    p.mul_(1 - rate * decay)
                unbiased = (square / (1 - 0.999 ** (step + 1))).sqrt()
                p.sub_(rate * (mean / (1 - 0.9 ** (step + 1))) / (unbiased + 1e-8))
                p.grad = None
    return losses
