"""Rows of a recipe as they enter the model, chosen for people to look at. Loads no weights, prints nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ftune.data.build import Split
from ftune.data.encode import Example
from ftune.data.encoder import Encoder
from ftune.data.order import draw_seed, epoch_order, held_out_seed
from ftune.data.samples import Tick
from ftune.data.shape import Sample
from ftune.data.view import Lens, View
from ftune.errors import Problem, RecipeError
from ftune.load import Loaded
from ftune.prepare import PreparedData, prepare_data

SplitName = Literal["train", "eval", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "eval", "test")
Place = tuple[str, int]


@dataclass(frozen=True)
class Request:
    """Which examples are wanted.

    Args:
        split: of which split.
        rows: at most so many.
        number: of one row (its line) instead of the first; of whatever file, unless `file` names the end of its path.
        file: see there.
        shuffle: in the order in which the first epoch meets them.
    """

    split: SplitName = "train"
    rows: int = 5
    number: int | None = None
    file: str | None = None
    shuffle: bool = False


@dataclass(frozen=True)
class Seen:
    """What was asked for, and all that is known of the rows."""

    rows: PreparedData
    views: list[View]

    @property
    def splits(self) -> dict[SplitName, Split]:
        """The splits that the recipe has."""
        return splits_of(self.rows)


def splits_of(rows: PreparedData) -> dict[SplitName, Split]:
    """The splits that the recipe has, by name."""
    dataset = rows.dataset
    found: dict[SplitName, Split | None] = {"train": dataset.train, "eval": dataset.eval, "test": dataset.test}
    return {name: split for name, split in found.items() if split is not None}


def look_at_rows(loaded: Loaded, request: Request, tick: Tick) -> Seen:
    """Tokenise the recipe's rows and look at those that are asked for.

    Raises:
        RecipeError: there is no such split, or no such row in it.
        DataError, MachineError: what the recipe asks cannot be done here.
    """
    rows = prepare_data(loaded, tick)
    known = splits_of(rows)
    if request.split not in known:
        message = f"the recipe has no {request.split} rows. It has: {', '.join(known)}."
        raise RecipeError([Problem(f"data.{request.split}", message, "--split")])
    looker = _Looker(loaded, rows, request.split, known[request.split])
    views = looker.views(_chosen(looker.split, request, loaded.recipe.seed), request.rows)
    if request.number is not None and not views and request.rows:
        views = looker.left_out(_wanted(known, request))[: request.rows]
    return Seen(rows, views)


def _chosen(split: Split, request: Request, seed: int) -> Iterator[int]:
    """Numbers of examples, lazily: the first, one row's, or all in the order of the first epoch."""
    examples = split.examples
    if request.number is not None:
        yield from (i for i in range(len(examples)) if _is_wanted(examples[i].file, examples[i].number, request))
    elif request.shuffle:
        yield from map(int, epoch_order(len(examples) if split.mix is None else split.mix, seed, 0))
    else:
        yield from range(len(examples))


def _is_wanted(file: str, number: int, request: Request) -> bool:
    if number != request.number:
        return False
    return request.file is None or file == request.file or file.endswith(f"/{request.file.removeprefix('./')}")


def _wanted(known: dict[SplitName, Split], request: Request) -> Sample:
    """The sample of a row that gave no example.

    Raises:
        RecipeError: the split has no such row; says where it is, or what became of it.
    """

    def find(split: Split) -> Sample | None:
        return next((s for s in split.samples if _is_wanted(s.row.file, s.row.number, request)), None)

    found = find(known[request.split])
    if found is not None:
        return found
    elsewhere = [name for name, split in known.items() if name != request.split and find(split) is not None]
    if elsewhere:
        hint = f"It is in {elsewhere[0]}: add --split {elsewhere[0]}."
    else:
        copies = known["train"].report.dropped.get("duplicate", 0)
        hint = "Rows are counted from 1, by their line, as errors name them."
        hint += f" {copies} exact duplicates of other rows are left out before the split." if copies else ""
    place = f"{request.file}:{request.number}" if request.file else f"row {request.number}"
    raise RecipeError([Problem("", f"{request.split} has no {place}. {hint}", "--row")])


class _Looker:
    """Turns the examples of one split into views."""

    def __init__(self, loaded: Loaded, rows: PreparedData, name: SplitName, split: Split) -> None:
        self.recipe, self.rows, self.split, self.held_out = loaded.recipe, rows, split, name != "train"
        core, objective = rows.tokenizer.backend_tokenizer, loaded.recipe.objective
        self.lens = Lens(
            decode=lambda ids: str(core.decode(ids, skip_special_tokens=False)),
            special_ids=rows.renderer.special_ids,
            encoding=objective.encoding,
            names=rows.dataset.labels,
        )
        self.mix = split.mix
        self.group = range(0)

    def views(self, chosen: Iterator[int], at_most: int) -> list[View]:
        """The first of the chosen examples."""
        found = {i: self.split.examples[i] for i in itertools.islice(chosen, at_most)}
        answered = bool(self.split.samples.numbers("answered").any())
        parted = answered and any(self._window(i, example)[1] > 1 for i, example in found.items())
        samples = self._samples({(example.file, example.number) for example in found.values()}, parted=parted)
        return [self._view(i, example, samples.get((example.file, example.number))) for i, example in found.items()]

    def _window(self, i: int, example: Example) -> tuple[int, int]:
        """Which part of its row an example is, counted from 1, and of how many."""
        examples = self.split.examples
        if i not in self.group:
            first, end = i, i + 1
            while first > 0 and examples[first - 1].place == example.place:
                first -= 1
            while end < len(examples) and examples[end].place == example.place:
                end += 1
            self.group = range(first, end)
        return i - self.group.start + 1, len(self.group)

    def _samples(self, places: set[Place], *, parted: bool) -> dict[Place, Sample]:
        """The rows of some examples, of which some are `parted`, where the examples do not say enough."""
        if not (parted or self.split.report.truncated or self.lens.encoding == "token_labels"):
            return {}
        found: dict[Place, Sample] = {}
        for sample in self.split.samples:
            place = (sample.row.file, sample.row.number)
            if place in places:
                found.setdefault(place, sample)
                if len(found) == len(places):
                    break
        return found

    def _view(self, i: int, example: Example, sample: Sample | None) -> View:
        draw = self.rows.draw
        seed = held_out_seed(i) if self.held_out else draw_seed(self.recipe.seed, 0, i)
        drawn = example if draw is None else draw(example, seed)
        window, number = self._window(i, example)
        times = 1.0 if self.mix is None else self.mix.weights[self.mix.source[i]]
        whole = None if sample is None else self._whole(sample, window, number)
        words = () if sample is None else sample.words
        view = self.lens.view(example, drawn=drawn, whole=whole, words=words)
        answers = number > 1 and sample is not None and bool(sample.turns)
        return replace(view, window=window, windows=number, answers=answers, times=times)

    def _whole(self, sample: Sample, part: int, parts: int) -> Example | None:
        """An example before it was cut to size, where it may have been; None for a window of a text."""
        if parts > 1 and not sample.turns:
            return None
        whole, _ = self._alone(sample, sys.maxsize)
        if len(whole) > parts:  # of some answers nothing was left, so they are not among the examples
            limit = self.rows.max_length
            whole = [example for example in whole if example.is_target[:limit].any()]
        return whole[part - 1] if len(whole) == parts else None

    def left_out(self, sample: Sample) -> list[View]:
        """The examples that a row would have given, whole, with the reason why it is not trained on."""
        _, reason = self._alone(sample, self.rows.max_length)
        whole, wholly = self._alone(sample, sys.maxsize)
        none = np.zeros(0, dtype=np.int32)
        nothing = Example(none, none.astype(bool), 0, sample.row.file, sample.row.number)
        views = [self.lens.view(one, drawn=one, whole=None, words=sample.words) for one in whole or [nothing]]
        many = len(views)
        return [
            replace(view, dropped=reason or wholly, window=number, windows=many, answers=many > 1)
            for number, view in enumerate(views, 1)
        ]

    def _alone(self, sample: Sample, max_length: int) -> tuple[Sequence[Example], str | None]:
        """One row, encoded as the split was but for its length; without examples the reason."""
        rows, recipe = self.rows, self.recipe
        joint = rows.family == "encoder_decoder"
        encoder = Encoder(recipe.data, recipe.objective, rows.renderer, max_length, rows.dataset.labels, joint)
        kind = {"answered": bool(sample.turns), "tokens": bool(sample.ids)}
        (found,) = encoder.encode([sample], lambda done: None, **kind)
        return found.examples, found.reason or None
