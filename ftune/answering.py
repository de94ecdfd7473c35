"""`ftune generate` as a plain function: open a target and let it write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftune.data.chat import Turn
from ftune.data.read import Row
from ftune.data.samples import Tick
from ftune.data.shape import Sample
from ftune.errors import DataError, Problem, RecipeError
from ftune.facts import look_at_machine
from ftune.generation import generate
from ftune.target import Target, open_target


def answer(
    path: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None,
    seed: int,
    raw: bool,
    overrides: tuple[str, ...],
    tick: Tick,
) -> list[str]:
    """Let a target continue prompts.

    Args:
        path: any TARGET.
        prompts: what the user says; rendered as in training.
        max_new_tokens: longest answer.
        sampling: temperature, top_p; None is greedy.
        seed: of sampling.
        raw: continue the text as it is, without a template.
        overrides: `--set`, for a recipe.
        tick: hears of progress; may raise to stop.

    Raises:
        RecipeError: the target was trained to label, not to write.
    """
    import torch

    tick("loading", 0, 0)
    target = open_target(path, overrides=overrides)
    if target.record is not None and not target.record.recipe.objective.generation_metrics:
        name = target.record.recipe.objective.name
        message = (
            f"objective {name} labels or guesses, it writes no answers. Score rows with: ftune eval {path} --data FILE"
        )
        raise RecipeError([Problem("", message, str(path))])
    device = look_at_machine(Path()).device
    target.model.to(device)
    torch.manual_seed(seed)
    rendered = list(prompts) if raw else [_rendered(target, prompt) for prompt in prompts]
    return generate(
        target.model,
        rendered,
        target.renderer,
        pad_id=target.pad_id,
        max_new_tokens=max_new_tokens,
        batch_size=8,
        tick=lambda done, total: tick("generating", done, total),
        sampling=sampling,
        raw=raw,
    )


def _rendered(target: Target, prompt: str) -> str:
    """One user turn, through the template of training. A prompt template sees the text in every column it names."""
    row = Row("--prompt", 1, {})
    fields = dict.fromkeys(("prompt", "instruction", "text", "question", "source"), prompt) | {
        "input": "",
        "system": "",
    }
    if target.record is not None:
        fields |= dict.fromkeys(set(target.record.recipe.data.columns.values()), prompt)
    try:
        return target.renderer.prompt(Sample(row, turns=(Turn("user", prompt),), fields=fields))
    except ValueError as error:
        raise DataError(f"--prompt: {error}.") from error
