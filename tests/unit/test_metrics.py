"""Numbers by hand, against the libraries, and against a plain loop over resamples."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.errors import DataError, DivergedError
from ftune.metrics import METRICS, Score, names_of
from ftune.metrics import bootstrap as bootstrap_module
from ftune.metrics import labels as labels_module
from ftune.metrics.bootstrap import bootstrap, ratio
from ftune.metrics.labels import multi_label, multi_label_table, single_label, single_label_table
from ftune.metrics.options import options
from ftune.metrics.regression import regression
from ftune.metrics.spans import not_bio, span_table, spans
from ftune.metrics.texts import is_exact, numeric_match, signatures, texts, token_f1

ROOT = Path(__file__).parents[2]
SINGLE, MULTI, NUMBER, TOKENS, TEXT = (
    names_of(kind)  # type: ignore[arg-type]
    for kind in ("single_label", "multi_label", "regression", "token_labels", "text")
)
Scores = dict[str, Score]
pytestmark = pytest.mark.filterwarnings("error")
thorough = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def values(scores: Scores) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def one_hot(classes: Sequence[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[list(classes)]


def assert_json(scores: Scores) -> None:
    """Finite, and an interval in the right order."""
    for score in scores.values():
        json.dumps([score.value, score.ci95], allow_nan=False)
        if score.ci95 is not None:
            assert score.ci95[0] <= score.ci95[1]


# The table


def test_table_is_cold_and_says_which_way_is_better() -> None:
    program = "import sys, ftune.metrics; print({'numpy', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    lower = {"loss", "perplexity", "bits_per_byte", "mae", "rmse"}
    assert {name for name, metric in METRICS.items() if metric.better == "lower"} == lower
    assert names_of("multi_label") == ("macro_f1", "micro_f1", "subset_accuracy")


def test_importing_the_functions_imports_no_library() -> None:
    program = (
        "import sys, ftune.metrics.labels, ftune.metrics.regression, ftune.metrics.spans, ftune.metrics.texts\n"
        "print({'scipy', 'sklearn', 'sacrebleu', 'rouge_score', 'nervaluate', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_metric_of_a_kind_is_computed_and_no_other() -> None:
    found = {
        "single_label": single_label(one_hot([0, 1, 1], 2), np.array([0, 1, 0]), list(METRICS), intervals=False),
        "multi_label": multi_label(np.ones((2, 2)), np.ones((2, 2)), list(METRICS), intervals=False),
        "regression": regression(np.arange(3.0), np.arange(3.0), list(METRICS), intervals=False),
        "token_labels": spans([["O"]], [["O"]], list(METRICS), intervals=False),
        "text": texts(["a"], ["a"], list(METRICS), intervals=False),
        "options": options([np.zeros(2)], [np.ones(2)], [0], list(METRICS), intervals=False),
    }
    for kind, scores in found.items():
        assert set(scores) == set(names_of(kind)), kind  # type: ignore[arg-type]
    assert single_label(one_hot([0, 1], 2), np.array([0, 1]), ["mcc", "loss"], intervals=False).keys() == {"mcc"}
    assert texts(["a"], ["a"], ["rouge2"], intervals=False).keys() == {"rouge2"}


def test_options_by_hand() -> None:
    """The largest sum, and the largest per byte: a long option loses the first and wins the second."""
    scores = [np.array([-4.0, -6.0]), np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -2.0])]
    sizes = [np.array([2, 6]), np.array([1, 2, 3]), np.array([4, 4])]
    found = options(scores, sizes, [1, 0, 0], ["accuracy", "accuracy_norm"], intervals=False)
    assert found == {"accuracy": Score(2 / 3), "accuracy_norm": Score(1.0)}, "the first of equals"
    assert options([], [], [], ["accuracy"], intervals=True) == {}
    with pytest.raises(DivergedError, match="row 2"):
        options([scores[0], np.array([math.nan, 1.0])], sizes[:2], [0, 0], ["accuracy"], intervals=False)


def test_nothing_is_scored_without_rows() -> None:
    none = np.zeros((0, 3))
    assert single_label(none, np.zeros(0, dtype=int), SINGLE, intervals=True) == {}
    assert multi_label(none, none, MULTI, intervals=True) == {}
    assert regression(none[:, 0], none[:, 0], NUMBER, intervals=True) == {}
    assert spans([], [], TOKENS, intervals=True) == {}
    assert texts([], [], TEXT, intervals=True) == {}
    assert single_label_table(none, np.zeros(0, dtype=int), ["a", "b", "c"])["confusion"] == [[0] * 3] * 3


# Intervals


def test_ratio_is_a_ratio_of_sums() -> None:
    score = ratio(np.array([1.0, 2.0, 6.0]), np.array([1, 2, 3]), intervals=True)
    assert score.value == 1.5
    assert score.ci95 is not None and 1.0 <= score.ci95[0] < 1.5 < score.ci95[1] <= 2.0
    assert ratio(np.array([1.0, 2.0]), np.array([1, 1]), intervals=False) == Score(1.5, None)
    assert ratio(np.array([1.0]), np.array([4]), intervals=True) == Score(0.25, None)
    assert ratio(np.zeros(3), np.zeros(3), intervals=True) == Score(0.0, None)
    assert ratio(np.full(5, 2.0), np.full(5, 4), intervals=True) == Score(0.5, (0.5, 0.5))


def test_ratio_agrees_with_scipy_on_pairs() -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    above, below = random.normal(5, 1, 40), random.integers(1, 9, 40)
    found = stats.bootstrap(
        (above, below),
        lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis),
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.Generator(np.random.Philox(0)),
    ).confidence_interval
    assert ratio(above, below, intervals=True).ci95 == pytest.approx((found.low, found.high), rel=1e-12)


def test_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    rows = np.random.default_rng(1).normal(3, 2, 2000)
    low, high = ratio(rows, np.ones(2000), intervals=True).ci95 or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * rows.std() / math.sqrt(2000), rel=0.08)


def test_memory_is_bounded_and_the_bound_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).random(50)
    shapes: list[tuple[int, ...]] = []

    def mean(weights: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(weights.shape)
        assert (weights.sum(axis=1) == 50).all()
        return {"mean": weights @ rows / 50}

    whole = bootstrap({"mean": rows.mean()}, mean, 50, intervals=True)
    assert shapes == [(1000, 50)]
    monkeypatch.setattr(bootstrap_module, "ENTRIES_AT_ONCE", 1234)
    shapes.clear()
    assert bootstrap({"mean": rows.mean()}, mean, 50, intervals=True) == whole
    assert max(shapes) == (24, 50) and sum(count for count, _ in shapes) == 1000


def test_undefined_resamples_do_not_count() -> None:
    def sometimes(share: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda weights: {"x": np.where(np.arange(len(weights)) < share * len(weights), np.nan, 2.0)}

    assert bootstrap({"x": 2.0}, sometimes(0.4), 5, intervals=True)["x"] == Score(2.0, (2.0, 2.0))
    assert bootstrap({"x": 2.0}, sometimes(0.6), 5, intervals=True)["x"] == Score(2.0, None)


@pytest.fixture
def brute(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, float]]:
    """The interval by a loop: measure the drawn rows, 80 times."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLES", 80)

    def interval(measure: Callable[[np.ndarray], float], num_rows: int) -> tuple[float, float]:
        draws = np.random.Generator(np.random.Philox(0)).integers(0, num_rows, (80, num_rows))
        found = np.array([measure(rows) for rows in draws])
        low, high = np.percentile(found[np.isfinite(found)], (2.5, 97.5))
        return float(low), float(high)

    return interval


def assert_as_measured(
    scores: Scores, measures: dict[str, Callable[[np.ndarray], float]], num_rows: int, brute: Callable[..., object]
) -> None:
    """Value and interval of every metric, against a library's function of row numbers."""
    assert scores.keys() == measures.keys()
    for name, measure in measures.items():
        assert scores[name].value == pytest.approx(measure(np.arange(num_rows)), rel=1e-9, abs=1e-12), name
        assert scores[name].ci95 == pytest.approx(brute(measure, num_rows), rel=1e-9, abs=1e-12), name


# One class of many


def test_single_label_by_hand() -> None:
    """Class 0: 2 of 3 found, 1 false. Class 1: 2 of 3 found, 1 false; F1 2/3 each."""
    scores = one_hot([0, 0, 1, 1, 1, 0], 2)
    found = values(single_label(scores, np.array([0, 0, 0, 1, 1, 1]), SINGLE, intervals=False))
    assert found["accuracy"] == found["macro_f1"] == found["weighted_f1"] == pytest.approx(4 / 6)
    assert found["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert found["auroc"] == pytest.approx((2 * 2 + 0.5 * (2 * 1 + 1 * 2)) / 9)  # 4 pairs right, 4 tied, 1 wrong


def test_f1_averages_run_over_classes_that_occur() -> None:
    """Class 2 is predicted once and never true: F1 0. Class 3 does not occur: not in the mean."""
    found = values(single_label(one_hot([0, 0, 2, 1], 4), np.array([0, 0, 1, 1]), SINGLE, intervals=False))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["weighted_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_auroc_needs_two_classes_and_sees_small_differences() -> None:
    assert "auroc" not in single_label(np.zeros((3, 2)), np.array([1, 1, 1]), SINGLE, intervals=True)
    scores = np.array([[0.0, 100.0], [0.0, 101.0], [0.0, 99.0]])  # softmax rounds all of them to 1
    assert single_label(scores, np.array([0, 1, 0]), ["auroc"], intervals=False)["auroc"].value == 1.0
    few = single_label(np.random.default_rng(0).normal(size=(4, 2)), np.array([0, 1, 0, 1]), ["auroc"], intervals=True)
    assert few["auroc"].ci95 is not None  # resamples of one class do not count


def test_auroc_of_very_many_classes_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    scores, gold = random.normal(size=(20, 3)), random.integers(0, 3, 20)
    assert single_label(scores, gold, ["auroc"], intervals=True)["auroc"].ci95 is not None
    monkeypatch.setattr(labels_module, "AUROC_ENTRIES", 59)
    found = single_label(scores, gold, SINGLE, intervals=True)
    assert found["auroc"].ci95 is None and found["mcc"].ci95 is not None


@pytest.mark.parametrize("num_classes", [2, 4])
def test_single_label_against_scikit_learn(num_classes: int, brute: Callable[..., tuple[float, float]]) -> None:
    from scipy.special import softmax
    from sklearn import metrics

    random = np.random.default_rng(num_classes)
    gold = np.array([*random.integers(0, num_classes - 1, 29), num_classes - 1])  # one row of the last class
    scores = random.normal(size=(30, num_classes)).round(1) + 1.5 * one_hot(gold, num_classes)
    predicted, shares = scores.argmax(axis=1), softmax(scores, axis=1)

    def auroc(rows: np.ndarray) -> float:
        which = [1] if num_classes == 2 else [c for c in range(num_classes) if c in gold[rows]]
        if len(set(gold[rows])) == 1:
            return math.nan
        return float(np.mean([metrics.roc_auc_score(gold[rows] == c, shares[rows, c]) for c in which]))

    def quietly(measure: Callable[..., float], **options: str) -> Callable[[np.ndarray], float]:
        def of_rows(rows: np.ndarray) -> float:
            with warnings.catch_warnings(action="ignore"):
                return float(measure(gold[rows], predicted[rows], **options))

        return of_rows

    measures: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": quietly(metrics.accuracy_score),
        "macro_f1": quietly(metrics.f1_score, average="macro"),
        "weighted_f1": quietly(metrics.f1_score, average="weighted"),
        "mcc": quietly(metrics.matthews_corrcoef),
        "auroc": auroc,
    }
    assert_as_measured(single_label(scores, gold, SINGLE, intervals=True), measures, 30, brute)
    if num_classes > 2:
        whole = metrics.roc_auc_score(gold, shares, multi_class="ovr", average="macro")
        assert single_label(scores, gold, ["auroc"], intervals=False)["auroc"].value == pytest.approx(whole)


def test_single_label_table() -> None:
    table = single_label_table(one_hot([0, 0, 2, 1], 4), np.array([0, 0, 1, 1]), ["no", "yes", "maybe", "never"])
    assert table["confusion"] == [[2, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert table["classes"]["yes"] == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "rows": 2, "predicted": 1,
    }  # fmt: skip
    assert table["classes"]["maybe"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0, "predicted": 1}
    assert table["classes"]["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0, "predicted": 0}
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = np.zeros((4, 2))
    scores[2, 1] = np.nan
    for attempt in (
        lambda: single_label(scores, np.zeros(4, dtype=int), SINGLE, intervals=False),
        lambda: single_label_table(scores, np.zeros(4, dtype=int), ["a", "b"]),
        lambda: multi_label(scores, np.zeros((4, 2)), MULTI, intervals=False),
        lambda: regression(scores[:, 1], np.zeros(4), NUMBER, intervals=False),
    ):
        with pytest.raises(DivergedError, match="1 of 4 held-out rows are not finite, the first of them row 3"):
            attempt()


# Several labels


def test_multi_label_by_hand() -> None:
    """Predicted {a}, {a, b}, {}; true {a}, {a}, {b}. A logit of exactly 0 is no."""
    scores = np.array([[2.0, -1.0, -9.0], [0.1, 0.2, -9.0], [-1.0, 0.0, -9.0]])
    gold = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = values(multi_label(scores, gold, MULTI, intervals=False))
    assert found == pytest.approx({"subset_accuracy": 1 / 3, "micro_f1": 4 / 6, "macro_f1": (1 + 0) / 2})
    table = multi_label_table(scores, gold, ["a", "b", "c"])["classes"]
    assert table["a"]["f1"] == 1.0 and table["b"]["predicted"] == 1 and table["c"]["rows"] == 0


def test_one_label_alone_is_not_two_classes() -> None:
    found = values(multi_label(np.array([[1.0], [1.0], [-1.0]]), np.array([[1], [0], [0]]), MULTI, intervals=False))
    assert found == pytest.approx({"subset_accuracy": 2 / 3, "micro_f1": 2 / 3, "macro_f1": 2 / 3})


def test_no_labels_at_all() -> None:
    found = multi_label(np.full((4, 2), -1.0), np.zeros((4, 2)), MULTI, intervals=True)
    assert found["subset_accuracy"] == Score(1.0, (1.0, 1.0))
    assert found["micro_f1"] == found["macro_f1"] == Score(0.0, None)


def test_multi_label_against_scikit_learn(brute: Callable[..., tuple[float, float]]) -> None:
    from sklearn import metrics

    random = np.random.default_rng(0)
    gold = (random.random((25, 5)) < [0.5, 0.3, 0.1, 0.04, 0.0]).astype(int)
    scores = random.normal(size=(25, 5)) + 2 * gold - [0, 0, 1, 2, 9]
    decided = (scores > 0).astype(int)

    def f1(average: str) -> Callable[[np.ndarray], float]:
        return lambda rows: float(
            metrics.f1_score(gold[rows], decided[rows], average=average, zero_division=np.nan)  # skips what is absent
        )

    measures: dict[str, Callable[[np.ndarray], float]] = {
        "subset_accuracy": lambda rows: float(metrics.accuracy_score(gold[rows], decided[rows])),
        "micro_f1": f1("micro"),
        "macro_f1": f1("macro"),
    }
    assert_as_measured(multi_label(scores, gold, MULTI, intervals=True), measures, 25, brute)


# Numbers


def test_regression_by_hand() -> None:
    found = values(regression(np.array([1.0, 2.0, 6.0]), np.array([1.0, 3.0, 5.0]), NUMBER, intervals=False))
    assert found == pytest.approx(
        {
            "mae": 2 / 3,
            "rmse": math.sqrt(2 / 3),
            "pearson": 10 / math.sqrt(14 * 8),  # deviations -2 -1 3 and -2 0 2
            "spearman": 1.0,
            "r2": 1 - 2 / 8,
        }
    )


def test_constant_numbers_are_defined() -> None:
    constant, other = np.full(6, 0.3), np.arange(6.0)
    found = regression(constant, other, NUMBER, intervals=True)
    assert found["pearson"] == found["spearman"] == Score(0.0, (0.0, 0.0))
    nearly = constant + 1e-16 * np.arange(6)
    assert regression(nearly, other, NUMBER, intervals=True)["spearman"] == Score(0.0, (0.0, 0.0))
    assert values(regression(constant, constant, NUMBER, intervals=True)) == {
        "mae": 0.0, "rmse": 0.0, "pearson": 0.0, "spearman": 0.0, "r2": 1.0,
    }  # fmt: skip
    assert regression(other, constant, NUMBER, intervals=True)["r2"].value == 0.0
    assert values(regression(other[:1], other[:1], NUMBER, intervals=True))["r2"] == 1.0


def test_regression_against_scipy_and_scikit_learn(brute: Callable[..., tuple[float, float]]) -> None:
    from scipy import stats
    from sklearn import metrics

    random = np.random.default_rng(0)
    y = random.normal(size=24).round(1)  # with ties
    x = (y + random.normal(size=24)).round(1)
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "mae": lambda rows: float(metrics.mean_absolute_error(y[rows], x[rows])),
        "rmse": lambda rows: float(metrics.root_mean_squared_error(y[rows], x[rows])),
        "pearson": lambda rows: float(stats.pearsonr(x[rows], y[rows]).statistic),
        "spearman": lambda rows: float(stats.spearmanr(x[rows], y[rows]).statistic),
        "r2": lambda rows: float(metrics.r2_score(y[rows], x[rows])),
    }
    assert_as_measured(regression(x, y, NUMBER, intervals=True), measures, 24, brute)


def test_large_offsets_do_not_spoil_intervals() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=50)
    x = y + random.normal(size=50)
    near, far = regression(x, y, NUMBER, intervals=True), regression(x + 1e6, y + 1e6, NUMBER, intervals=True)
    for name in NUMBER:
        assert near[name].ci95 == pytest.approx(far[name].ci95, abs=1e-6), name


# Labels of tokens


def conlleval_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The rule in words: a span ends before O, before B, and where the type changes; the rest begins one."""
    found = set()
    for start in range(len(tags)):
        if tags[start] == "O":
            continue
        kind = tags[start][2:]
        begins = tags[start][0] == "B" or start == 0 or tags[start - 1][1:] != f"-{kind}"
        if begins:
            end = start
            while end + 1 < len(tags) and tags[end + 1] == f"I-{kind}":
                end += 1
            found.add((kind, start, end))
    return found


def test_spans_are_read_as_conlleval_reads_them() -> None:
    """Every sequence of up to five tags, valid or not, against itself and against nothing found."""
    tags = ("O", "B-X", "I-X", "B-Y", "I-Y")
    rows = [list(row) for length in range(1, 6) for row in itertools.product(tags, repeat=length)]
    expected = [conlleval_spans(row) for row in rows]
    for row, wanted in zip(rows, expected, strict=True):
        table = span_table([row], [["O"] * len(row)])["classes"]
        assert {kind: entry["predicted"] for kind, entry in table.items()} == {
            kind: sum(found == kind for found, _, _ in wanted) for kind in {found for found, _, _ in wanted}
        }
    order = np.random.default_rng(0).permutation(len(rows))
    pairs = [(rows[i], rows[j]) for i, j in enumerate(order) if len(rows[i]) == len(rows[j])]
    hits = sum(len(conlleval_spans(a) & conlleval_spans(b)) for a, b in pairs)
    total = sum(len(conlleval_spans(a)) for a, _ in pairs)
    found = spans([a for a, _ in pairs], [b for _, b in pairs], ["span_precision"], intervals=False)
    assert hits > 100
    assert found["span_precision"].value == pytest.approx(hits / total)


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("I-X I-X", "B-X I-X", True),  # a missing B still begins a span
        ("O I-X", "O B-X", True),
        ("B-X I-Y", "B-X B-Y", True),  # another type begins one too
        ("B-X I-X", "B-X B-X", False),
        ("B-X B-X", "B-X I-X", False),
        ("B-X O", "B-X I-X", False),  # part of a span is nothing
        ("B-Y I-Y", "B-X I-X", False),  # so is a wrong type
    ],
)
def test_exact_boundaries_and_type(predicted: str, gold: str, right: bool) -> None:
    found = spans([predicted.split()], [gold.split()], TOKENS, intervals=False)
    assert found["span_f1"].value == float(right)


def test_spans_by_hand() -> None:
    """3 spans predicted, 4 true, 2 in both; 6 of 8 tokens right."""
    predicted = [["B-X", "I-X", "O", "B-Y"], ["B-Y", "O", "O", "O"]]
    gold = [["B-X", "I-X", "O", "B-X"], ["B-Y", "O", "B-X", "O"]]
    assert values(spans(predicted, gold, TOKENS, intervals=False)) == pytest.approx(
        {"span_precision": 2 / 3, "span_recall": 2 / 4, "span_f1": 4 / 7, "token_accuracy": 6 / 8}
    )
    assert span_table(predicted, gold)["classes"] == {
        "X": {"precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5, "rows": 3, "predicted": 1},
        "Y": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "rows": 1, "predicted": 2},
    }


def test_no_spans_and_no_tokens_are_defined() -> None:
    nothing = spans([["O", "O"], ["O"]], [["O", "O"], ["O"]], TOKENS, intervals=True)
    assert nothing["token_accuracy"] == Score(1.0, (1.0, 1.0))
    assert nothing["span_f1"] == nothing["span_precision"] == nothing["span_recall"] == Score(0.0, None)
    assert set(values(spans([[], []], [[], []], TOKENS, intervals=True)).values()) == {0.0}
    missed = spans([["O"], ["O"]], [["B-X"], ["B-X"]], TOKENS, intervals=True)
    assert missed["span_recall"] == Score(0.0, (0.0, 0.0)) and missed["span_precision"] == Score(0.0, None)
    with pytest.raises(ValueError):
        spans([["O"]], [["O", "O"]], TOKENS, intervals=False)


def test_other_schemes_have_no_spans_but_right_and_wrong_tokens() -> None:
    assert not_bio(["O", "B-PER", "I-PER", "NOUN", "B-", "S-PER"]) == ["NOUN", "B-", "S-PER"]
    assert spans([["NOUN"]], [["VERB"]], ["token_accuracy"], intervals=False)["token_accuracy"].value == 0.0
    with pytest.raises(DataError, match=r"received NOUN, VERB\. Ask for token_accuracy alone"):
        spans([["NOUN"]], [["VERB"]], TOKENS, intervals=False)


def test_spans_against_nervaluate(brute: Callable[..., tuple[float, float]]) -> None:
    from nervaluate import Evaluator

    random = np.random.default_rng(0)
    tags = np.array(["O", "O", "B-X", "I-X", "B-Y", "I-Y"])
    gold = [["B-X", *random.choice(tags, random.integers(1, 7))] for _ in range(12)]
    predicted = [[t if random.random() < 0.7 else str(random.choice(tags)) for t in row] for row in gold]
    gold = [[str(tag) for tag in row] for row in gold]
    predicted = [["B-Y", *map(str, row[1:])] if i % 3 == 0 else list(map(str, row)) for i, row in enumerate(predicted)]

    def strict(key: str) -> Callable[[np.ndarray], float]:
        def of_rows(rows: np.ndarray) -> float:
            drawn = [gold[i] for i in rows], [predicted[i] for i in rows]
            return float(
                getattr(Evaluator(*drawn, tags=["X", "Y"], loader="list").evaluate()["overall"]["strict"], key)
            )

        return of_rows

    def accuracy(rows: np.ndarray) -> float:
        pairs = [(a, b) for i in rows for a, b in zip(predicted[i], gold[i], strict=True)]
        return sum(a == b for a, b in pairs) / len(pairs)

    measures = {"span_f1": strict("f1"), "span_precision": strict("precision"), "span_recall": strict("recall")}
    found = spans(predicted, gold, TOKENS, intervals=True)
    assert_as_measured(found, measures | {"token_accuracy": accuracy}, 12, brute)


# Text


@pytest.mark.parametrize(
    ("predicted", "reference", "right"),
    [
        ("18", "18", True), ("18", "19", False), ("The answer is 18.", "#### 18", True),
        ("9 * 2 = 18 dollars", "She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", True), ("$1,234,567", "1234567", True),
        ("1,000.50", "$1000.5", True), ("5.0", "5", True), ("50%", "50", True), ("50 %", "50", True),
        ("-3", "3", False), ("-$3", "-3", True), ("−3", "-3", True), ("10-3", "3", True), ("COVID-19", "19", True),
        ("#### 7 and not 8", "7", True), ("7 #### 8\n#### 9 or 10", "9", True), ("#### none", "3", False),
        ("0.1", "0.10", True), (".5", "0.5", True), ("0.30000000000000004", "0.3", False), ("1, 2, 3", "3", True),
        ("1,2,3", "3", True), ("12,34", "34", True), ("", "", False), ("", "3", False), ("none", "none", False),
        ("3", "none", False),
        ("٣", "3", True), ("18.", "18", True), ("3/4", "4", True), ("1e5", "5", True), ("£2.50", "2.5", True),
    ],
)  # fmt: skip
def test_numeric_match_by_hand(predicted: str, reference: str, right: bool) -> None:
    """An empty answer is wrong, also where nothing was expected; a hyphen between words is no sign."""
    assert texts([predicted], [reference], ["numeric_match"], intervals=False)["numeric_match"].value == right


def test_numeric_match_takes_any_reference_and_has_an_interval() -> None:
    found = texts(["1", "2", "x"] * 9, [["3", "1"], ["4"], ["5"]] * 9, ["numeric_match"], intervals=True)
    low, high = found["numeric_match"].ci95 or (0, 0)
    assert found["numeric_match"].value == pytest.approx(1 / 3) and 0.1 < low < 1 / 3 < high < 0.6


@pytest.mark.parametrize(
    ("predicted", "references", "exact", "f1"),
    [
        (" Paris\n", ["Paris"], True, 1.0),
        ("paris.", ["Paris"], False, 1.0),
        ("The capital is Paris", ["Paris"], False, 2 * 1 / (3 + 1)),
        ("big big dog", ["the big dog"], False, 2 * 2 / (3 + 2)),  # a bag: the second big is not there
        ("London", ["Paris", "London"], True, 1.0),
        ("", ["Paris"], False, 0.0),
        ("", [""], False, 0.0),
        ("  ", [" "], False, 0.0),
        ("the", ["a"], False, 1.0),  # neither has words left
        ("the", ["dog"], False, 0.0),
    ],
)
def test_exact_match_and_token_f1_by_hand(predicted: str, references: list[str], exact: bool, f1: float) -> None:
    assert is_exact(predicted, references) is exact
    assert token_f1(predicted, references) == pytest.approx(f1)


def test_rouge_by_hand() -> None:
    """Words a b c d against a c b d e: four in common, no pair of neighbours, three in order."""
    found = values(texts(["w1 w2 w3 w4"], ["w1 w3 w2 w4 w5"], TEXT, intervals=False))
    assert found["rouge1"] == pytest.approx(2 * 4 / (4 + 5))
    assert found["rouge2"] == 0.0
    assert found["rougeL"] == pytest.approx(2 * 3 / (4 + 5))
    assert texts(["running"], ["run"], ["rouge1"], intervals=False)["rouge1"].value == 0.0  # no stemming
    assert (
        texts(["你好"], ["你好"], ["rouge1"], intervals=False)["rouge1"].value == 0.0
    )  # letters a to z only, see docs


def test_bleu_by_hand() -> None:
    """6 words against 7: 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours, which exp smoothing halves."""
    found = texts(["the cat sat on the mat"], ["the cat sat near the old mat"], ["bleu"], intervals=False)["bleu"].value
    precisions = (5 / 6) * (2 / 5) * (1 / 4) * (1 / (2 * 3))
    assert found == pytest.approx(100 * math.exp(1 - 7 / 6) * precisions**0.25)


def test_chrf_by_hand() -> None:
    """abc against abd: 2 of 3 letters, 1 of 2 pairs, 0 of 1 triple; longer ones do not exist and do not count."""
    found = texts(["ab c"], ["a bd"], ["chrf"], intervals=False)["chrf"].value
    assert found == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)  # precision equals recall, so F is the same


def test_an_empty_answer_scores_nothing_and_is_not_skipped() -> None:
    empty = values(texts(["", " "], ["some words here", "and more"], TEXT, intervals=True))
    assert set(empty.values()) == {0.0}
    half = values(texts(["some words here and more", ""], ["some words here and more"] * 2, TEXT, intervals=False))
    for name in ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL"):
        assert half[name] == 0.5, name
    assert half["bleu"] == pytest.approx(100 * math.exp(1 - 2))  # half the length
    assert half["chrf"] == pytest.approx(100 * 5 * 1 * 0.5 / (4 * 1 + 0.5))


ANSWERS = [
    "the cat sat on the mat", "A dog, barking loudly.", "", "yes", "no idea at all", "it is forty-two", "end .",
    "he said that it was late", "it rains in the north of Spain", "the the the the", "rain falls on the plain", "ok",
]  # fmt: skip
WANTED = [
    ["the cat sat on a mat", "on the mat sat the cat"], ["A dog that barks loudly."], ["silence"], ["yes", "yep"],
    ["I have no idea at all"], ["42"], ["end."], ["he told me it was late", "it was late, he said"],
    ["it rains in northern Spain"], ["the cat"], ["rain in Spain falls mainly on the plain"], ["OK"],
]  # fmt: skip
CORPORA = {
    "one reference": (ANSWERS, [row[:1] for row in WANTED]),
    "several references": (ANSWERS, WANTED),
    "short answers": (["ab", "b", "", "abc"], [["abcdefgh"], ["b c d e f"], ["abc"], ["abc", "abcdefgh"]]),
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_texts_against_sacrebleu_and_rouge_score(corpus: str, brute: Callable[..., tuple[float, float]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    answers, wanted = CORPORA[corpus]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)

    def whole(metric: BLEU | CHRF) -> Callable[[np.ndarray], float]:
        def of_rows(rows: np.ndarray) -> float:
            streams = [[wanted[i][0] for i in rows], [(wanted[i] + [None])[1] for i in rows]]
            return float(metric.corpus_score([answers[i] for i in rows], streams).score)

        return of_rows

    def mean(score: Callable[[str, list[str]], float]) -> Callable[[np.ndarray], float]:
        return lambda rows: float(np.mean([score(answers[i], wanted[i]) for i in rows]))

    def rouge(name: str) -> Callable[[str, list[str]], float]:
        return lambda answer, references: scorer.score_multi(references, answer)[name].fmeasure

    measures: dict[str, Callable[[np.ndarray], float]] = {
        "bleu": whole(BLEU()),
        "chrf": whole(CHRF()),
        **{name: mean(rouge(name)) for name in ("rouge1", "rouge2", "rougeL")},
        "token_f1": mean(token_f1),
        "exact_match": mean(is_exact),
        "numeric_match": mean(numeric_match),
    }
    references = [row[0] for row in wanted] if corpus == "one reference" else wanted
    assert_as_measured(texts(answers, references, TEXT, intervals=True), measures, len(answers), brute)


def test_signatures_are_those_of_the_libraries() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(), CHRF()
    for metric in (bleu, chrf):
        metric.corpus_score(["a", "b"], [["a", "b"]])
    found = signatures(["a", "b"], TEXT)
    assert found.keys() == {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}
    assert found["bleu"] == str(bleu.get_signature()) and "tok:13a" in found["bleu"] and "nrefs:1" in found["bleu"]
    assert found["chrf"] == str(chrf.get_signature())
    assert "stemmer:no" in found["rougeL"]
    assert "nrefs:var" in signatures(WANTED, ["bleu"])["bleu"]
    assert "nrefs:2" in signatures([["a", "b"], ["c", "d"]], ["chrf"])["chrf"]


def test_rows_and_references_must_match() -> None:
    with pytest.raises(ValueError):
        texts(["a", "b"], ["a"], ["exact_match"], intervals=False)
    with pytest.raises(ValueError, match="a row has no reference"):
        texts(["a"], [[]], ["bleu"], intervals=False)


# Laws of all of them

small = st.integers(min_value=1, max_value=8)
word = st.sampled_from(["a", "the", "cat", "cats", "", "sat.", "é", " "])
tag = st.sampled_from(["O", "B-X", "I-X", "B-Y"])
BEST = {"mae": 0.0, "rmse": 0.0, "bleu": 100.0, "chrf": 100.0}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Callable[..., Scores], list[object], list[object], tuple[str, ...]]:
    """A function of metrics with what a model said and what is true, rows of any quality."""
    rows = draw(small)

    def table(element: st.SearchStrategy[float], columns: int) -> list[object]:
        row = st.lists(element, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))  # type: ignore[return-value]

    number = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0])
    kind = draw(st.sampled_from(["single", "multi", "number", "tokens", "text"]))
    if kind == "single":
        gold = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
        return (
            lambda x, y: single_label(np.array(x), np.array(y), SINGLE, intervals=True),
            table(number, 3),
            gold,
            SINGLE,
        )
    if kind == "multi":
        gold = table(st.sampled_from([0.0, 1.0]), 2)
        return lambda x, y: multi_label(np.array(x), np.array(y), MULTI, intervals=True), table(number, 2), gold, MULTI
    if kind == "number":
        return (
            lambda x, y: regression(np.array(x)[:, 0], np.array(y)[:, 0], NUMBER, intervals=True),
            table(number, 1), table(number, 1), NUMBER,
        )  # fmt: skip
    if kind == "tokens":
        return lambda x, y: spans(x, y, TOKENS, intervals=True), table(tag, 3), table(tag, 3), TOKENS
    text = st.lists(word, max_size=6).map(" ".join)
    said, true = (draw(st.lists(text, min_size=rows, max_size=rows)) for _ in range(2))
    return lambda x, y: texts(x, y, TEXT, intervals=True), said, true, TEXT


@thorough
@given(problems(), st.randoms(use_true_random=False))
def test_always_finite_within_bounds_and_whatever_the_order(problem: tuple[object, ...], random: object) -> None:
    measure, said, true, names = problem
    scores = measure(said, true)  # type: ignore[operator]
    order = list(range(len(said)))  # type: ignore[arg-type]
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = measure([said[i] for i in order], [true[i] for i in order])  # type: ignore[index, operator]
    assert_json(scores)
    assert values(shuffled) == pytest.approx(values(scores), abs=1e-9)
    assert set(scores) | {"auroc"} >= set(names)  # type: ignore[call-overload]
    for name, score in scores.items():
        for value in (score.value, *(score.ci95 or ())):
            low = -math.inf if name == "r2" else -1.0 if name in ("mcc", "pearson", "spearman") else 0.0
            high = math.inf if name in ("mae", "rmse") else BEST.get(name, 1.0)
            assert low - 1e-9 <= value <= high + 1e-9, name


def test_perfect_answers_get_the_best_score_with_a_closed_interval() -> None:
    random = np.random.default_rng(0)
    classes, several, numbers = random.integers(0, 3, 20), random.random((20, 3)) < 0.5, random.normal(size=20)
    tags = [["B-X", "I-X", "O", "B-Y"]] * 20
    answers = [f"the answer number {number} is a long one" for number in range(20)]
    found = {
        **single_label(one_hot(classes, 3), classes, SINGLE, intervals=True),
        **multi_label(several - 0.5, several, MULTI, intervals=True),
        **regression(numbers, numbers, NUMBER, intervals=True),
        **spans(tags, tags, TOKENS, intervals=True),
        **texts(answers, answers, TEXT, intervals=True),
        **options([np.array([-1.0, -9.0])] * 20, [np.ones(2)] * 20, [0] * 20, list(METRICS), intervals=True),
    }
    assert set(found) == set(METRICS) - set(names_of("likelihood"))
    for name, score in found.items():
        best = BEST.get(name, 1.0)
        assert score.value == pytest.approx(best, abs=1e-9), name
        assert score.ci95 == pytest.approx((best, best), abs=1e-9), name


def test_intervals_are_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    scores, gold = random.normal(size=(30, 3)), random.integers(0, 3, 30)
    assert single_label(scores, gold, SINGLE, intervals=True) == single_label(scores, gold, SINGLE, intervals=True)
    np.random.seed(5)
    before = np.random.get_state()[1]
    texts(ANSWERS, WANTED, TEXT, intervals=True)
    assert (np.random.get_state()[1] == before).all()
