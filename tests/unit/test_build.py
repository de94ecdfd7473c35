"""`data:` of a recipe becomes encoded splits whose reports reconcile, from files written here and from real sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import FAMILIES, byte_tokenizer

from ftune.data.build import Dataset, build_data
from ftune.data.render import Renderer
from ftune.data.samples import Samples, read_samples
from ftune.errors import DataError
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import Data, Source

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")


def quiet(what: str, done: int, total: int) -> None:
    """A tick that nobody hears."""


def read(folder: Path, *, max_eval_rows: int | None = None, seed: int = 0, **values: Any) -> Samples:
    return read_samples(
        Data(**values), folder, accepted=CausalLM().formats, seed=seed, max_eval_rows=max_eval_rows, tick=quiet
    )


def build(folder: Path, *, max_length: int = 1000, max_eval_rows: int | None = None, **values: Any) -> Dataset:
    data = Data(**values)
    renderer = Renderer(byte_tokenizer(), data.template)
    return build_data(
        data, folder, renderer, CausalLM(), max_length=max_length, seed=0, max_eval_rows=max_eval_rows,
        accepted=CausalLM().formats, guard=[], encoder_decoder=False, tick=quiet,
    )  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(*numbers: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} = ", "completion": str(2 * i)} for i in numbers]


# splits


def test_a_share_is_held_out_after_duplicates_are_gone(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*pairs(*range(80)), *pairs(*range(20))])
    found = read(tmp_path, train="a.jsonl", eval="10%")
    assert (len(found.train), len(found.eval), len(found.duplicates), found.leaks.exact) == (72, 8, 20, 0)
    assert len({sample.content for sample in [*found.train, *found.eval]}) == 80
    built = build(tmp_path, train="a.jsonl", eval="10%")
    report = built.train.report
    assert (report.rows, report.kept, report.dropped) == (92, 72, {"duplicate": 20})
    assert built.eval is not None
    assert (built.eval.report.rows, built.eval.report.kept) == (8, 8)
    assert built.test is None


def test_duplicates_are_kept_where_nothing_is_held_out(tmp_path: Path) -> None:
    """Repeating a row is a way to weigh it."""
    write(tmp_path / "a.jsonl", pairs(1, 1, 2))
    found = read(tmp_path, train="a.jsonl")
    assert [len(rows) for rows in (found.train, found.duplicates, found.eval, found.test)] == [3, 0, 0, 0]


def test_rows_of_eval_and_test_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pairs(*range(10)))
    write(tmp_path / "eval.jsonl", pairs(*range(8, 12)))
    write(tmp_path / "test.jsonl", pairs(0, 50))
    built = build(tmp_path, train="train.jsonl", eval="eval.jsonl", test="test.jsonl")
    assert built.train.report.notes == [
        "leakage: 2 of 4 rows of eval are also in train: 2 word for word, 0 nearly (similarity >= 0.8).",
        "leakage: 1 of 2 rows of test are also in train: 1 word for word, 0 nearly (similarity >= 0.8).",
        *(f"leakage: {tmp_path}/train.jsonl:{row} ~ {tmp_path}/{place} (word for word)"
          for row, place in [(1, "test.jsonl:1"), (9, "eval.jsonl:1"), (10, "eval.jsonl:2")]),
    ]  # fmt: skip
    assert built.eval is not None
    assert built.test is not None
    assert (len(built.eval.samples), len(built.test.samples)) == (4, 2)
    same = build(tmp_path, train="train.jsonl", eval="train.jsonl")
    assert same.train.report.notes[0] == (
        "leakage: 10 of 10 rows of eval are also in train: 10 word for word, 0 nearly (similarity >= 0.8)."
    )


def test_overlap_is_counted_over_all_of_eval_though_a_part_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(10)))
    found = read(tmp_path, train="a.jsonl", eval="a.jsonl", max_eval_rows=4)
    assert (found.leaks.exact, len(found.eval)) == (10, 4)
    again = read(tmp_path, train="a.jsonl", eval="a.jsonl", max_eval_rows=4)
    assert [sample.row.number for sample in again.eval] == [sample.row.number for sample in found.eval]


def test_columns_of_the_template_make_rows_different(tmp_path: Path) -> None:
    rows = [{"prompt": "Is it so?", "completion": "yes", "context": f"context {i}", "id": i} for i in range(10)]
    rows += [{"prompt": "Other?", "completion": "yes", "context": "context 0"}] * 2
    write(tmp_path / "a.jsonl", rows)
    with_context = read(tmp_path, train="a.jsonl", eval="50%", template="{{ context }}\n{{ prompt }}")
    assert len(with_context.duplicates) == 1
    assert len(read(tmp_path, train="a.jsonl", eval="50%").duplicates) == 10


def test_one_text_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(500))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    built = build(tmp_path, train="a.txt", eval="10%", max_length=64)
    assert built.eval is not None
    assert built.train.samples[0].text + built.eval.samples[0].text == text
    targets = built.train.report.targets + built.eval.report.targets
    assert targets == len(text)  # two first tokens are not predicted, two ends are
    assert sum(example.num_bytes for split in (built.train, built.eval) for example in split.examples) == len(text) - 2
    assert built.template == "no template: text as it is"


# sources


def test_sources_differ_in_format_and_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"q": "p", "a": "c"}])
    write(tmp_path / "b.jsonl", [{"instruction": "i", "output": "o"}])
    (tmp_path / "c.csv").write_text("prompt,completion\nx,y\n")
    (tmp_path / "d.json").write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}])
    )
    (tmp_path / "e.tsv").write_text("prompt\tq\tcompletion\np1\tp2\tc\n")
    sources = [
        Source(path="a.jsonl", columns={"prompt": "q", "completion": "a"}),
        "b.jsonl",
        "c.csv",
        "d.json",
        Source(path="e.tsv", format="prompt_completion", columns={"prompt": "q"}),
    ]
    found = read(tmp_path, train=sources)
    said = [[turn.content for turn in sample.turns] for sample in found.train]
    assert said == [["p", "c"], ["i", "o"], ["x", "y"], ["h", "g"], ["p2", "c"]]
    assert found.formats == ("prompt_completion", "instruction", "chat")


def test_a_glob_of_documents(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.md").write_text(f"# document {i}\n", encoding="utf-8")
    built = build(tmp_path, train="*.md", eval="20%")
    assert built.eval is not None
    assert (built.train.report.rows, built.eval.report.rows, built.formats) == (4, 1, ("text",))


def test_parquet_with_empty_cells(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"instruction": ["a", "b", "c"], "input": ["x", None, ""], "output": ["1", "2", "3"]}
    pq.write_table(pa.table({**table, "system": pa.array([None, "s", None], pa.string())}), tmp_path / "a.parquet")
    said = [[turn.content for turn in sample.turns] for sample in read(tmp_path, train="a.parquet").train]
    assert said == [["a\n\nx", "1"], ["s", "b", "2"], ["c", "3"]]
    empty = pa.array([float("nan")] * 3)  # a column of nothing but empty cells, as pandas writes it
    pq.write_table(pa.table({**table, "input": empty}), tmp_path / "b.parquet")
    assert [sample.turns[0].content for sample in read(tmp_path, train="b.parquet").train] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_column_that_no_row_has_is_no_empty_column(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}] * 2)
    (tmp_path / "a.csv").write_text("instruction,output\ni,o\n")
    with pytest.raises(DataError, match=rf"^{name}: no row has the columns that data\.columns names: contxt, hint\.$"):
        read(tmp_path, train=name, columns={"input": "contxt", "system": "hint"})
    write(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}, {"instruction": "i", "output": "o", "hint": "h"}])
    assert len(read(tmp_path, train="a.jsonl", columns={"system": "hint"}).train) == 2


def test_a_template_is_checked_before_any_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(1))
    with pytest.raises(DataError, match="data.template: is no valid Jinja"):
        read(tmp_path, train="a.jsonl", template="{{ prompt")


# what becomes of rows


def test_reports_reconcile_under_every_policy(tmp_path: Path) -> None:
    rows = pairs(*range(6), 0)
    rows[2]["prompt"] *= 20
    rows[4]["completion"] *= 100
    write(tmp_path / "a.jsonl", [*rows, *pairs(90, 91)])
    write(tmp_path / "eval.jsonl", pairs(90, 91))
    for overlong, dropped, truncated in (
        ("drop", {"overlong": 2}, 0),
        ("truncate", {"no_targets": 1}, 1),
    ):
        report = build(tmp_path, train="a.jsonl", eval="eval.jsonl", overlong=overlong, max_length=32,
                       max_dropped="30%").train.report  # fmt: skip
        assert (report.rows, report.dropped, report.truncated) == (9, dropped, truncated)
        assert report.rows == report.kept + sum(report.dropped.values())
    report = build(
        tmp_path, train="a.jsonl", eval="30%", overlong="drop", max_length=32, max_dropped="30%"
    ).train.report
    assert report.dropped["duplicate"] == 1
    assert report.rows == report.kept + sum(report.dropped.values())


def test_rows_of_all_splits_that_do_not_fit_are_told_together(tmp_path: Path) -> None:
    for name in ("train", "eval", "test"):
        write(tmp_path / f"{name}.jsonl", [*pairs(1), {"prompt": "p", "completion": "c" * 50}])
    with pytest.raises(DataError) as caught:
        build(tmp_path, train="train.jsonl", eval="eval.jsonl", test="test.jsonl", max_length=32)
    assert [Path(problem.file).name for problem in caught.value.problems] == [
        "train.jsonl", "eval.jsonl", "test.jsonl",
    ]  # fmt: skip
    assert all(problem.row == 2 for problem in caught.value.problems)


@pytest.mark.parametrize(("overlong", "reason"), [("drop", "overlong"), ("truncate", "no_targets")])
def test_nothing_left_to_learn_is_an_error(tmp_path: Path, overlong: str, reason: str) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "p" * 50, "completion": "c"}] * 3)
    with pytest.raises(DataError) as caught:
        build(tmp_path, train="a.jsonl", overlong=overlong, max_length=32)
    assert str(caught.value).splitlines() == [
        f"data.train: no row is left to learn from (3 {reason}). See data.overlong.",
        *(f"dropped ({reason}): {tmp_path / 'a.jsonl'}:{row}" for row in (1, 2, 3)),
    ]


def test_a_fingerprint_is_of_tokens_and_masks_in_order(tmp_path: Path) -> None:
    def fingerprint(rows: list[dict[str, Any]], **values: Any) -> str:
        write(tmp_path / "a.jsonl", rows)
        return build(tmp_path, train="a.jsonl", **values).train.fingerprint

    first = fingerprint(pairs(1, 2))
    others = [
        fingerprint(pairs(2, 1)),
        fingerprint(pairs(1)),
        fingerprint(pairs(1, 2), train_on="all"),
        fingerprint(pairs(1, 2), template="{{ prompt }}"),
        fingerprint([*pairs(1), {"prompt": "2 + 2 = 4", "completion": "!"}]),
        fingerprint(pairs(1, 2), template=FAMILIES["chatml"].template),
    ]
    assert fingerprint([{**row, "id": i} for i, row in enumerate(pairs(1, 2))]) == first == others.pop(3)
    assert len({first, *others}) == 1 + len(others)


def test_progress_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(*range(2500)))
    told: list[tuple[str, int, int]] = []
    data = Data(train="a.jsonl", eval="10%")
    build_data(
        data, tmp_path, Renderer(byte_tokenizer(), None), CausalLM(), max_length=99, seed=0, max_eval_rows=None,
        accepted=CausalLM().formats, guard=[], encoder_decoder=False,
        tick=lambda *what: told.append(what),
    )  # fmt: skip
    assert [entry for entry in told if entry[0] == "reading a.jsonl"] == [
        ("reading a.jsonl", done, 0) for done in (0, 1000, 2000)
    ]
    assert ("tokenising train", 2500, 2500) in told  # a source is encoded as a whole, whatever is held out


# real sets


@needs_real
def test_gsm8k() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    found = read(REAL, train="gsm8k/train.jsonl", test="gsm8k/test.jsonl", columns=columns)
    assert (len(found.train), len(found.test), found.leaks.exact) == (7473, 1319, 0)
    assert found.formats == ("prompt_completion",)
    assert found.train[0].turns[0].content.startswith("Natalia sold clips to 48")
    assert all("#### " in sample.turns[-1].content for sample in [*found.train, *found.test])
    with pytest.raises(DataError, match="no format fits the columns answer, question"):
        read(REAL, train="gsm8k/train.jsonl")


@needs_real
@pytest.mark.parametrize(
    ("split", "first", "rows"), [("[:400]", 1, 400), ("train[10%:11%]", 748, 75), ("[99%:]", 7399, 75)]
)
def test_ranges_of_gsm8k(split: str, first: int, rows: int) -> None:
    source = Source(path="gsm8k/train.jsonl", split=split)
    found = read(REAL, train=source, columns={"prompt": "question", "completion": "answer"})
    assert (len(found.train), found.train[0].row.number) == (rows, first)


@needs_real
def test_glaive_toolcall() -> None:
    built = build(REAL, train="glaive_toolcall/*.json", template=FAMILIES["chatml"].template, max_length=20_000)
    assert (built.train.report.rows, built.train.report.kept, built.formats) == (300, 300, ("chat",))
    tokenizer = byte_tokenizer()
    for sample, example in zip(built.train.samples[:50], built.train.examples, strict=False):
        answers = [turn.content for turn in sample.turns if turn.role == "assistant"]
        assert tokenizer.decode(example.ids[example.is_target]) == "".join(f"{answer}<|im_end|>" for answer in answers)
    assert {turn.role for sample in built.train.samples for turn in sample.turns} == {"user", "assistant", "tool"}


@needs_real
def test_tiny_shakespeare() -> None:
    path = REAL / "tiny_shakespeare" / "input.txt"
    built = build(REAL, train=str(path), eval="10%", max_length=256)
    text = path.read_text(encoding="utf-8")
    assert built.eval is not None
    assert built.train.samples[0].text + built.eval.samples[0].text == text
    assert len(built.eval.samples[0].text) == pytest.approx(0.1 * len(text), rel=0.01)
    assert built.train.report.targets + built.eval.report.targets == len(text.encode())
    assert built.train.report.longest == 256


@needs_real
def test_legal_site_policy() -> None:
    found = read(REAL, train="legal_site_policy/*.md", eval="10%")
    assert (len(found.train) + len(found.eval), found.formats) == (57, ("text",))


@needs_real
def test_banking77_as_pairs() -> None:
    columns = {"prompt": "text", "completion": "category"}
    found = read(
        REAL, train="banking77/train.csv", test="banking77/test.csv", columns=columns, format="prompt_completion"
    )
    assert (len(found.train), len(found.test), found.leaks.exact) == (10_003, 3_080, 0)
    assert [turn.content for turn in found.train[0].turns] == ["I am still waiting on my card?", "card_arrival"]
    assert len({sample.turns[-1].content for sample in found.train}) == 77


@needs_real
def test_instructions_of_real_people_need_their_instances_unfolded() -> None:
    """A shape that no format covers is refused by name, not half read."""
    with pytest.raises(DataError, match="no format fits the columns id, instances, instruction"):
        read(REAL, train="self_instruct/*seed*.jsonl")
