"""`feature_based`: what is read off a frozen body, the cache, the heads, the sweep, and the folder that is written."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from bench import bench
from cuts import interrupt
from laws import events, python, train

from ftune import builtin
from ftune.data.encode import Example
from ftune.errors import (
    ArtifactError,
    DataError,
    DiskError,
    DivergedError,
    NotMergeable,
    RecipeError,
)
from ftune.features import FeatureSource
from ftune.listener import Listener
from ftune.load import Loaded, load_recipe
from ftune.manifest import sha256_of
from ftune.methods import _probe
from ftune.methods._feature_model import POOLINGS, TOKEN, Reading, build, build_head, hidden_states, pooled
from ftune.methods.feature_based import FeatureBased, load_features_model
from ftune.objectives.sequence_classification import SequenceClassification
from ftune.objectives.token_classification import TokenClassification
from ftune.prepare import prepare

FAMILIES = ("llama", "gpt2", "bert", "t5", "bart")
WORDS = ["red", "green", "blue", "of", "the", "sea"]
TAGS = ["B-x", "O", "I-x", "O", "B-y", "O"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "single_label": [{"text": f"{WORDS[i % 3]} {WORDS[i % 5]} " * (1 + i % 3) + str(i), "label": WORDS[i % 3]}
                     for i in range(24)],
    "multi_label": [{"text": " ".join(w for n, w in enumerate(WORDS) if i >> n & 1) or "none",
                     "labels": [w for n, w in enumerate(WORDS[:3]) if i >> n & 1]} for i in range(24)],
    "regression": [{"text": "sea " * (1 + i), "label": i / 4} for i in range(24)],
    "token_labels": [{"tokens": WORDS[i % 3 : 2 + i % 4 + i % 3], "tags": TAGS[i % 3 : 2 + i % 4 + i % 3]}
                     for i in range(24)],
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def body(family: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModel.from_config(builtin.config(family)).eval().requires_grad_(False)


def texts(count: int = 7, seed: int = 1) -> list[np.ndarray]:
    """Rows of bytes of very different lengths; the byte of the pad and of EOS is among them, which are no pads here."""
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 250, size=3 + 5 * (i % 4)).astype(np.int32) for i in range(count)]
    for row in rows:
        row[1] = 256
    return rows


def examples(rows: list[np.ndarray]) -> list[Example]:
    return [
        Example(row, np.ones(1, bool), 0, "rows", i, labels=np.array([i % 3], np.int32)) for i, row in enumerate(rows)
    ]


def source(built: Any, folder: Path, **changes: Any) -> FeatureSource:
    settings: dict[str, Any] = {
        "body": built, "cache": folder, "identity": {"base": "tiny"}, "batch_size": 3, "pad_id": 256,
        "autocast": nullcontext, "tick": lambda done, total: None,
    }  # fmt: skip
    return FeatureSource(**{**settings, **changes})


def alone(built: Any, row: np.ndarray) -> np.ndarray:
    """Hidden states of one row without pads, [layers, T, D], straight from the model."""
    import torch

    encoder = built.get_encoder() if built.config.is_encoder_decoder else built
    with torch.no_grad():
        found = encoder(input_ids=torch.from_numpy(row).long()[None], output_hidden_states=True)
    return torch.cat(found.hidden_states).numpy()


BY_HAND = {"mean": lambda s: s.mean(axis=1), "last": lambda s: s[:, -1], "first": lambda s: s[:, 0],
           "max": lambda s: s.max(axis=1)}  # fmt: skip


def recipe(folder: Path, method: Any, *, problem: str = "single_label", **sections: Any) -> Loaded:
    """A recipe over 24 rows, held out are the same rows; steps only for heads that make some."""
    of_words = problem == "token_labels"
    values: dict[str, Any] = {
        "model": "builtin:tiny-bert",
        "objective": "token_classification" if of_words else {"name": "sequence_classification", "problem": problem},
        "method": {"name": "feature_based", **method},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
        "checkpoint": {"best": None},
        "output_dir": str(folder / "run"),
        **sections,
    }
    if method.get("head", "logistic" if problem == "single_label" else "linear") != "logistic":
        steps = {"duration": "12 steps", "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "warmup": 0}
        values["train"] = {**steps, **sections.get("train", {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS[problem])) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


@contextmanager
def counted_forwards(name: str = "BertModel") -> Iterator[list[int]]:
    """Rows of every call of a body."""
    import transformers

    kind = getattr(transformers, name)
    forward, calls = kind.forward, list[int]()

    @functools.wraps(forward)
    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(len(options["input_ids"]))
        return forward(self, *arguments, **options)

    with mock.patch.object(kind, "forward", counting):
        yield calls


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("left", [False, True], ids=["pads-right", "pads-left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_features_are_those_of_each_row_without_pads(family: str, left: bool) -> None:
    import torch

    built, rows = body(family), texts()
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), 256), torch.zeros((len(rows), longest), dtype=torch.int64)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[number, place], mask[number, place] = torch.from_numpy(row).long(), 1
    states = hidden_states(built, ids, mask, (0, 2, 1))
    for pooling, by_hand in BY_HAND.items():
        found = pooled(states, mask, pooling).numpy()
        expected = np.stack([by_hand(alone(built, row)[[0, 2, 1]]) for row in rows])
        assert np.abs(found - expected).max() < 1e-5, pooling
        assert np.abs(expected).max() > 0.1
    first = states[0, 1][mask[0].bool()].numpy()
    assert np.abs(first - alone(built, rows[0])[2]).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_the_batch_size(tmp_path: Path, family: str) -> None:
    built, rows = body(family), examples(texts(11))
    found = [source(built, tmp_path / str(n), batch_size=n)(rows, (1, 2), POOLINGS) for n in (1, 3, 11)]
    for other in found[1:]:
        assert all(np.abs(other[p] - found[0][p]).max() < 1e-5 for p in POOLINGS)
    assert found[0]["mean"].shape == (11, 2, 64)
    assert isinstance(found[0]["mean"].base, np.memmap) or isinstance(found[0]["mean"].base.base, np.memmap)


def test_features_of_tokens_are_those_of_the_labelled_ones(tmp_path: Path) -> None:
    built, rows = body("bert"), texts(5)
    words = [
        Example(row, np.arange(len(row)) % 3 == 1, 0, "rows", i, labels=np.zeros(len(row), np.int32))
        for i, row in enumerate(rows)
    ]
    found = source(built, tmp_path)(words, (2,), (TOKEN,))[TOKEN]
    expected = np.concatenate([alone(built, row)[2][1::3] for row in rows])
    assert found.shape == (sum(w.num_targets for w in words), 1, 64)
    assert np.abs(found[:, 0] - expected).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_from_texts_and_from_features(tmp_path: Path, family: str) -> None:
    import torch

    built, rows = body(family), examples(texts())
    torch.manual_seed(1)
    model = build(built, build_head(128, 5, None, 0.5), Reading((1, 2), "mean")).eval()
    features = source(built, tmp_path, batch_size=7)(rows, (1, 2), ("mean",))["mean"].reshape(7, -1)
    model.mean.copy_(torch.from_numpy(features.mean(axis=0)))
    order = sorted(range(7), key=lambda i: -len(rows[i].ids))
    batch = SequenceClassification().collate([rows[i] for i in order], 256)
    batch.pop("labels")
    left = SequenceClassification().collate([rows[i] for i in order], 256, left=True)
    left.pop("labels")
    with torch.no_grad():
        expected = model(features=torch.from_numpy(features[order])).logits
        assert float((model(**batch).logits - expected).abs().max()) < 1e-6
        assert float((model(**left).logits - expected).abs().max()) < 1e-6
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(features=torch.from_numpy(features[order])).logits, expected)


def test_the_body_stays_in_evaluation_mode() -> None:
    config = builtin.config("bert")
    config.hidden_dropout_prob = 0.5
    from transformers import AutoModel

    model = build(AutoModel.from_config(config), build_head(64, 2, 8, 0.5), Reading((2,), "mean")).train()
    assert model.training and model.head.training and not model.body.training
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == ["head.hidden.weight", "head.hidden.bias", "head.output.weight", "head.output.bias"]


def test_half_precision_bodies_give_full_precision_features(tmp_path: Path) -> None:
    import torch

    built, rows = body("llama").to(torch.bfloat16), examples(texts())
    found = source(built, tmp_path)(rows, (2,), ("mean",))["mean"]
    exact = source(body("llama"), tmp_path / "exact")(rows, (2,), ("mean",))["mean"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.1


# -------------------------------------------------------------------------------------------------------- cache


def test_the_cache_is_taken_when_it_holds_what_is_asked_for(tmp_path: Path) -> None:
    built, rows = body("bert"), examples(texts())
    read = source(built, tmp_path)
    with counted_forwards() as calls:
        whole = read(rows, (0, 1, 2), POOLINGS)
        assert sum(calls) == 7
        parts = [read(rows, (1,), ("max",))["max"], read(rows, (2, 0), ("max",))["max"]]
        assert sum(calls) == 7
        assert np.array_equal(parts[0][:, 0], whole["max"][:, 1])
        assert np.array_equal(parts[1], whole["max"][:, [2, 0]])
        for other, changed in (
            (source(built, tmp_path, identity={"base": "other"}), rows),
            (read, rows[:-1]),
            (read, rows[::-1]),
        ):
            before = sum(calls)
            other(changed, (1,), ("max",))
            assert sum(calls) == before + len(changed)
        labels = [Example(e.ids, e.is_target, 0, "elsewhere", 9, labels=np.array([0], np.int32)) for e in rows]
        before = sum(calls)
        read(labels, (1,), ("max",))
        assert sum(calls) == before, "labels and places do not change features"


def test_a_damaged_or_torn_entry_is_computed_anew(tmp_path: Path) -> None:
    built, rows = body("bert"), examples(texts())
    read = source(built, tmp_path)
    first = np.array(read(rows, (2,), ("mean",))["mean"])
    (file,) = tmp_path.rglob("mean.npy")
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.unlink()
    file.write_bytes(damaged)
    with counted_forwards() as calls:
        assert np.array_equal(read(rows, (2,), ("mean",))["mean"], first)
        assert sum(calls) == 7
        read(rows, (2,), ("mean",))
        assert sum(calls) == 7, "the damaged entry was replaced"

        def dies(kind: str, path: Path) -> None:
            if kind == "rename":
                raise KeyboardInterrupt

        other = examples(texts(seed=2))
        with pytest.raises(KeyboardInterrupt):
            source(built, tmp_path, on_operation=dies)(other, (2,), ("mean",))
        before = sum(calls)
        read(other, (2,), ("mean",))
        assert sum(calls) == before + 7


def test_two_at_once_compute_once(tmp_path: Path) -> None:
    built, rows = body("bert"), examples(texts())
    found: list[np.ndarray] = []

    def work() -> None:
        found.append(np.array(source(built, tmp_path)(rows, (2,), ("mean",))["mean"]))

    with counted_forwards() as calls:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(calls) == 7
    assert np.array_equal(found[0], found[1])


def test_a_cache_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        source(body("bert"), tmp_path / "file")(examples(texts()), (2,), ("mean",))


def test_features_that_are_not_finite_name_their_rows(tmp_path: Path) -> None:
    built = body("bert")
    built.embeddings.word_embeddings.weight.data[250] = np.inf
    rows = texts()
    rows[4][0] = 250
    with pytest.raises(DivergedError, match=r"says of rows:4 is not finite.*fp32"):
        source(built, tmp_path)(examples(rows), (2,), ("mean",))
    assert not list(tmp_path.rglob("*.npy"))


# -------------------------------------------------------------------------------------------------------- heads


def test_a_second_run_never_touches_the_body(tmp_path: Path, cache: Path) -> None:
    found = []
    for name in ("first", "second"):
        with counted_forwards() as calls:
            report = train(recipe(tmp_path / name, {}, seed=len(found)))
        found.append((sum(calls), sha256_of(tmp_path / name / "run" / "model" / "head.safetensors"), report))
    assert found[0][0] == 24, "train and eval are the same rows, so both are read once"
    assert found[1][0] == 0
    assert found[0][1] == found[1][1]
    assert found[0][2]["metrics"]["eval"]["loss"] == found[1][2]["metrics"]["eval"]["loss"]
    assert found[0][2]["details"] == {
        "head": "logistic", "layers": [2], "pooling": "mean", "features": 64, "converged": True,
        "iterations": found[0][2]["details"]["iterations"],
    }  # fmt: skip
    assert found[0][2]["baseline"]["loss"] == pytest.approx(np.log(3), abs=1e-6)


def test_a_linear_head_learns_from_features_what_it_learns_from_texts(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    loaded = recipe(tmp_path, {"head": "linear"}, eval={"every": "100%"})
    train(loaded)
    folder = tmp_path / "run" / "checkpoints" / "step_000012"
    by_features = load_file(folder / "weights.safetensors")

    work = bench(loaded)
    work.model.body.config  # noqa: B018 - a whole body is there
    method = loaded.recipe.learner.bound(loaded.recipe.objective)
    method.put_back(work.model, json.loads((folder / "settled.json").read_text()))
    with counted_forwards() as calls:
        losses = [result.loss for result in work.steps()]
    assert sum(calls) == 12 * 8, "each step runs the body"
    by_texts = {name: p for name, p in work.model.named_parameters() if p.requires_grad}
    assert by_texts.keys() == by_features.keys() == {"head.output.weight", "head.output.bias"}
    assert max(float((by_texts[name].detach() - by_features[name]).abs().max()) for name in by_texts) < 1e-6
    assert losses == pytest.approx([event["loss"] for event in events(tmp_path / "run", "step")], abs=1e-6)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("labels", [2, 3])
def test_the_logistic_head_is_scikit_learns(tmp_path: Path, labels: int) -> None:
    import torch
    from sklearn.linear_model import LogisticRegression

    rows = [{"text": f"{WORDS[i % 3]} {i}" * (1 + i % 4), "label": WORDS[i % labels]} for i in range(24)]
    weights: Any = "balanced" if labels == 2 else {"red": 2.0}
    objective = {"name": "sequence_classification", "class_weights": weights}
    with mock.patch.dict(ROWS, single_label=rows):
        loaded = recipe(tmp_path, {"head": "logistic", "regularisation": 0.5, "layer": 1}, objective=objective)
    train(loaded)
    model = load_features_model(tmp_path / "run" / "model")
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    tokenizer = builtin.tokenizer()
    ids = [tokenizer(row["text"], return_tensors="pt") for row in rows]
    features = np.stack([alone(model.body, x["input_ids"][0].numpy())[1].mean(axis=0) for x in ids])
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    wanted = [row["label"] for row in rows]
    direct = LogisticRegression(C=2.0, class_weight=weights, max_iter=1000).fit(scaled.astype(np.float64), wanted)
    assert list(direct.classes_) == sorted(names)
    with torch.no_grad():
        found = torch.cat([model(**{k: x[k] for k in ("input_ids", "attention_mask")}).logits for x in ids])
    assert np.abs(found.softmax(dim=1).numpy() - direct.predict_proba(scaled)).max() < 1e-4
    if labels == 2:
        assert np.allclose(model.head.output.weight.numpy(), [np.zeros(64), direct.coef_[0]], atol=1e-3)
    else:
        assert np.allclose(model.head.output.weight.numpy(), direct.coef_, atol=1e-3)


@pytest.mark.parametrize("problem", ["multi_label", "regression", "token_labels"])
def test_other_problems_learn_and_are_scored_alike_from_texts(tmp_path: Path, problem: str) -> None:
    from ftune.scoring import evaluate

    long = {"duration": "60 steps", "batch_size": 24, "micro_batch_size": 24, "learning_rate": 5e-2}
    report = train(recipe(tmp_path, {"layer": [1, 2]}, problem=problem, train=long, eval={"every": "50%"}))
    scores = report["metrics"]["eval"]
    assert report["details"]["head"] == "linear" and report["details"]["features"] == 128
    assert scores["loss"]["value"] < 0.5 * report["baseline"]["loss"]
    found = evaluate(
        tmp_path / "run", split="eval", data_file=None, metrics=None, max_rows=None, batch_size=5, overrides=(),
        tick=lambda *_: None,
    )  # fmt: skip
    for name, score in scores.items():
        assert found.metrics[name].value == pytest.approx(score["value"], abs=2e-6), name


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_logistic_fits_words_too(tmp_path: Path, family: str) -> None:
    """Also where transformers has no class with a head for words, as of BART."""
    method = {"head": "logistic", "layer": 1}
    report = train(recipe(tmp_path, method, problem="token_labels", model=f"builtin:tiny-{family}"))
    assert report["steps"] == 1
    assert report["metrics"]["eval"]["loss"]["value"] < 0.1 * report["baseline"]["loss"]
    (step,) = events(tmp_path / "run", "step")
    assert step["targets"] == sum(len(row["tags"]) for row in ROWS["token_labels"])


def test_without_normalising_features_stay_as_they_are(tmp_path: Path) -> None:
    train(recipe(tmp_path, {"normalise": False}))
    model = load_features_model(tmp_path / "run" / "model")
    assert not model.mean.any() and (model.deviation == 1).all()


def test_constant_features_stay_constant() -> None:
    random = np.random.default_rng(0)
    features = np.stack([np.full(50, 3.0), 3.0 + 1e-7 * random.normal(size=50), random.normal(size=50)], axis=1)
    mean, deviation = _probe.statistics(features.astype(np.float32))
    assert deviation[0] == deviation[1] == 1.0
    assert deviation[2] == pytest.approx(features[:, 2].std(), rel=1e-5)
    assert mean == pytest.approx(features.mean(axis=0), abs=1e-6)


# -------------------------------------------------------------------------------------------------------- sweep


def test_the_sweep_finds_the_planted_layer_and_pooling() -> None:
    random = np.random.default_rng(0)
    rows = [Example(np.zeros(1, np.int32), np.ones(1, bool), 0, "", i, labels=np.array([i % 3], np.int32))
            for i in range(90)]  # fmt: skip
    arrays = {pooling: random.normal(size=(90, 3, 64)).astype(np.float32) for pooling in POOLINGS}
    arrays["last"][:, 1, :3] += 8 * np.eye(3)[np.arange(90) % 3]
    asked = []

    def features(_: Any, layers: tuple[int, ...], poolings: tuple[str, ...]) -> dict[str, np.ndarray]:
        asked.append((layers, poolings))
        return {pooling: arrays[pooling][:, list(layers)] for pooling in poolings}

    config = builtin.config("bert")
    config.num_labels = 3
    from transformers import AutoModel

    method = FeatureBased(layer="sweep", pooling="sweep").bound(SequenceClassification())
    model: Any = method.attach(AutoModel.from_config(config), builtin.tokenizer())
    method.settle(model, rows, features, seed=5)
    assert asked == [((0, 1, 2), POOLINGS), ((1,), ("last",))], "one pass over all, and the chosen one again"
    assert model.reading == Reading((1,), "last")
    table = model.notes["sweep"]
    assert len(table) == 12
    best = max(table, key=lambda row: row["accuracy"])
    assert (best["layers"], best["pooling"]) == ([1], "last") and best["accuracy"] > 0.9
    assert all(row["accuracy"] < 0.7 for row in table if row is not best)
    assert model.mean.numpy() == pytest.approx(arrays["last"][:, 1].mean(axis=0), abs=1e-6)

    side_by_side = FeatureBased(layer=[0, 1], pooling="sweep").bound(SequenceClassification())
    model = side_by_side.attach(AutoModel.from_config(config), builtin.tokenizer())
    side_by_side.settle(model, rows, features, seed=5)
    assert model.reading == Reading((0, 1), "last") and len(model.mean) == 128


def test_a_sweep_holds_out_whole_rows_and_scores_numbers_by_r2() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 7)
    fit, held = _probe._parts(groups, seed=1)
    assert len(np.unique(groups[held])) == 4 and not set(groups[fit]) & set(groups[held])
    assert len(fit) + len(held) == 140
    with mock.patch.object(_probe, "PROBE_ROWS", 80):
        fit, held = _probe._parts(groups, seed=1)
        assert len(fit) + len(held) == 77 and len(np.unique(groups[held])) == 2
    good, bad = random.normal(size=(2, 100, 8)).astype(np.float32)
    values = (good[:, :1] + 0.1 * random.normal(size=(100, 1))).astype(np.float64)
    labels = _probe.Labels(values, np.arange(100), 0)
    table, best = _probe.sweep({Reading((0,), "mean"): bad, Reading((1,), "mean"): good}, labels, seed=0)
    assert best == Reading((1,), "mean")
    assert table[1]["r2"] > 0.9 > 0.5 > table[0]["r2"]


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "token_labels"])
def test_a_run_with_a_sweep_tells_its_table_and_opens_alike(tmp_path: Path, problem: str) -> None:
    from ftune.target import open_target

    method = {"layer": "sweep"} | ({} if problem == "token_labels" else {"pooling": "sweep"})
    loaded = recipe(tmp_path, method, problem=problem)
    with counted_forwards() as calls:
        report = train(loaded)
    assert sum(calls) == 24
    table = report["details"]["sweep"]
    assert len(table) == 3 * (1 if problem == "token_labels" else 4)
    written = json.loads((tmp_path / "run" / "model" / "feature_based.json").read_text())
    assert written["notes"]["sweep"] == table
    score = "r2" if problem == "multi_label" else "accuracy"
    assert max(row[score] for row in table) == next(
        row[score] for row in table if (row["layers"], row["pooling"]) == (written["layers"], written["pooling"])
    )
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"| layers | pooling | {score} |" in text and f"- pooling: {written['pooling']}" in text
    step = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    run, checkpoint = (open_target(path).model for path in (tmp_path / "run", step))
    assert run.reading == checkpoint.reading == Reading(tuple(written["layers"]), written["pooling"])
    ids = {"input_ids": builtin.tokenizer()("red sea", return_tensors="pt")["input_ids"]}
    assert run(**ids).logits.equal(checkpoint(**ids).logits)


# ----------------------------------------------------------------------------------------------------- artefact


def test_the_folder_opens_in_a_fresh_process_without_its_base(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    body("t5").save_pretrained(base)
    builtin.tokenizer().save_pretrained(base)
    loaded = recipe(tmp_path, {"head": "mlp", "hidden": 8, "layer": [0, -1], "pooling": "max"}, model=str(base))
    train(loaded)
    from ftune.target import open_target

    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    model = open_target(tmp_path / "run").model
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    save_file({"ids": ids, "mask": mask}, tmp_path / "inputs.safetensors")
    shutil.move(tmp_path / "run" / "model", tmp_path / "moved")
    shutil.rmtree(base)
    program = (
        "import sys, json, torch\n"
        "from pathlib import Path\n"
        "from safetensors.torch import load_file, save_file\n"
        "from ftune.methods.feature_based import load_features_model\n"
        "from ftune.target import open_target\n"
        "torch.set_num_threads(1)\n"
        "x = load_file('inputs.safetensors')\n"
        "one, two = load_features_model('moved'), open_target(Path('moved')).model\n"
        "with torch.no_grad():\n"
        "    found = [m(input_ids=x['ids'], attention_mask=x['mask']).logits for m in (one, two)]\n"
        "save_file({'one': found[0], 'two': found[1]}, 'out.safetensors')\n"
        "print(json.dumps([one.config.id2label[0], one.reading.pooling, list(one.reading.layers)]))\n"
    )
    (tmp_path / "fresh.py").write_text(program)
    done = python(str(tmp_path / "fresh.py"))
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["one"], expected) and torch.equal(found["two"], expected)
    assert json.loads(done.stdout.splitlines()[-1]) == ["blue", "max", [0, 2]]
    assert not (tmp_path / "moved" / "config.json").exists()
    kept = {file.name for file in (tmp_path / "moved").iterdir()}
    assert {"body", "head.safetensors", "feature_based.json", "tokenizer.json", "ftune.json", "MANIFEST.json"} <= kept


def test_the_body_is_written_in_the_smallest_type_that_holds_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    built = body("llama")
    for parameter in built.parameters():  # not the rotary tables, which are never in half precision
        parameter.data = parameter.data.bfloat16().float()
    method = FeatureBased(head="linear").bound(SequenceClassification())
    model = method.attach(built, builtin.tokenizer())
    method.save(model, tmp_path)
    stored = load_file(tmp_path / "body" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    ids = {"input_ids": torch.arange(9)[None]}
    assert torch.equal(load_features_model(tmp_path)(**ids).logits, model.eval()(**ids).logits)
    exact = method.attach(body("llama"), builtin.tokenizer())
    (tmp_path / "exact").mkdir()
    method.save(exact, tmp_path / "exact")
    stored = load_file(tmp_path / "exact" / "body" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_a_head_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    method = FeatureBased(head="linear").bound(SequenceClassification())
    method.save(method.attach(body("bert"), builtin.tokenizer()), tmp_path)
    weights, chosen = load_file(tmp_path / "head.safetensors"), (tmp_path / "feature_based.json").read_text()

    def refused(message: str, tensors: Any = weights, text: str = chosen) -> None:
        save_file(tensors, tmp_path / "head.safetensors")
        (tmp_path / "feature_based.json").write_text(text)
        with pytest.raises(ArtifactError, match=message):
            method.load(body("bert"), tmp_path)
        with pytest.raises(ArtifactError, match=message):
            load_features_model(tmp_path)

    assert sorted(weights) == ["deviation", "head.output.bias", "head.output.weight", "mean"]
    for name in weights:
        refused(f"Missing: .*{name}", {k: v for k, v in weights.items() if k != name})
    refused("unexpected: .*other", {**weights, "other": weights["mean"].clone()})
    refused("of another shape: .*mean is", {**weights, "mean": weights["mean"][:3].contiguous()})
    refused("damaged", text="{}")
    refused("does not fit", text=chosen.replace("[\n    2\n  ]", "[7]"))
    refused("does not fit", text=chosen.replace('"pooling": "mean",\n  "hidden"', '"pooling": "median",\n  "hidden"'))
    (tmp_path / "feature_based.json").write_text(chosen)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"head\.safetensors|cannot be read"):
        load_features_model(tmp_path)
    with pytest.raises(ArtifactError, match=r"no feature_based\.json"):
        load_features_model(tmp_path / "body")


def test_it_cannot_be_merged(tmp_path: Path) -> None:
    method = FeatureBased().bound(SequenceClassification())
    assert not method.mergeable
    with pytest.raises(NotMergeable, match="load_features_model"):
        method.merge(method.attach(body("bert"), builtin.tokenizer()))


# ------------------------------------------------------------------------------------------------------- resume


def test_a_run_that_was_cut_equals_one_that_was_not(tmp_path: Path, cache: Path) -> None:
    method = {"head": "mlp", "hidden": 16, "dropout": 0.2, "layer": "sweep", "pooling": "sweep"}
    train(recipe(tmp_path / "whole", method))
    loaded = recipe(tmp_path / "cut", method)
    for step in (1, 7):
        interrupt(loaded, step)
    shutil.rmtree(cache)
    with mock.patch.object(_probe, "sweep", side_effect=AssertionError("what was settled is in the checkpoint")):
        train(loaded)
    runs = [tmp_path / name / "run" for name in ("whole", "cut")]
    files = ("weights.safetensors", "optimizer.safetensors", "settled.json")
    for name in files:
        assert len({sha256_of(run / "checkpoints" / "step_000012" / name) for run in runs}) == 1, name
    assert len({sha256_of(run / "model" / "head.safetensors") for run in runs}) == 1
    from safetensors.torch import load_file

    stored = load_file(runs[0] / "checkpoints" / "step_000012" / "weights.safetensors")
    assert all(name.startswith("head.") for name in stored)


def test_a_fit_that_was_saved_is_not_made_again(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, {})
    with mock.patch("ftune.finish.publish_artefact", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(loaded)
    with mock.patch.object(_probe, "logistic", side_effect=AssertionError("fitted again")):
        report = train(loaded)
    assert report["steps"] == 1 and report["details"]["converged"]
    assert report["metrics"]["eval"]["loss"]["value"] < 0.1


@pytest.mark.e2e
@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_two_processes_give_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    from laws import ftune
    from safetensors.torch import load_file

    found = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        monkeypatch.setenv("FTUNE_CACHE", str(folder / "cache"))
        recipe(folder, {"head": head, "layer": "sweep", "pooling": "sweep"})
        done = ftune("train", folder / "recipe.yaml", "--devices", devices, "--quiet", seconds=300)
        assert done.returncode == 0, done.stderr
        entries = [path.parent for path in (folder / "cache" / "features").rglob("MANIFEST.json")]
        assert len(entries) == 1, "both read the same rows, once"
        found[devices] = load_file(folder / "run" / "model" / "head.safetensors")
    assert found[1].keys() == found[2].keys()
    for name, tensor in found[1].items():
        assert float((tensor - found[2][name]).abs().max()) < (1e-4 if name.startswith("head") else 1e-6), name


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("method", "sections", "where", "message"),
    [
        ({}, {"train": {"duration": "3 epochs"}}, "train.duration", "fitted at once"),
        ({}, {"train": {"learning_rate": 1e-3}}, "train.learning_rate", "fitted at once"),
        ({"head": "logistic"}, {"train": {"early_stopping": {"patience": 2}}}, "train.early_stopping", "at once"),
        ({}, {"objective": {"name": "sequence_classification", "focal_gamma": 2.0}}, "objective.focal_gamma", "once"),
        ({"dropout": 0.1}, {}, "method.dropout", "heads that learn in steps"),
        ({"hidden": 4}, {}, "method.hidden", "hidden layer of head mlp"),
        ({"head": "linear", "regularisation": 2.0}, {}, "method.regularisation", "weight_decay"),
        ({"layer": [1, 1]}, {}, "method.layer", "twice"),
        ({"layer": [2, -1]}, {}, "method.layer", "twice"),
        ({"layer": 3}, {}, "method.layer", "2 layers"),
        ({"layer": -4}, {}, "method.layer", "no hidden state -4"),
        ({"pooling": "median"}, {}, "method.pooling", "mean"),
        ({"head": "linear"}, {"train": {"activation_checkpointing": True}}, "train.activation_checkpointing", "false"),
    ],
)
def test_what_cannot_be_had_is_one_clear_error(
    tmp_path: Path, method: Any, sections: Any, where: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        prepare(recipe(tmp_path, method, **sections), lambda *_: None)
    (problem,) = caught.value.problems
    assert problem.path == where and message in problem.message, problem


@pytest.mark.parametrize(
    ("problem", "method", "where", "message"),
    [
        ("regression", {"head": "logistic"}, "method.head", "not for regression"),
        ("multi_label", {"head": "logistic"}, "method.head", "not for multi_label"),
        ("token_labels", {"pooling": "max"}, "method.pooling", "tokens are not pooled"),
    ],
)
def test_a_problem_that_the_method_does_not_fit(
    tmp_path: Path, problem: str, method: Any, where: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        prepare(recipe(tmp_path, method, problem=problem, train={}), lambda *_: None)
    found = [p for p in caught.value.problems if p.path == where]
    assert len(found) == 1 and message in found[0].message
    assert found[0].where.startswith(f"{tmp_path / 'recipe.yaml'}:1:")


def test_keys_without_effect_may_be_inherited(tmp_path: Path) -> None:
    recipe(tmp_path, {"head": "linear", "layer": 1})
    text = "extends: recipe.yaml\nmethod: {name: feature_based, head: logistic}\n"
    (tmp_path / "child.yaml").write_text(text, encoding="utf-8")
    assert prepare(load_recipe(tmp_path / "child.yaml"), lambda *_: None).plan.steps == 1
    with pytest.raises(RecipeError, match=r"--set train\.warmup"):
        prepare(load_recipe(tmp_path / "child.yaml", ["train.warmup=1"]), lambda *_: None)


def test_the_plan_says_what_a_head_costs(tmp_path: Path) -> None:
    plan = prepare(recipe(tmp_path, {}, model="builtin:tiny-t5"), lambda *_: None).plan
    assert plan.steps == 1 and "at once" in plan.sources["steps"]
    assert plan.trainable_parameters == 3 * 64 + 3
    assert plan.precision == plan.frozen_dtype == "fp32" and not plan.activation_checkpointing
    assert plan.disk_bytes > 4 * plan.total_parameters
    mlp = recipe(tmp_path / "mlp", {"head": "mlp", "layer": [0, 1], "hidden": 10})
    assert prepare(mlp, lambda *_: None).plan.trainable_parameters == 128 * 10 + 10 + 10 * 3 + 3


def test_too_few_rows_are_an_error_of_the_data(tmp_path: Path) -> None:
    rows = ROWS["single_label"][:6]
    with mock.patch.dict(ROWS, single_label=rows), pytest.raises(DataError, match="needs 10"):
        train(recipe(tmp_path, {"layer": "sweep"}))
    labels = _probe.Labels(np.array([0, 0, 2]), np.arange(3), 3)
    with pytest.raises(DataError, match="'b' has no row left"):
        _probe.logistic(np.zeros((3, 2), np.float32), labels, ["a", "b", "c"], penalty=1.0, class_weight=None)
    with pytest.raises(DataError, match="same label"):
        _probe.logistic(np.zeros((3, 2), np.float32), labels, ["a"], penalty=1.0, class_weight=None)


def test_a_fit_that_does_not_settle_says_so(tmp_path: Path) -> None:
    notes: list[str] = []

    class Hears(Listener):
        def note(self, text: str) -> None:
            notes.append(text)

    with mock.patch.object(_probe, "MAX_ITERATIONS", 2):
        report = train(recipe(tmp_path, {"regularisation": 1e-4}), Hears())
    assert report["details"]["converged"] is False
    assert any("ended after 2 iterations" in note for note in notes)


def test_words_of_the_objective_decide_the_head() -> None:
    kinds = {
        problem: FeatureBased().bound(SequenceClassification(problem=problem))._kind
        for problem in ("single_label", "multi_label", "regression")
    }
    assert kinds == {"single_label": "logistic", "multi_label": "linear", "regression": "linear"}
    words = FeatureBased().bound(TokenClassification())
    assert words._kind == "linear" and words._poolings == (TOKEN,)
    assert FeatureBased(head="mlp").bound(SequenceClassification())._kind == "mlp"
