"""Rows that are left out: counted by reason, named, bounded; the report reconciles to the rows of the source."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from laws import recipe
from tiny_tokenizers import FAMILIES, byte_tokenizer
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data.build import Dataset, build_data
from ftune.data.cache import Cache
from ftune.data.render import Renderer
from ftune.data.samples import read_samples
from ftune.data_report import data_summary
from ftune.errors import DataError
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.sequence_classification import SequenceClassification
from ftune.prepare import prepare_data
from ftune.recipe import Data


def build(
    folder: Path, objective: Any = None, *, tokenizer: Any = None, max_length: int = 99, **values: Any
) -> Dataset:
    data, kind = Data(**{"train": "a.jsonl", **values}), objective or CausalLM()
    return build_data(
        data, folder, Renderer(tokenizer or byte_tokenizer(), data.template), kind, max_length=max_length, seed=0,
        max_eval_rows=None, accepted=kind.formats, guard=[], encoder_decoder=False, tick=lambda *_: None,
    )  # fmt: skip


def write(path: Path, rows: list[Any]) -> None:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )


def good(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} = ", "completion": str(2 * i)} for i in range(number)]


BAD = ["nonsense", {"prompt": "p", "completion": ""}, {"prompt": 3, "completion": None}]


def test_bad_rows_stop_by_default(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*good(3), *BAD])
    with pytest.raises(DataError) as caught:
        build(tmp_path)
    assert [(problem.row, problem.field) for problem in caught.value.problems] == [
        (4, ""), (5, "completion"), (6, "prompt"), (6, "completion"),
    ]  # fmt: skip


def test_nothing_is_tokenised_after_a_bad_row_that_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are still read, to name all that is wrong; and what was begun is not taken for the whole later."""
    from ftune.data import encoder as building

    seen: list[int] = []
    original = building.encode_rows

    def counted(rows: Any, *arguments: Any, **options: Any) -> Any:
        for one in original(rows, *arguments, **options):
            seen.append(1)
            yield one

    monkeypatch.setattr(building, "encode_rows", counted)
    write(tmp_path / "a.jsonl", [*good(2), BAD[0], *good(50), BAD[1]])
    cache = tmp_path / "cache"

    def made(policy: str) -> Dataset:
        data = Data(train="a.jsonl", on_bad_row=policy, max_dropped="10%")
        return build_data(
            data, tmp_path, Renderer(byte_tokenizer(), None), CausalLM(), max_length=99, seed=0, max_eval_rows=None,
            accepted=CausalLM().formats, guard=[], encoder_decoder=False, tick=lambda *_: None, cache=Cache(cache),
        )  # fmt: skip

    for _ in range(2):  # the second finds the rows in the cache
        with pytest.raises(DataError) as caught:
            made("error")
        assert [problem.row for problem in caught.value.problems] == [3, 54]
    assert len(seen) == 2
    assert len(made("skip").train.examples) == 52
    assert len(seen) == 2 + 52
    assert [path.name for path in cache.rglob(".tmp-*")] == []


def test_bad_rows_are_skipped_as_far_as_allowed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*BAD, *good(97)])
    with pytest.raises(DataError) as caught:
        build(tmp_path, on_bad_row="skip")
    assert str(caught.value).splitlines()[0] == (
        "data.train: 3 of 100 rows would be dropped (3 bad_row), more than data.max_dropped allows (1%). "
        "Look at these rows, choose another data.overlong, or raise data.max_dropped."
    )
    assert f"dropped (bad_row): {tmp_path}/a.jsonl:2 completion: is empty." in str(caught.value).splitlines()
    report = build(tmp_path, on_bad_row="skip", max_dropped="3%", eval="10%").train.report
    assert report.dropped == {"bad_row": 3}
    assert report.rows == report.kept + 3
    assert sum(note.startswith("dropped (bad_row): ") for note in report.notes) == 4  # one row has two problems
    with pytest.raises(DataError, match="2 of 100|3 of 100"):
        build(tmp_path, on_bad_row="skip", max_dropped="2.9%", eval="10%")


def test_rows_that_cannot_be_rendered_are_bad_rows(tmp_path: Path) -> None:
    chats: list[Any] = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"}]}
                        for i in range(9)]  # fmt: skip
    chats.insert(4, {"messages": [{"role": "system", "content": "s"}, *chats[0]["messages"]]})
    write(tmp_path / "a.jsonl", chats)
    options: dict[str, Any] = {"tokenizer": byte_tokenizer(template=FAMILIES["gemma"].template)}
    with pytest.raises(DataError, match="a.jsonl:5: the chat template refuses the roles system, user, assistant"):
        build(tmp_path, **options)
    report = build(tmp_path, **options, on_bad_row="skip", max_dropped="10%").train.report
    assert (report.rows, report.kept, report.dropped) == (10, 9, {"bad_row": 1})
    with pytest.raises(DataError, match="1 of 10 rows would be dropped"):
        build(tmp_path, **options, on_bad_row="skip", max_dropped="9%")


def test_rows_that_are_too_long_are_no_bad_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*good(99), {"prompt": "p", "completion": "x" * 99}])
    with pytest.raises(DataError, match="a.jsonl:100: has 101 tokens, more than max_length 20"):
        build(tmp_path, max_length=20, on_bad_row="skip", max_dropped="100%")


def test_exact_repetitions_are_no_loss(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*good(20), *good(20)])
    report = build(tmp_path, eval="10%").train.report
    assert report.dropped == {"duplicate": 20} and report.lost == 0


def test_losses_of_a_held_out_share_count_with_those_of_train(tmp_path: Path) -> None:
    rows = good(200)
    for i in (3, 77):
        rows[i]["completion"] *= 50
    write(tmp_path / "a.jsonl", rows)
    built = build(tmp_path, eval="2%", overlong="drop", max_length=40)  # 2 of 200, though 4 rows are held out
    assert built.eval is not None
    reports = (built.train.report, built.eval.report)
    assert sum(report.rows for report in reports) == 200
    assert sum(report.dropped.get("overlong", 0) for report in reports) == 2
    assert all(report.rows == report.kept + sum(report.dropped.values()) for report in reports)


def test_only_bad_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError, match=r"^data\.train: every row is bad\."):
        build(tmp_path, on_bad_row="skip", max_dropped="100%")


def test_a_thousand_problems_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["nonsense"] * 1500)
    with pytest.raises(DataError) as caught:
        read_samples(Data(train="a.jsonl"), tmp_path, accepted=CausalLM().formats, seed=0, max_eval_rows=None,
                     tick=lambda *_: None)  # fmt: skip
    assert str(caught.value).endswith("... and 1480 more, 1500 in all.")
    assert len(caught.value.problems) == 1000


def test_the_summary_has_shares_and_labels(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        [*good(8), {"prompt": "p" * 90, "completion": "c"}, {"prompt": "p", "completion": "c" * 60}],
    )
    found = data_summary(build(tmp_path, overlong="truncate", max_length=32, max_dropped="10%").train)
    assert (found["rows"], found["kept"], found["dropped"], found["zero_targets"]) == (10, 9, {"no_targets": 1}, 1)
    assert found["truncated_share"] == 1 / 9
    assert json.loads(json.dumps(found)) == found
    write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 3 == 0]} for i in range(9)])
    labelled = build(tmp_path, SequenceClassification())
    assert labelled.label_counts == {"a": 6, "b": 3}


def test_a_long_document_is_trained_on_once(tmp_path: Path) -> None:
    text = "".join(chr(32 + i * i % 95) for i in range(9_999))
    (tmp_path / "a.txt").write_text(text)
    tokenizer = byte_tokenizer(bos=True)
    built = build(tmp_path, tokenizer=tokenizer, train="a.txt", max_length=256)
    trained = Counter(int(i) for example in built.train.examples for i in example.ids[example.is_target])
    whole = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(whole) == 10_000
    assert trained == Counter(whole)
    assert max(len(example.ids) for example in built.train.examples) == 256


def test_part_of_a_large_eval_set_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} = ", "completion": str(i)} for i in range(30)]
    loaded = recipe(tmp_path, rows=rows, data={"eval": "50%"}, eval={"max_rows": 4, "every": 1})
    ready = prepare_data(loaded, lambda *_: None)
    assert ready.dataset.eval is not None
    assert ready.dataset.eval.report.notes == ["4 of 15 rows are scored (eval.max_rows)."]


def test_the_limit_of_scored_rows_holds_for_guard_sets_too_and_counts_documents(tmp_path: Path) -> None:
    """A document is one row, with all its windows; without data.eval, the limit is that of the guard sets."""
    rows = [{"prompt": f"{i} = ", "completion": str(i)} for i in range(9)]
    write(tmp_path / "g.jsonl", [{"text": f"{i} " * 150} for i in range(7)])
    loaded = recipe(
        tmp_path, rows=rows, eval={"max_rows": 3, "guard": ["g.jsonl"]}, data={"max_length": 64, "template": None}
    )
    dataset = prepare_data(loaded, lambda *_: None).dataset
    guard = dataset.guard["g"]
    assert (guard.report.rows, dataset.train.report.rows) == (3, 9)
    assert guard.report.notes == ["3 of 7 rows are scored (eval.max_rows)."]
    assert len(guard.examples) == 3 * 5  # 300 letters and an end, in windows of 63
    whole = recipe(tmp_path, rows=rows, eval={"max_rows": None, "guard": ["g.jsonl"]}, data={"max_length": 64})
    assert prepare_data(whole, lambda *_: None).dataset.guard["g"].report.notes == []


def test_check_names_what_is_skipped(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*good(3), *BAD])
    (tmp_path / "r.yaml").write_text("model: builtin:tiny-llama\ndata: {train: a.jsonl, on_bad_row: skip}\n")
    result = CliRunner().invoke(app, ["check", "r.yaml"])
    assert result.exit_code == 0
    assert any(
        line.startswith("data: 3 bad rows of train are skipped, the first: ") for line in result.stdout.splitlines()
    )
