"""How the rows of the first step are laid into packs. Only numbers: no model is tried, no weights are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ftune.data.build import Split
from ftune.data.order import window
from ftune.data.pack import Cut
from ftune.micro_batch import tokens_on_cpu
from ftune.recipe import Recipe

TRIAL = "if the trial that ftune plan makes finds that the model keeps rows apart"
ON_CPU = "and as many tokens as on a CPU"


@dataclass(frozen=True)
class Laid:
    """One example in a pack: its row, and its tokens from position `start` of the pack to before `end`."""

    file: str
    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Packs:
    """The first step of training.

    Args:
        refused: why rows are not packed; then there is nothing else.
        condition: under which they are laid so; empty where they are in any case.
        capacity: tokens that a pack may have.
        packs: the examples of each, in order.
    """

    refused: str = ""
    condition: str = ""
    capacity: int = 0
    packs: tuple[tuple[Laid, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `ftune data --json` prints it."""
        if self.refused:
            return {"refused": self.refused}
        return {"condition": self.condition, "capacity": self.capacity} | {
            "packs": [{"tokens": pack[-1].end, "examples": [asdict(laid) for laid in pack]} for pack in self.packs]
        }

    def sentences(self) -> list[str]:
        """The same for people."""
        if self.refused:
            return [f"packing: none: {self.refused}"]
        count = sum(map(len, self.packs))
        head = f"packing: {self.condition}, " if self.condition else "packing: "
        head += f"the {count} examples of the first step are laid into {len(self.packs)} packs of at most "
        lines = [f"{head}{self.capacity:,} tokens, which see nothing of each other:"]
        for number, pack in enumerate(self.packs, 1):
            places = ", ".join(f"{laid.start}-{laid.end - 1} {laid.file}:{laid.row}" for laid in pack)
            lines.append(f"pack {number}, {pack[-1].end:,} tokens: {places}")
        return lines


def packs_of(recipe: Recipe, train: Split) -> Packs:
    """How a run of this recipe would lay the rows of its first step end to end."""
    asked, constraint = recipe.data.packing, recipe.learner.packing_constraint()
    if asked is False:
        return Packs(refused="data.packing is false")
    if not recipe.objective.packs:
        return Packs(refused=f"objective {recipe.objective.name} reads rows side by side")
    if constraint is not None:
        return Packs(refused=constraint)
    batch, size, longest = recipe.train.batch_size, recipe.train.micro_batch_size, train.report.longest
    capacity = tokens_on_cpu(1 << (batch.bit_length() - 1), longest) if size == "auto" else size * longest
    cut = Cut(1, capacity, packed=True)
    step = window(train.examples, 0, batch_size=batch, cut=cut, seed=recipe.seed, mix=train.mix)
    packs = []
    for pack in step.micro_batches:
        laid, end = list[Laid](), 0
        for example in pack:
            start, end = end, end + example.num_tokens
            laid.append(Laid(example.file, example.number, start, end))
        packs.append(tuple(laid))
    return Packs("", f"{TRIAL}, {ON_CPU}" if size == "auto" else TRIAL, capacity, tuple(packs))
