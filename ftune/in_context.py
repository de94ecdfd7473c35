"""A loaded language model scored on rows with demonstrations before them: by likelihood, options, or what it writes.

What all rows share is computed once, where the model allows it (`ftune.prefix_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ftune.base import limit_of
from ftune.data.build import Split
from ftune.data.encode import BAD_ROW, TOO_LONG, Example
from ftune.data.encoder import Encoder
from ftune.data.pack import Cut
from ftune.data.render import Renderer, template_columns
from ftune.data.shape import Sample
from ftune.errors import DataError, RowProblem
from ftune.evaluation import RowLosses, Scores, likelihood_scores, row_losses
from ftune.generation import Prediction, predict, text_scores
from ftune.loop import training_module
from ftune.metrics.custom import RowScores
from ftune.options import (
    OptionTexts,
    Question,
    content_free,
    letters_or_texts,
    log_probabilities,
    option_examples,
    option_scores,
    question_of,
)
from ftune.prefix_cache import PrefixCache, common_length
from ftune.recipe import Recipe
from ftune.shots import SEPARATOR, shown_before
from ftune.stop_text import StopText
from ftune.target import Target

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

UNLIMITED = 1 << 30
"""Longest example where the model names no limit, or where length is looked at elsewhere."""
Tick = Callable[[int, int], None]


@dataclass
class InContext:
    """Scores one target.

    Args:
        target: a language model, as it was loaded.
        recipe: what it obeys: the supervised part, the longest answer.
        accelerator: device and precision.
        batch_size: rows at a time; never changes results.
        chunk: how many targets have logits at once where nothing is shared; None makes those of all tokens.
        tick: called with (done, in all); may raise to stop.
    """

    target: Target
    recipe: Recipe
    accelerator: Accelerator
    batch_size: int
    chunk: int | None
    tick: Tick
    functions: Mapping[str, RowScores] = field(default_factory=dict)
    """The user's own metrics, of `ftune.metrics.custom`."""
    cache: PrefixCache = field(init=False)

    def __post_init__(self) -> None:
        self.target.model.to(self.accelerator.device).eval()
        self.cache = PrefixCache(self.target.model, self.accelerator.autocast, self.target.pad_id, self.batch_size)

    @property
    def renderer(self) -> Renderer:
        """Of training, unless another template was asked for."""
        return self.target.renderer

    @property
    def pairs(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        config: Any = self.target.model.config
        return bool(config.is_encoder_decoder)

    @property
    def limit(self) -> int:
        """Most tokens that the model takes, demonstrations and virtual tokens among them."""
        config: Any = self.target.model.config
        taken = 0 if self.target.kind == "recipe" else self.recipe.learner.positions_taken
        most = limit_of(config)
        return UNLIMITED if most is None else most - taken

    @property
    def embedder(self) -> PreTrainedModel:
        """The model with what it learned, without wrappers of methods."""
        from transformers import PreTrainedModel

        return next(module for module in self.target.model.modules() if isinstance(module, PreTrainedModel))

    # what is read

    def examples(self, shown: Sequence[Sample]) -> list[Example]:
        """Rows with their demonstrations as tokens, of which those of the answers are targets.

        Raises:
            DataError: a row cannot be rendered.
        """
        data = self.recipe.data
        if self.renderer.mode == "chat" and data.train_on == "all":  # which would score demonstrations
            data = data.model_copy(update={"train_on": "completion"})
        data = data.model_copy(update={"overlong": "error"})
        encoder = Encoder(data, self.recipe.objective, self.renderer, UNLIMITED, (), self.pairs)
        found: list[Example] = []
        problems = []
        encoded = encoder.encode(shown, lambda done: None, answered=True, tokens=False)
        for sample, one in zip(shown, encoded, strict=True):
            found += one.examples
            if one.reason in (BAD_ROW, TOO_LONG):
                problems.append(RowProblem(sample.row.file, sample.row.number, f"{one.message}."))
        if problems and (data.on_bad_row == "error" or not found):
            raise DataError(problems=problems)
        return found

    def needed(self, shown: Sequence[Sample], questions: Sequence[Question] | None, *, writes: bool) -> list[int]:
        """Tokens that the model must take for each row: the longer of what it reads and what it may have written."""
        if questions is not None:
            longest = [replace(one, options=(max(one.options, key=self._size),)) for one in questions]
            read = [len(one.ids) for one in option_examples(longest, shown, self.renderer)]
        else:
            by_place: dict[str, int] = {}
            for one in self.examples(shown):
                size = max(len(one.ids), 0 if one.answer is None else len(one.answer))
                by_place[one.place] = max(size, by_place.get(one.place, 0))
            read = [by_place.get(f"{sample.row.file}:{sample.row.number}", 0) for sample in shown]
        if not writes or self.pairs:
            return read
        room = self.recipe.eval.max_new_tokens
        return [max(size, len(ids) + room) for size, ids in zip(read, self._prompts(shown), strict=True)]

    def _size(self, option: str) -> int:
        return len(self.renderer.tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"])

    def _prompts(self, shown: Sequence[Sample]) -> list[list[int]]:
        found, problems = [], []
        for sample in shown:
            try:
                found.append(self.renderer.prompt_ids(self.renderer.prompt(sample)))
            except ValueError as error:
                problems.append(RowProblem(sample.row.file, sample.row.number, f"{error}."))
        if problems:
            raise DataError(problems=problems)
        return found

    # what is said

    def nats(self, examples: Sequence[Example], groups: Sequence[int]) -> np.ndarray:
        """-log p of the targets of each example, float64 [N]; those of one group share more than all do."""
        total = len(examples)
        if (
            not self.pairs
            and (found := self.cache.nats(examples, groups, lambda done: self.tick(done, total))) is not None
        ):
            return found
        return self._rows(examples).nats

    def _rows(self, examples: Sequence[Example]) -> RowLosses:
        """Every row by itself."""
        objective = self.recipe.objective
        module = training_module(self.target.model, objective, self.chunk)
        return row_losses(
            self.accelerator.prepare_model(module, evaluation_mode=True),
            examples,
            objective=objective,
            accelerator=self.accelerator,
            pad_id=self.target.pad_id,
            cut=Cut(self.batch_size),
            draw=None,
            tick=self.tick,
        )

    def likelihoods(self, shown: Sequence[Sample], metrics: Sequence[str]) -> Scores:
        """Loss, perplexity and bits per byte of the answers, those of them that `metrics` names."""
        examples = self.examples(shown)
        losses = RowLosses(
            nats=self.nats(examples, range(len(examples))),
            targets=np.array([one.num_targets for one in examples], dtype=np.int64),
            num_bytes=np.array([one.num_bytes for one in examples], dtype=np.int64),
            outputs=None,
            examples=examples,
        )
        return likelihood_scores(losses, metrics, intervals=True)

    def question_maker(
        self, labels: Sequence[str], texts: OptionTexts | None, *, own_prompt: bool
    ) -> Callable[[Sample], Question]:
        """A function that makes a question of a row with options.

        Args:
            labels: the options of rows with a label.
            texts: what the options of rows with choices are; None takes what suits the prompt.
            own_prompt: whether prompts are the recipe's: then letters stand where training had them.
        """
        suited = texts or letters_or_texts(self.renderer, template_columns(self.recipe.data.template))

        def make(sample: Sample) -> Question:
            spaced = not (sample.choices and suited == "letters" and own_prompt)
            return question_of(sample, labels, suited, self.renderer, spaced=spaced)

        return make

    def options(
        self, questions: Sequence[Question], before: Sequence[Sequence[Sample]], metrics: Sequence[str], *,
        calibrate: bool,
    ) -> tuple[Scores, list[Prediction]]:  # fmt: skip
        """Metrics of the options, and the likeliest one of each row.

        Args:
            questions: N rows.
            before: the demonstrations of each, [N].
            metrics: names; others are passed over.
            calibrate: subtract what the model says of the options without content.
        """
        shown = [shown_before(one.sample, some, self.renderer) for one, some in zip(questions, before, strict=True)]
        scores = self._options(questions, shown)
        if calibrate:
            scores = [said - bare for said, bare in zip(scores, self._bias(questions, before), strict=True)]
        chosen = [int(row.argmax()) for row in scores]
        predictions = [
            Prediction(
                sample.row.file, sample.row.number, self.renderer.prompt(sample),
                one.options[one.correct].strip(), one.options[best].strip(),
            )
            for one, sample, best in zip(questions, shown, chosen, strict=True)
        ]  # fmt: skip
        labelled = not questions[0].sample.choices
        return option_scores(questions, scores, metrics, labelled=labelled), predictions

    def _options(self, questions: Sequence[Question], shown: Sequence[Sample]) -> list[np.ndarray]:
        at_once = max(self.batch_size, 4096 // max(1, len(questions[0].options)))
        return log_probabilities(questions, shown, self.renderer, self.nats, at_once=at_once)

    def _bias(self, questions: Sequence[Question], before: Sequence[Sequence[Sample]]) -> list[np.ndarray]:
        """Log-probability of each option without content; prompts that are equal then are computed once."""
        bare = [content_free(one) for one in questions]
        shown = [shown_before(one.sample, some, self.renderer) for one, some in zip(bare, before, strict=True)]
        keys = [(self.renderer.prompt(sample), one.options) for one, sample in zip(bare, shown, strict=True)]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        places = list(first.values())
        scores = self._options([bare[place] for place in places], [shown[place] for place in places])
        by_key = dict(zip(first, scores, strict=True))
        return [by_key[key] for key in keys]

    def answers(
        self, shown: Sequence[Sample], demonstrations: Sequence[Sample], metrics: Sequence[str]
    ) -> tuple[Scores, list[Prediction]]:
        """Metrics of the answers that the model writes, and the answers.

        Without a chat template nothing but the pattern says where an answer ends. So it ends at the first blank line,
        which is what ends it in the demonstrations; unless one of their answers holds a blank line itself.

        Args:
            shown: rows with their demonstrations.
            demonstrations: all that any row has.
            metrics: names; others are passed over.
        """
        ends = bool(demonstrations) and self.renderer.mode != "chat"
        if any(SEPARATOR in one.turns[-1].content for one in demonstrations):
            ends = False
        prompts = self._prompts(shown) if demonstrations and not self.pairs else []
        cache = replace(self.cache, autocast=nullcontext)  # in which answers are written
        prefix = cache.prefix(prompts[0][: common_length(prompts)]) if prompts else None
        predictions = predict(
            self.target.model,
            shown,
            self.renderer,
            pad_id=self.target.pad_id,
            max_new_tokens=self.recipe.eval.max_new_tokens,
            batch_size=self.batch_size,
            tick=self.tick,
            prefix=prefix,
            stop=StopText(SEPARATOR, self.renderer.tokenizer) if ends else None,
        )
        return text_scores(predictions, metrics, self.functions, intervals=True), predictions


def score_choices(scorer: InContext, split: Split, metrics: Sequence[str]) -> tuple[Scores, list[Prediction]]:
    """Metrics of the choices of an encoded split without demonstrations, and the likeliest one of each row."""
    kept = {example.place for example in split.examples}
    make = scorer.question_maker((), None, own_prompt=True)
    samples = [one for one in split.samples if f"{one.row.file}:{one.row.number}" in kept]
    questions = [make(sample) for sample in samples]
    return scorer.options(questions, [()] * len(questions), metrics, calibrate=False)
