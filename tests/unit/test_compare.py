"""`ftune compare` in its parts: chance, choice, trials, baselines, table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import recipe
from scipy import stats

from ftune.compare.baselines import baselines
from ftune.compare.comparing import (
    Asked,
    Comparison,
    Row,
    _means,
    _measured,
    _resamples_of,
    choose_metric,
    choose_split,
    refuse_foreign_folder,
    remarks,
)
from ftune.compare.differences import Measured, difference, holm
from ftune.compare.page import comparison_page
from ftune.compare.table import COLUMNS, cells, draw, to_json, to_markdown
from ftune.compare.trials import check_names, parse_grid, settings_of, trials_of
from ftune.compare.verdict import System, judge
from ftune.data.read import Row as FileRow
from ftune.data.shape import Sample
from ftune.errors import RecipeError
from ftune.evidence import evidence, read_evidence, rows_digest
from ftune.load import Loaded, load_recipe
from ftune.metrics import METRICS, Score, better_of, bounds_of
from ftune.metrics.bootstrap import RESAMPLES, ratio

NUM_ROWS = 150
WEIGHTS = np.stack(
    [
        np.bincount(np.random.default_rng(i).integers(0, NUM_ROWS, NUM_ROWS), minlength=NUM_ROWS)
        for i in range(RESAMPLES)
    ]
)


def measured(right: np.ndarray, *, drawn: bool = True, rows: str = "same") -> Measured:
    """Accuracy of answers that are right or wrong, [S, N]."""
    return Measured(right.mean(axis=1), right @ WEIGHTS.T / NUM_ROWS, rows, drawn, (0.0, 1.0))


def answers(rng: np.random.Generator, seeds: int, skill: float = 1.4, spread: float = 0.3) -> np.ndarray:
    """Right or wrong, [S, N], of models that differ by their seeds, on rows of different difficulty."""
    difficulty = np.random.default_rng(7).normal(size=NUM_ROWS)
    strength = skill + spread * rng.normal(size=(seeds, 1))
    return (rng.random((seeds, NUM_ROWS)) < 1 / (1 + np.exp(difficulty - strength))).astype(float)


def test_one_method_under_other_seeds_is_not_declared_better() -> None:
    """Of 300 comparisons of a method with itself about 5% are called significant; without the seeds' share far more."""
    rng = np.random.default_rng(0)
    pairs = [(measured(answers(rng, 3)), measured(answers(rng, 3))) for _ in range(300)]
    found = [difference(a, b) for a, b in pairs]
    called = np.mean([d.p is not None and d.p < 0.05 for d in found])
    assert called <= 0.08
    covered = np.mean([d.ci95 is not None and d.ci95[0] <= 0 <= d.ci95[1] for d in found])
    assert covered >= 0.92


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found = [difference(measured(answers(rng, 3, 2.4, 0.1)), measured(answers(rng, 3, 0.9, 0.1))) for _ in range(50)]
    assert np.mean([d.p is not None and d.p < 0.05 for d in found]) > 0.9
    assert all(d.value > 0 and d.paired for d in found)


def test_a_single_seed_says_nothing_about_a_method() -> None:
    rng = np.random.default_rng(2)
    once, thrice = measured(answers(rng, 1)), measured(answers(rng, 3))
    assert difference(once, thrice).p is None and difference(thrice, once).ci95 is None
    baseline = measured(answers(rng, 1), drawn=False)
    assert baseline.spread == 0 and difference(thrice, baseline).p is not None


def test_rows_are_a_pair_where_they_are_the_same() -> None:
    """Equal answers on the same rows cannot differ; on other rows they can."""
    right = answers(np.random.default_rng(3), 1)
    same = difference(measured(right, drawn=False), measured(right, drawn=False))
    assert (same.value, same.p, same.paired) == (0.0, 1.0, True)
    other = difference(measured(right, drawn=False), measured(right, drawn=False, rows="other"))
    assert not other.paired and other.ci95 is not None and other.ci95[0] < 0 < other.ci95[1]


def test_the_seeds_share_is_welchs() -> None:
    """Without chance from rows, p is that of scipy's Welch test."""
    a, b = (Measured(np.array(v), np.tile(np.array(v)[:, None], RESAMPLES), "same", True) for v in
            ([0.8, 0.83, 0.79], [0.7, 0.76, 0.72]))  # fmt: skip
    expected = stats.ttest_ind(a.values, b.values, equal_var=False).pvalue
    assert difference(a, b).p == pytest.approx(expected, rel=1e-9)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_intervals_stay_within_what_a_metric_can_be() -> None:
    right = np.ones((2, NUM_ROWS))
    right[0, :140] = 0
    assert measured(right).ci95() == (0.0, 1.0)
    for name in METRICS:
        low, high = bounds_of(name)
        assert low < high
    assert bounds_of("bleu") == (0.0, 100.0) and bounds_of("mcc")[0] == -1 and bounds_of("loss")[1] == np.inf
    assert better_of("mine:own") == "higher" and bounds_of("mine:own") == (-np.inf, np.inf)


def test_evidence_survives_its_file(tmp_path: Path) -> None:
    score = ratio(np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4), intervals=True)
    score.resamples[3] = np.nan
    samples = [FileRow("a/rows.jsonl", n, {}) for n in (1, 2)]
    text = json.dumps(evidence({"accuracy": score, "other": Score(1.0)}, rows_digest(samples)), allow_nan=False)
    rows, metrics = read_evidence(json.loads(text))
    assert rows == rows_digest([FileRow("b/rows.jsonl", n, {}) for n in (1, 2)])
    assert rows != rows_digest(list(reversed(samples))) and metrics.keys() == {"accuracy"}
    np.testing.assert_allclose(metrics["accuracy"], score.resamples, rtol=1e-8)


def system(name: str, values: list[float], *, kind: Any = "trained", seconds: float = 1.0, **more: Any) -> System:
    """A system whose rows leave nothing to chance."""
    array = np.array(values)
    found = Measured(array, np.tile(array[:, None], RESAMPLES), "same", kind == "trained")
    cost = {"train_seconds": seconds, "peak_memory_bytes": 1.0, "artefact_bytes": 1.0} if kind == "trained" else {}
    return System(name, kind, found, cost, method=more.pop("method", name), **more)


def test_of_equals_the_quickest_is_recommended() -> None:
    slow, quick = system("full", [0.90, 0.92, 0.91], seconds=100), system("lora", [0.90, 0.91, 0.92], seconds=20)
    worse = system("prompt", [0.60, 0.61, 0.62], seconds=1)
    verdict = judge([slow, quick, worse, system("majority", [0.1], kind="baseline")], "accuracy", "higher")
    assert verdict.recommended == "lora" and "No significant difference between" in verdict.sentence
    assert verdict.against_best["prompt"][1] is not None and verdict.against_best["prompt"][1] < 0.05
    assert verdict.pareto == ("lora", "prompt") or set(verdict.pareto) == {"full", "lora", "prompt"}


def test_a_clear_winner_is_named() -> None:
    best = system("full", [0.90, 0.901, 0.902], seconds=100)
    verdict = judge([best, system("lora", [0.70, 0.701, 0.702])], "accuracy", "higher")
    assert verdict.recommended == "full" and "significantly better than every other row" in verdict.sentence


def test_smaller_is_better_where_it_is() -> None:
    verdict = judge([system("a", [1.0, 1.01]), system("b", [2.0, 2.01])], "loss", "lower")
    assert verdict.best == verdict.recommended == "a"


def test_a_tuned_model_must_beat_what_needs_no_training() -> None:
    tuned = system("lora", [0.80, 0.81, 0.82])
    beaten = judge([tuned, system("tfidf", [0.95], kind="baseline")], "accuracy", "higher")
    assert beaten.recommended is None and "No tuned method is needed: tfidf" in beaten.sentence
    level = judge([tuned, system("tfidf", [0.809], kind="baseline")], "accuracy", "higher")
    assert level.recommended is None and "No tuned method is shown to be better" in level.sentence


def test_with_one_seed_nothing_is_recommended() -> None:
    verdict = judge([system("lora", [0.9]), system("full", [0.5])], "accuracy", "higher")
    assert verdict.recommended is None and "--seeds 3" in verdict.sentence and verdict.best == "lora"


def test_a_method_with_one_seed_does_not_silence_the_others() -> None:
    """Nothing is said about it; unless it is the best, when nothing can be said at all."""
    two = [system("lora", [0.90, 0.901]), system("full", [0.5, 0.501])]
    verdict = judge([*two, system("prompt", [0.3])], "accuracy", "higher")
    assert verdict.recommended == "lora" and "Of prompt one seed is finished" in verdict.sentence
    best = judge([*two, system("prompt", [0.95])], "accuracy", "higher")
    assert best.recommended is None and "--seeds 3" in best.sentence


def test_a_point_of_the_grid_is_chosen_on_other_rows() -> None:
    """Rank 8 was better on the eval rows, so it takes part, although rank 2 is better on the rows reported."""
    two = system("lora method.rank=2", [0.95, 0.95, 0.951], method="lora", chosen_by=0.7)
    eight = system("lora method.rank=8", [0.90, 0.90, 0.901], method="lora", chosen_by=0.8)
    verdict = judge([two, eight, system("full", [0.5, 0.5, 0.501])], "accuracy", "higher")
    assert verdict.taking_part == ("lora method.rank=8", "full") and verdict.recommended == "lora method.rank=8"


def own(folder: Path, **sections: Any) -> Loaded:
    return recipe(folder, method={"name": "lora", "rank": 4}, **sections)


def test_each_method_at_each_point_under_each_seed(tmp_path: Path) -> None:
    loaded = own(tmp_path, data={"eval": "rows.jsonl"})
    settings = settings_of(loaded, ["lora", "full"], {"method.rank": ["2", "8"]}, "7 steps", ["train.batch_size=2"])
    assert [s.name for s in settings] == ["lora method.rank=2", "lora method.rank=8", "full"]
    trials = trials_of(loaded, settings, [5, 6], tmp_path / "out")
    assert [(t.setting.name, t.seed) for t in trials[:4]] == [
        ("lora method.rank=2", 5), ("lora method.rank=8", 5), ("full", 5), ("lora method.rank=2", 6),
    ]  # fmt: skip
    assert len({t.loaded.output_dir for t in trials}) == 6
    for trial in trials:
        read = trial.loaded.recipe
        assert (read.train.duration, read.train.batch_size, read.seed, read.data.seed) == ("7 steps", 2, trial.seed, 0)
        assert read.train.learning_rate == ("auto" if trial.setting.method == "full" else 1e-3)
    assert trials[0].loaded.recipe.method.rank == 2  # type: ignore[attr-defined]


def test_what_cannot_be_trained_stays_with_its_reason(tmp_path: Path) -> None:
    settings = settings_of(own(tmp_path), ["lora", "feature_based"], {}, None, [])
    assert not settings[0].refusal and "feature_based" in settings[1].name and settings[1].refusal
    assert [t.setting.method for t in trials_of(own(tmp_path), settings, [0], tmp_path)] == ["lora"]


def test_trials_do_not_prompt_the_base_again(tmp_path: Path) -> None:
    """The comparison has rows for that, scored once."""
    loaded = own(tmp_path, data={"eval": "rows.jsonl"}, eval={"shots": [0, 4]})
    trials = trials_of(loaded, settings_of(loaded, ["lora", "full"], {}, None, []), [0], tmp_path / "out")
    assert [trial.loaded.recipe.eval.shots for trial in trials] == [[], []]


def test_keys_without_effect_are_left_out(tmp_path: Path) -> None:
    """A head that is fitted at once has no steps: no budget, no batch, no point of a grid of rates."""
    rows = [{"text": f"n {n}", "label": "ab"[n % 2]} for n in range(8)]
    data = {"train": "rows.jsonl", "eval": "rows.jsonl", "template": None}
    loaded = own(
        tmp_path, rows=rows, model="builtin:tiny-bert", objective="sequence_classification", data=data,
    )  # fmt: skip
    grid = {"train.learning_rate": ["1e-3", "2e-3"]}
    settings = settings_of(loaded, ["lora", "feature_based"], grid, "7 steps", [])
    assert [s.name for s in settings] == [
        "lora train.learning_rate=1e-3", "lora train.learning_rate=2e-3", "feature_based",
    ]  # fmt: skip
    assert not any(s.refusal for s in settings) and not settings[0].left_out
    assert {"train.duration", "train.warmup", "train.learning_rate"} <= set(settings[2].left_out)
    features, lora = (load_recipe(loaded.path, settings[i].overrides).recipe for i in (2, 1))
    assert features.method.name == "feature_based" and features.train.duration != "7 steps"
    assert lora.train.warmup == 0 and lora.train.duration == "7 steps" and lora.train.learning_rate == 2e-3
    asked = Asked(loaded, settings, [], range(1), "accuracy", "eval", tmp_path, "7 steps", [])
    said = [remark for remark in remarks(asked, [], "") if remark.startswith("No effect on feature_based")]
    assert len(said) == 1 and "train.duration" in said[0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda _: parse_grid(["method.rank"]), "expected key=value,value.*received 'method.rank'"),
        (lambda _: parse_grid(["seed=1,2", "a=1", "a=2"]), "(?s)seed cannot be varied here.*Name each key once"),
        (lambda _: check_names(["lroa", "full", "full"]), "(?s)'lroa' is no method.*lora.*'full' is named twice"),
        (lambda own: settings_of(own, ["lora"], {"method.length": ["3"]}, None, []), "of lora has method.length"),
        (lambda own: settings_of(own, ["lora"], {}, "20 minutes", []), "--budget.*'20 minutes'"),
        (lambda own: choose_split(own), "data.eval: is needed"),
        (lambda own: choose_metric(own, "acuracy"), "'acuracy' is not measured.*--metric|--metric.*'acuracy'"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_said(tmp_path: Path, ask: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ask(own(tmp_path))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecipeError, match="holds files that are no comparison .run.json"):
        refuse_foreign_folder(tmp_path)
    with pytest.raises(RecipeError, match="is a file"):
        refuse_foreign_folder(tmp_path / "run.json")
    refuse_foreign_folder(tmp_path / "new")
    (tmp_path / "mine" / "trials").mkdir(parents=True)
    refuse_foreign_folder(tmp_path / "mine")


def test_a_run_without_resamples_has_no_interval(tmp_path: Path) -> None:
    held = [_resamples_of(tmp_path / name, "eval") for name in ("a", "b")]
    found = _measured([0.5, 0.7], held, "accuracy", drawn=True)
    assert found.value == pytest.approx(0.6) and found.ci95() is None and found.rows == "differ"
    assert difference(found, measured(answers(np.random.default_rng(0), 3))).p is None


def test_what_decides(tmp_path: Path) -> None:
    assert choose_metric(own(tmp_path / "a", data={"eval": "rows.jsonl"}), None) == "bits_per_byte"
    both = own(tmp_path / "b", data={"eval": "rows.jsonl"}, eval={"metrics": ["loss", "exact_match"]})
    assert choose_metric(both, None) == "exact_match" and choose_metric(both, "loss") == "loss"
    assert choose_split(both) == "eval"


def labelled(pairs: list[tuple[str, Any]]) -> list[Sample]:
    return [Sample(FileRow("f", n, {}), text=text, label=label) for n, (text, label) in enumerate(pairs, start=1)]


def test_baselines_of_labels(tmp_path: Path) -> None:
    train = labelled(
        [("good film", "yes"), ("fine film", "yes"), ("bad film", "no"), ("great", "yes"), ("awful bad", "no")]
    )
    scored = labelled([("good", "yes"), ("bad", "no"), ("so bad", "no"), ("x", "never seen")])
    objective = recipe(tmp_path, model="builtin:tiny-bert", objective="sequence_classification",
                       data={"template": None, "format": "classification"}).recipe.objective  # fmt: skip
    found, none = baselines(train, scored, ("no", "yes"), objective, ["accuracy", "macro_f1"])
    assert [one.name for one in found] == ["majority", "tfidf"] and not none
    assert found[0].scores["accuracy"].value == pytest.approx(1 / 3)
    assert found[1].scores["accuracy"].value == 1.0 and found[1].scores["accuracy"].ci95 is not None


def test_baselines_of_answers_and_of_free_text(tmp_path: Path) -> None:
    from ftune.data.chat import Turn

    def asked(pairs: list[tuple[str, str]]) -> list[Sample]:
        return [Sample(FileRow("f", n, {}), turns=(Turn("user", q), Turn("assistant", a)))
                for n, (q, a) in enumerate(pairs)]  # fmt: skip

    objective = own(tmp_path).recipe.objective
    train = asked([("my card is lost", "card"), ("lost card", "card"), ("a transfer", "money"), ("card", "card")])
    found, _ = baselines(train, asked([("card lost", "card"), ("transfer", "money")]), (), objective, ["exact_match"])
    assert [one.scores["exact_match"].value for one in found] == [0.5, 1.0]
    free = asked([(f"question {n}", f"answer {n}") for n in range(9)])
    found, why = baselines(free, free, (), objective, ["exact_match"])
    assert not found and "free text" in why


def test_baselines_of_numbers_several_labels_and_tags(tmp_path: Path) -> None:
    def objective(folder: str, name: str, row_format: str, **block: Any) -> Any:
        sections = {"model": "builtin:tiny-bert", "objective": {"name": name, **block}}
        return recipe(tmp_path / folder, data={"template": None, "format": row_format}, **sections).recipe.objective

    numbers = labelled([("low", 1.0), ("high", 3.0), ("low low", 1.0), ("high high", 3.0)])
    of_numbers = objective("n", "sequence_classification", "regression", problem="regression")
    found, _ = baselines(numbers, numbers, (), of_numbers, ["mae"])
    assert found[0].scores["mae"].value == 1.0 > found[1].scores["mae"].value
    several = labelled([("red", ("r",)), ("blue", ("b",)), ("red blue", ("b", "r")), ("red", ("r",))])
    of_several = objective("s", "sequence_classification", "multi_label", problem="multi_label")
    found, _ = baselines(several, several, ("b", "r"), of_several, ["micro_f1"])
    assert found[1].scores["micro_f1"].value == 1.0 > found[0].scores["micro_f1"].value
    words = [Sample(FileRow("f", 1, {}), words=("Ann", "sees", "Bob"), label=("B-P", "O", "B-P")),
             Sample(FileRow("f", 2, {}), words=("sees", "sees"), label=("O", "O"))]  # fmt: skip
    found, _ = baselines(
        words, words, ("B-P", "O"), objective("t", "token_classification", "token_labels"), ["span_f1"]
    )
    assert found[0].name == "word_majority" and found[0].scores["span_f1"].value == 1.0


def comparison(folder: Path) -> Comparison:
    loaded = own(folder, data={"eval": "rows.jsonl"})
    settings = settings_of(loaded, ["lora", "full"], {}, "7 steps", [])
    guard = {"plays": {"before": 2.0, "after": 2.125}}
    cost = {
        "trainable_parameters": 10.0, "total_parameters": 1000.0, "peak_memory_bytes": 2.0**20, "train_seconds": 60.0,
        "tokens_per_second": 5.0, "steps": 7.0, "tokens": 70.0, "targets": 35.0, "artefact_bytes": 2.0**19,
        "learning_rate": 1e-3, "learning_rate_source": "recipe", "guard": guard, "finished": "complete",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    lora = System("lora", "trained", measured(answers(rng, 3)), cost, "lora", 0.5)
    majority = System("majority", "baseline", measured(np.zeros((1, NUM_ROWS)), drawn=False))
    rows = [
        Row("lora", "trained", lora, {"0": 0.7, "1": 0.8, "2": 0.75}, metrics={"loss": 1.0}),
        Row("full", "trained", None, {}, "exit code 9: out of | memory"),
        Row("majority", "baseline", majority, {"": 0.0}, "the most frequent answer"),
    ]
    asked = Asked(loaded, settings, [], range(3), "exact_match", "eval", folder, "7 steps", [])
    return Comparison(asked, rows, judge([lora, majority], "exact_match", "higher"), ["a remark"], NUM_ROWS)


def test_the_table_shows_all_of_it(tmp_path: Path) -> None:
    made = comparison(tmp_path)
    found = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert [row["name"] for row in found["rows"]] == ["lora", "full", "majority"]
    assert found["rows"][1]["value"] is None and "out of" in found["rows"][1]["about"]
    assert found["recommended"] == found["best"] == "lora" and found["rows"][2]["from_best"]["p_holm"] < 0.05
    shown = dict(zip(COLUMNS, cells(found["rows"][0]), strict=True))
    assert shown["from the best"] == "best" and shown["learns"] == "10 (1.00%)" and shown["forgot"] == "+0.125"
    assert shown["minutes"] == "1.00" and shown["peak memory"] == "1 MiB" and shown["each seed"].count(",") == 2
    text = to_markdown(made)
    assert "exit code 9: out of \\| memory" in text and found["recommendation"] in text and "a remark" in text
    page = comparison_page(found)
    assert found["recommendation"].replace("'", "&#x27;") in page and "out of | memory" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "") and page.count("<svg") == 5
    assert draw(made).startswith(b"\x89PNG")


def test_costs_are_means_over_seeds_what_was_forgotten_too() -> None:
    seeds = [
        {"train_seconds": t, "guard": {"plays": {"before": 2.0, "after": 2.0 + t}}, "finished": "complete"}
        for t in (1, 3)
    ]
    assert _means(seeds) == {"train_seconds": 2, "guard": {"plays": {"before": 2, "after": 4}}, "finished": "complete"}


def test_seed_of_the_data_holds_out_the_same_rows(tmp_path: Path) -> None:
    from ftune.data.samples import read_samples

    def held(*overrides: str) -> list[int]:
        rows = [{"prompt": f"what is {n}", "completion": f"it is {n}"} for n in range(40)]
        path = recipe(tmp_path, rows=rows, data={"eval": "25%"}).path
        read = load_recipe(path, overrides).recipe
        samples = read_samples(read.data, tmp_path, accepted=read.formats, seed=read.data_seed, max_eval_rows=6,
                               tick=lambda *_: None)  # fmt: skip
        return [sample.row.number for sample in samples.eval]

    assert held("seed=3", "data.seed=0") == held("seed=4", "data.seed=0") == held() != held("seed=3")
