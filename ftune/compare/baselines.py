"""What a tuned model must beat, without any language model: the majority, and a linear model of word counts.

`majority` gives every row the most frequent answer of the training rows, or the mean of a number. `tfidf` is logistic
regression (ridge regression of a number) on TF-IDF of words and pairs of words, by scikit-learn. Words with tags get
the most frequent tag of the same word instead. Free text has no such baseline.

Arrays: N scored rows, C labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftune.data.shape import Sample
from ftune.metrics import Score
from ftune.objectives import Objective

MOST_ANSWERS = 1000
"""Distinct answers of the training rows up to which an answer counts as a label."""
INVERSE_STRENGTH = 20.0
"""C of the logistic regression: little regularisation, as suits some ten rows a class."""


@dataclass(frozen=True)
class Baseline:
    """A system that needs no language model.

    Args:
        name: `majority`, `tfidf` or `word_majority`.
        about: what it does.
        scores: by metric.
    """

    name: str
    about: str
    scores: dict[str, Score]


def baselines(
    train: Sequence[Sample],
    scored: Sequence[Sample],
    labels: Sequence[str],
    objective: Objective,
    metrics: Sequence[str],
) -> tuple[list[Baseline], str]:
    """All that there are for these rows, and why there are no others.

    Args:
        train: rows that are learned from.
        scored: rows that are answered.
        labels: of the training rows, in the order of a model's outputs.
        objective: says what an answer is.
        metrics: names; those that an answer without probabilities cannot have are left out.
    """
    if objective.encoding == "token_labels":
        return [_most_frequent_tags(train, scored, metrics)], ""
    if objective.encoding == "row_labels":
        if not labels:
            return _numbers(train, scored, metrics), ""
        several = not isinstance(scored[0].label, str)
        known = set(labels)
        scored = [s for s in scored if known.issuperset((s.label,) if isinstance(s.label, str) else s.label or ())]  # type: ignore[arg-type]
        return (_several if several else _one_label)(train, scored, labels, metrics), ""
    pairs = [[(_question(s), s.turns[-1].content) for s in rows if _is_answered(s)] for rows in (train, scored)]
    answers = Counter(answer for _, answer in pairs[0])
    if not pairs[1] or not 1 < len(answers) <= min(MOST_ANSWERS, len(pairs[0]) / 2):
        return [], "the answers are free text: there is no majority, and nothing that a linear model could choose from"
    return _answers(pairs[0], pairs[1], metrics), ""


def _words(sample: Sample) -> str:
    return f"{sample.text} {sample.text_pair}".strip()


def _is_answered(sample: Sample) -> bool:
    return bool(sample.turns) and sample.turns[-1].role == "assistant" and bool(sample.turns[-1].weight)


def _question(sample: Sample) -> str:
    return "\n".join(turn.content for turn in sample.turns[:-1])


def _linear(texts: Sequence[str], model: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    # every string of letters or digits is a word, single ones and those of other scripts too
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    return make_pipeline(vectors, model)


ABOUT_MAJORITY = "the most frequent answer of the training rows"
ABOUT_TFIDF = f"TF-IDF of words and pairs of words, logistic regression (C = {INVERSE_STRENGTH:g})"


def _classifier(texts: Sequence[str], labels: Sequence[Any]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _linear(texts, LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000)).fit(texts, labels)


def _one_label(
    train: Sequence[Sample], scored: Sequence[Sample], labels: Sequence[str], metrics: Sequence[str]
) -> list[Baseline]:
    from ftune.metrics.labels import single_label

    numbers = {name: number for number, name in enumerate(labels)}
    gold = np.array([numbers[str(sample.label)] for sample in scored])
    learned = [numbers[str(sample.label)] for sample in train]
    shares = np.bincount(learned, minlength=len(labels)) / len(learned)
    tables = {"majority": (ABOUT_MAJORITY, np.tile(np.log(shares), (len(scored), 1)))}
    if len(set(learned)) > 1:
        fitted = _classifier([_words(sample) for sample in train], learned)
        found = np.full((len(scored), len(labels)), -np.inf)
        found[:, fitted.classes_] = fitted.predict_log_proba([_words(sample) for sample in scored])
        tables["tfidf"] = (ABOUT_TFIDF, found)
    return [
        Baseline(name, about, single_label(np.maximum(scores, -1e3), gold, metrics, intervals=True))
        for name, (about, scores) in tables.items()
    ]


def _several(
    train: Sequence[Sample], scored: Sequence[Sample], labels: Sequence[str], metrics: Sequence[str]
) -> list[Baseline]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    from ftune.metrics.labels import multi_label

    gold, learned = (
        np.array([[name in tuple(sample.label or ()) for name in labels] for sample in rows], dtype=np.float32)  # type: ignore[arg-type]
        for rows in (scored, train)
    )
    shares = learned.mean(axis=0)
    texts = [_words(sample) for sample in train]
    model = _linear(texts, OneVsRestClassifier(LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000)))
    probabilities = model.fit(texts, learned).predict_proba([_words(sample) for sample in scored])
    tables = {
        "majority": ("each label that most training rows have", np.tile(shares, (len(scored), 1))),
        "tfidf": (f"{ABOUT_TFIDF}, one for each label", probabilities),
    }
    return [
        Baseline(name, about, multi_label(_logits(found), gold, metrics, intervals=True))
        for name, (about, found) in tables.items()
    ]


def _logits(probabilities: np.ndarray) -> np.ndarray:
    kept = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(kept / (1 - kept)))


def _numbers(train: Sequence[Sample], scored: Sequence[Sample], metrics: Sequence[str]) -> list[Baseline]:
    from sklearn.linear_model import Ridge

    from ftune.metrics.regression import regression

    gold, learned = (np.array([float(s.label) for s in rows]) for rows in (scored, train))  # type: ignore[arg-type]
    texts = [_words(sample) for sample in train]
    fitted = _linear(texts, Ridge()).fit(texts, learned)
    tables = {
        "majority": ("the mean of the training rows", np.full(len(gold), learned.mean())),
        "tfidf": ("TF-IDF of words and pairs of words, ridge regression", fitted.predict([_words(s) for s in scored])),
    }
    return [
        Baseline(name, about, regression(found, gold, metrics, intervals=True))
        for name, (about, found) in tables.items()
    ]


def _most_frequent_tags(train: Sequence[Sample], scored: Sequence[Sample], metrics: Sequence[str]) -> Baseline:
    from ftune.metrics.spans import not_bio, spans

    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        for word, tag in zip(sample.words, _tags(sample), strict=True):
            by_word[word][tag] += 1
    (default, _), *_ = sum(by_word.values(), Counter[str]()).most_common(1)
    best = {word: tags.most_common(1)[0][0] for word, tags in by_word.items()}
    predicted = [[best.get(word, default) for word in sample.words] for sample in scored]
    gold = [list(_tags(sample)) for sample in scored]
    if not_bio(sorted({tag for row in gold for tag in row})):
        metrics = [name for name in metrics if not name.startswith("span_")]
    scores = spans(predicted, gold, metrics, intervals=True)
    return Baseline("word_majority", "the most frequent tag of the same word in the training rows", scores)


def _tags(sample: Sample) -> tuple[str, ...]:
    return sample.label if isinstance(sample.label, tuple) else ()


def _answers(
    train: Sequence[tuple[str, str]], scored: Sequence[tuple[str, str]], metrics: Sequence[str]
) -> list[Baseline]:
    from ftune.metrics.texts import texts

    questions, gold = [question for question, _ in scored], [answer for _, answer in scored]
    (most, _), *_ = Counter(answer for _, answer in train).most_common(1)
    fitted = _classifier([question for question, _ in train], [answer for _, answer in train])
    tables = {
        "majority": (ABOUT_MAJORITY, [most] * len(gold)),
        "tfidf": (f"{ABOUT_TFIDF}, over the answers of the training rows", list(map(str, fitted.predict(questions)))),
    }
    return [
        Baseline(name, about, texts(found, gold, metrics, intervals=True)) for name, (about, found) in tables.items()
    ]
