"""Reports of runs: all of a run is in them, nothing of a user's is markup, and `ftune report` makes them anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from laws import recipe, train
from run_folders import HOSTILE, write_run
from test_page import Reader
from typer.testing import CliRunner

from ftune.cli import app
from ftune.drift import OURS
from ftune.errors import ArtifactError
from ftune.report import to_markdown
from ftune.report_diff import difference, leaves
from ftune.report_diff_page import diff_page
from ftune.report_files import write_report
from ftune.report_page import SHOWN_ROWS, run_page
from ftune.run_files import read_run
from ftune.store import Store

PNG = b"\x89PNG\r\n\x1a\n"


def invoke(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


# one run


def test_everything_of_a_run_is_on_its_page(tmp_path: Path) -> None:
    read = Reader(run_page(read_run(write_run(tmp_path / "mine"))))
    for text in (
        "ftune run: mine", "task on plain, sequence_classification: 40 steps (complete).",
        "eval accuracy", "0.7500", "0.3000", "0.6100 to 0.8700", "model/ is step 40 (best eval loss).",
        "Loss", "Learning rate", "Gradient norm", "Speed", "Memory",
        "planned: gradients", "planned: logits", "3 MiB", "measured peak, with libraries", "128 MiB",
        "10 of 100 (10.00%)", "2,000", "20.0 s", "2.00 GFLOP/s",
        "a plain", "0.3333", "b plain, taken for a plain: 3 of 3 (100.0%)",
        "3 of 6 rows are exactly right", "row 5 plain", "a plain (55%)", "plain.csv:5",
        "1,234", "1 plain", "train: a note plain", "layers", "0.2500",
        "learning_rate: 0.001", "train: plain.csv", "data.train", "aa11",
    ):  # fmt: skip
        assert text in read.text, text
    plots = [json.loads(text) for text in read.scripts if text.startswith("{")]
    assert [plot["series"][0]["name"] for plot in plots] == [
        "train", "accuracy", "learning rate", "gradient norm", "tokens per second", "measured"
    ]  # fmt: skip
    assert plots[0]["series"][-1] == {"name": "eval", "style": "points", "x": [0, 40], "y": [2.0, 0.5]}
    assert len(plots[0]["series"][0]["x"]) == 40


def test_the_surest_mistakes_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    text = Reader(run_page(read_run(run))).text
    places = [text.index(f"row {i} plain") for i in (5, 3, 1, 4, 2, 0)]
    assert places == sorted(places)


def test_hostile_text_of_a_run_stays_text(tmp_path: Path) -> None:
    page = run_page(read_run(write_run(tmp_path / "<img src=x onerror=alert(1)>", text=HOSTILE)))
    read, tame = Reader(page), Reader(run_page(read_run(write_run(tmp_path / "tame", text="plain"))))
    kinds = {tag for tag, _ in tame.tags}
    assert {tag for tag, _ in read.tags} <= kinds
    scripts = [tag for tag, _ in read.tags].count("script")
    assert scripts == [tag for tag, _ in tame.tags].count("script")
    assert not [name for _, attributes in read.tags for name in attributes if name in ("src", "href", "onerror")]
    assert "\u202e" not in page
    assert "<script>alert(1)" in read.text


def test_a_page_is_the_same_bytes_each_time_and_small(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    first = run_page(read_run(run))
    assert run_page(read_run(run)) == first
    shutil.copytree(run, tmp_path / "elsewhere" / "mine")
    assert run_page(read_run(tmp_path / "elsewhere" / "mine")) == first
    assert len(first) < 110_000
    long = run_page(read_run(write_run(tmp_path / "long", steps=20_000)))
    assert len(long) < 400_000, "a long run's curves are thinned"


def test_many_long_rows_are_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    row = {"file": "x", "number": 1, "prompt": "start" + "m" * 10_000 + "end", "expected": "e", "received": "r",
           "exact": False}  # fmt: skip
    (run / "predictions_test.jsonl").write_text(f"{json.dumps(row)}\n" * 500)
    page = run_page(read_run(run))
    assert page.count("mmm […] mmm") == SHOWN_ROWS
    assert "0 of 500 rows are exactly right. Shown: 30, the first." in page


def test_the_report_is_made_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    before = (run / "report.json").read_bytes()
    output = invoke(run)
    assert "40 steps (complete)" in output
    assert "eval accuracy" in output
    names = {"report.md", "report.html", "loss.png", "training.png", "confusion_eval.png"}
    assert {path.name for path in run.iterdir()} >= names
    assert names <= OURS
    for name in names:
        content = (run / name).read_bytes()
        assert content.startswith(PNG) == name.endswith(".png"), name
        (run / name).unlink()
        invoke(run)
        assert (run / name).read_bytes() == content
    assert (run / "report.json").read_bytes() == before
    assert json.loads(invoke(run, "--json")) == json.loads(before)


def test_of_a_run_that_is_not_finished_the_report_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", finished=False)
    output = invoke(run)
    assert "20 of 40 steps (NOT FINISHED)" in output
    assert not (run / "report.json").exists(), "this file marks a run as finished"
    assert "This run is not finished." in Reader((run / "report.html").read_text()).text
    assert "20 of 40 steps (NOT FINISHED)" in (run / "report.md").read_text()
    report = json.loads(invoke(run, "--json"))
    assert report["finished"] is None
    assert report["metrics"] == {
        "eval": {"loss": {"value": 0.5, "ci95": None}, "accuracy": {"value": 0.75, "ci95": None}}
    }
    assert report["baseline"] == {"loss": 2.0, "accuracy": 0.3}
    assert (report["tokens_seen"], report["train_seconds"], report["peak_memory_bytes"]) == (1000, 10.0, 2**22)


@pytest.mark.parametrize("left", [{"run.json"}, {"run.json", "plan.json"}, {"run.json", "metrics.jsonl"}])
def test_a_run_that_has_hardly_begun_has_a_report(tmp_path: Path, left: set[str]) -> None:
    run = write_run(tmp_path / "mine", finished=False)
    for path in list(run.iterdir()):
        if path.name not in left:
            path.unlink()
    assert "NOT FINISHED" in invoke(run)
    assert "NOT FINISHED" in Reader((run / "report.html").read_text()).text


def test_a_report_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old")
    (run / "report.json").write_text(json.dumps({"name": "old", "finished": "complete", "steps": 3}))
    assert "3 steps (complete)" in invoke(run)
    report = json.loads((write_run(tmp_path / "whole") / "report.json").read_text())
    for key in report.keys() - {"name"}:
        (run / "report.json").write_text(json.dumps({k: v for k, v in report.items() if k != key}))
        invoke(run, "--html", tmp_path / "page.html")
        invoke(run, tmp_path / "whole", "--html", tmp_path / "diff.html")


def test_one_page_elsewhere_leaves_the_run_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    names = sorted(path.name for path in run.iterdir())
    invoke(run, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == run_page(read_run(run))
    assert sorted(path.name for path in run.iterdir()) == names


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda folder: None, 4, "is no folder"),
        (lambda folder: folder.mkdir(), 4, "holds no run.json"),
        (lambda folder: (write_run(folder) / "plan.json").write_text("{"), 4, "plan.json: cannot be read"),
        (
            lambda folder: (write_run(folder) / "report.json").write_text("[]"),
            4,
            "expected a JSON object, received list",
        ),
    ],
)
def test_what_is_no_run_is_said(tmp_path: Path, make: Any, code: int, said: str) -> None:
    make(tmp_path / "mine")
    assert said in invoke(tmp_path / "mine", code=code)


def test_a_page_needs_a_file(tmp_path: Path) -> None:
    assert "is a folder" in invoke(write_run(tmp_path / "mine"), "--html", tmp_path, code=2)


def test_markdown_has_the_labels(tmp_path: Path) -> None:
    text = to_markdown(read_run(write_run(tmp_path / "mine", text="x|y")).known, best=True)
    assert "| a x\\|y | 0.500 | 0.333 | 0.400 | 3 |" in text
    assert "](confusion_eval.png)" in text


def test_reports_are_written_as_wholes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    done: list[str] = []
    write_report(Store(run, lambda kind, path: done.append(kind)), read_run(run))
    assert done.count("rename") == 5
    assert done.count("fsync") == 5


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    program = (
        "import sys\nfrom ftune.cli import app\n"
        f"for words in (['report', {str(one)!r}], ['report', {str(one)!r}, {str(other)!r}]):\n"
        "    try:\n        app(words)\n    except SystemExit:\n        pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'datasets', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "train.learning_rate" in done.stdout


# several runs


def two(folder: Path) -> tuple[Path, Path]:
    one = write_run(folder / "one")
    metrics = {"eval": {"accuracy": {"value": 0.95, "ci95": [0.9, 0.99]}, "mcc": {"value": 0.5, "ci95": None}}}
    other = write_run(folder / "other", text="new", metrics=metrics, tokens_seen=4000)
    recipe = json.loads((other / "resolved.json").read_text())
    recipe["recipe"]["train"] = {"learning_rate": 0.002, "batch_size": 4, "warmup": None}
    (other / "resolved.json").write_text(json.dumps(recipe))
    return one, other


def test_what_differs_between_runs(tmp_path: Path) -> None:
    found = json.loads(invoke(*two(tmp_path), "--json"))
    recipe = {line["key"]: line["values"] for line in found["recipe"]}
    assert recipe["train.learning_rate"] == [{"value": 0.001}, {"value": 0.002}]
    assert recipe["train.warmup"] == [{"missing": True}, {"value": None}]
    assert "train.batch_size" not in recipe
    assert {line["key"] for line in found["versions"]} == {"torch"}
    assert found["data"] == []
    accuracy, mcc = found["metrics"]
    assert accuracy["key"] == "eval accuracy"
    assert accuracy["better"] == "higher"
    assert accuracy["differences"] == [0.0, pytest.approx(0.2)]
    assert accuracy["overlap"] == [True, False]
    assert mcc["values"] == [{"missing": True}, {"value": 0.5}]
    assert mcc["differences"] == [None, None]
    cost = {line["key"]: line["values"] for line in found["cost"]}
    assert cost["tokens_seen"] == [{"value": 2000}, {"value": 4000}]


def test_data_that_differ(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    report = json.loads((other / "report.json").read_text())
    report["data"]["train"] |= {"rows": 99, "fingerprint": "cc33"}
    (other / "report.json").write_text(json.dumps(report))
    found = difference([read_run(one), read_run(other)])
    assert found["data"] == [
        {"key": "train.rows", "values": [{"value": 41}, {"value": 99}]},
        {"key": "train.fingerprint", "values": [{"value": "bb22"}, {"value": "cc33"}]},
    ]


def test_the_difference_is_a_page_and_tables(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    output = invoke(one, other, one, "--html", tmp_path / "diff.html")
    text = Reader((tmp_path / "diff.html").read_text()).text
    for words in ("train.learning_rate", "0.002", "(not there)", "+0.2000, intervals do not overlap", "4,000"):
        assert words in text, words
    for words in (
        "train.learning_rate",
        "(not there)",
        "do not",
        "4,000",
        "one (1)",
        "one (3)",
        "The data are the same",
    ):
        assert words in output, words
    runs = [read_run(one), read_run(other)]
    assert diff_page(runs, difference(runs)) == diff_page(runs, difference(runs))


def test_hostile_text_of_two_runs_stays_text(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / "one", text=HOSTILE)), read_run(write_run(tmp_path / "other"))]
    read = Reader(diff_page(runs, difference(runs)))
    assert not [name for _, attributes in read.tags for name in attributes if name in ("src", "href", "onerror")]
    assert "img" not in {tag for tag, _ in read.tags}
    assert "alert(1)" in read.text


def test_a_run_beside_one_that_is_not_finished(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", finished=False)
    found = json.loads(invoke(one, other, "--json"))
    assert [run["finished"] for run in found["runs"]] == ["complete", None]
    invoke(other, one, "--html", tmp_path / "diff.html")
    (other / "metrics.jsonl").unlink()
    (other / "plan.json").unlink()
    invoke(one, other, "--html", tmp_path / "diff.html")


def test_leaves() -> None:
    assert leaves({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_reading_names_the_damaged_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    (run / "resolved.json").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match=r"resolved\.json: cannot be read"):
        read_run(run)


def test_the_peak_of_memory_is_that_of_all_processes_of_a_run(tmp_path: Path) -> None:
    """A run that was cut had its peak where it made its steps, not where it was finished."""
    loaded = recipe(tmp_path)
    train(loaded)
    log, report = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "report.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    steps[0]["memory_bytes"] = 10**15
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.unlink()
    assert train(loaded)["peak_memory_bytes"] == 10**15
