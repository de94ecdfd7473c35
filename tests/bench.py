"""A recipe made ready for the loop without a run folder, for laws about gradients and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftune.load import Loaded


@dataclass
class Bench:
    """A recipe made ready for the loop, without a run folder."""

    plan: Any
    prepared: Any
    accelerator: Any
    model: Any
    module: Any
    optimizer: Any
    objective: Any

    def steps(self, first: int = 0) -> Any:
        """The loop."""
        from ftune.loop import train_steps
        from ftune.meter import Meter
        from ftune.start import pad_id_of

        return train_steps(
            self.plan,
            accelerator=self.accelerator,
            module=self.module,
            optimizer=self.optimizer,
            objective=self.objective,
            examples=self.prepared.dataset.train.examples,
            mix=self.prepared.dataset.train.mix,
            pad_id=pad_id_of(self.prepared.tokenizer),
            draw=self.prepared.draw,
            first_step=first,
            interrupted=lambda: False,
            meter=Meter(),
        )

    def gradients(self) -> dict[str, Any]:
        """Copies of the gradients of what learns."""
        return {n: p.grad.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def row_losses(self, batch_size: int = 4, **options: Any) -> Any:
        """Losses of the training rows."""
        from ftune.data.pack import Cut
        from ftune.evaluation import row_losses
        from ftune.start import pad_id_of

        settings = {
            "cut": Cut(batch_size),
            "draw": self.prepared.draw,
            "tick": lambda done, total: None,
            "pad_id": pad_id_of(self.prepared.tokenizer),
        }
        examples = self.prepared.dataset.train.examples
        return row_losses(
            self.module, examples, objective=self.objective, accelerator=self.accelerator, **{**settings, **options}
        )


def bench(loaded: Loaded) -> Bench:
    """Everything that `ftune.run` puts together before the first step."""
    from ftune.begin import make_ready
    from ftune.device import build_accelerator, torch_dtype
    from ftune.loop import training_module
    from ftune.optim import build_optimizer
    from ftune.prepare import prepare
    from ftune.target import attached

    prepared = prepare(loaded, lambda what, done, total: None)
    plan = prepared.plan
    accelerator = build_accelerator(plan.runtime)
    model = attached(prepared.start, prepared.record, prepared.tokenizer, torch_dtype(plan.frozen_dtype))
    make_ready(model, plan)
    module = accelerator.prepare_model(training_module(model, loaded.recipe.objective, plan.loss_chunk))
    optimizer = build_optimizer(plan, loaded.recipe.method, model)
    return Bench(plan, prepared, accelerator, model, module, optimizer, loaded.recipe.objective)


def two_steps(loaded: Loaded) -> dict[str, Any]:
    """Tensors `first/NAME` and `second/NAME`: gradients of two steps; `losses`, `rows` of both; `nats` of each row;
    `cut`: micro-batch, accumulation, processes."""
    import torch

    work = bench(loaded)
    steps = work.steps()
    found: dict[str, Any] = {}
    results = []
    for name in ("first", "second"):
        results.append(next(steps))
        found |= {f"{name}/{key}": gradient for key, gradient in work.gradients().items()}
    found["losses"] = torch.tensor([result.loss for result in results], dtype=torch.float64)
    found["cut"] = torch.tensor([work.plan.micro_batch_size, work.plan.accumulation, work.plan.num_processes])
    found["rows"] = torch.tensor([result.rows for result in results])
    found["nats"] = torch.from_numpy(work.row_losses(batch_size=3).nats)
    return found
