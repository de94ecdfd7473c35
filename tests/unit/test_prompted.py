"""`eval.shots`: the untrained base with training rows in its prompt, scored before a run and shown beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from laws import recipe, train

from ftune.as_language_model import Asked
from ftune.errors import DataError, RecipeError
from ftune.few_shot import evaluate_shots
from ftune.load import Loaded, load_recipe
from ftune.report import beside_base, to_markdown
from ftune.report_page import run_page
from ftune.run_files import PROMPTED, read_run

ROWS = [{"prompt": f"{n} and", "completion": "odd" if n % 2 else "even"} for n in range(24)]


def own(folder: Path, **sections: Any) -> Loaded:
    sections.setdefault("data", {"eval": "25%", "test": "test.jsonl", "near_duplicates": None})
    folder.mkdir(exist_ok=True)
    others = [json.dumps({**row, "prompt": f"what of {row['prompt']}"}) for row in ROWS[:6]]
    (folder / "test.jsonl").write_text("\n".join(others) + "\n")
    sections.setdefault("eval", {"shots": [0, 2], "metrics": ["loss", "exact_match"], "max_new_tokens": 4})
    return recipe(folder, rows=ROWS, **sections)


def test_it_is_what_eval_with_shots_says(tmp_path: Path) -> None:
    loaded = own(tmp_path)
    report = train(loaded)
    for split in ("eval", "test"):
        said = evaluate_shots(
            loaded.path, Asked((0, 2)), split=split, data_file=None, metrics=None, max_rows=None, batch_size=3,
            overrides=(), tick=lambda *_: None,
        )  # fmt: skip
        found = report["prompted"][split]
        assert list(found) == ["0", "2"] and all(found[key].keys() == {"loss", "exact_match"} for key in found)
        for one in said:
            for name, score in one.metrics.items():
                assert found[str(one.shots)][name]["value"] == pytest.approx(score.value, rel=1e-5), (split, name)
    assert report["prompted"]["eval"]["0"]["loss"]["value"] == pytest.approx(report["baseline"]["loss"], rel=1e-5)
    assert report["prompted"]["eval"]["2"]["loss"]["value"] != pytest.approx(report["baseline"]["loss"], rel=1e-5)


def test_reports_show_it(tmp_path: Path) -> None:
    loaded = own(tmp_path)
    report = train(loaded)
    header, rows = beside_base(report)
    assert header == ["metric", "base, 0-shot", "base, 2-shot", "tuned"]
    assert [row[0] for row in rows] == ["eval loss", "eval exact_match", "test loss", "test exact_match"]
    page = run_page(read_run(tmp_path / "run"))
    for number in (report["prompted"]["test"]["2"]["loss"]["value"], report["metrics"]["test"]["loss"]["value"]):
        assert f"{number:.4f} (" in to_markdown(report, best=True) and f"{number:.4f} (" in page
    without = train(own(tmp_path / "none", eval={"metrics": ["loss"]}))
    assert without["prompted"] == {} and "2-shot" not in to_markdown(without, best=True)


def test_training_does_not_see_it(tmp_path: Path) -> None:
    """Scores before a run leave its weights as they would be, bit for bit."""
    metrics = {"metrics": ["loss", "exact_match"], "max_new_tokens": 4}
    train(own(tmp_path / "with", method={"name": "lora", "dropout": 0.1}))
    train(own(tmp_path / "without", method={"name": "lora", "dropout": 0.1}, eval=metrics))
    names = sorted(path.name for path in (tmp_path / "with" / "run" / "model").glob("*.safetensors"))
    assert names
    for name in names:
        one, other = (tmp_path / kind / "run" / "model" / name for kind in ("with", "without"))
        assert one.read_bytes() == other.read_bytes()


def test_it_is_scored_once(tmp_path: Path) -> None:
    """Going on leaves it alone, other numbers score anew, none take it away, and a damaged file is made again."""
    loaded = own(tmp_path)
    train(loaded)
    path = tmp_path / "run" / PROMPTED
    path.write_text(path.read_text().replace('"scores"', '"note": "first", "scores"'))
    more = load_recipe(loaded.path, ["train.duration=7 steps"])
    assert train(more)["steps"] == 7 and "note" in json.loads(path.read_text())
    other = load_recipe(loaded.path, ["train.duration=8 steps", "eval.shots=[1]"])
    assert list(train(other)["prompted"]["eval"]) == ["1"]
    path.write_text("{")
    again = load_recipe(loaded.path, ["train.duration=9 steps", "eval.shots=[1]"])
    assert list(train(again)["prompted"]["eval"]) == ["1"]
    none = load_recipe(loaded.path, ["train.duration=10 steps", "eval.shots=[]"])
    assert train(none)["prompted"] == {} and not path.exists()


def test_labels_of_a_decoder_are_options(tmp_path: Path) -> None:
    rows = [{"text": f"{'good' if n % 2 else 'bad'} number {n}", "label": "yes" if n % 2 else "no"} for n in range(24)]
    loaded = recipe(
        tmp_path, rows=rows, objective="sequence_classification", eval={"shots": [0, 2], "metrics": ["accuracy"]},
        data={"eval": "25%", "template": None, "near_duplicates": None},
    )  # fmt: skip
    report = train(loaded)
    header, shown = beside_base(report)
    assert len(header) == 4 and [row[0] for row in shown] == ["eval accuracy"] and all(shown[0])


def test_what_cannot_be_prompted_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+.*eval.shots.*an encoder guesses words"):
        labels = [{"text": f"n {n}", "label": "ab"[n % 2]} for n in range(8)]
        train(
            recipe(
                tmp_path / "encoder", rows=labels, model="builtin:tiny-bert", objective="sequence_classification",
                data={"eval": "25%", "template": None}, eval={"shots": [4]},
            )
        )  # fmt: skip
    with pytest.raises(DataError, match="expected 400 demonstrations, but data.train has"):
        train(own(tmp_path / "many", eval={"shots": [400]}))
    for folder in ("encoder", "many"):
        assert not (tmp_path / folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"eval": {"shots": [2, 0, 2]}}, r"names a number twice: \[2, 0, 2\]"),
        ({"eval": {"shots": [-1]}}, "eval.shots"),
        ({"objective": "masked_lm", "model": "builtin:tiny-bert"}, "objective masked_lm continues no prompt"),
        ({"data": {"eval": None}}, "eval.shots: has no effect without data.eval"),
    ],
)
def test_contradictions(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, rows=ROWS, **{"data": {"eval": "25%"}, "eval": {"shots": [0, 4]}, **sections})
