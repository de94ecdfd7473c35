"""Files and hubs become rows: nothing altered, every row with its physical place, every problem told at once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftune.data.read import Row, fingerprint, locate, read_file, read_source
from ftune.errors import DataError, MachineError, RowProblem
from ftune.recipe import Source

AWKWARD = [
    "{x} {{y}} {% if %} %s %(a)d \\n",
    "  leading and trailing \t ",
    "emoji 🙂 and ünïcödé 漢字",
    "quotes \" and ' and ,;\t",
    "two\nlines",
    "None",
    "nan",
    "\x00 and \u2028",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def rows_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return [(row.number, row.values) for row in good(read_file(path))]


def good(items: Iterator[Row | RowProblem]) -> Iterator[Row]:
    for item in items:
        assert isinstance(item, Row), item
        yield item


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def problems_of(path: Path) -> list[str]:
    return [str(item).replace(str(path), "F") for item in read_file(path) if isinstance(item, RowProblem)]


# formats


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
def test_a_document_is_one_row(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, "\ufeff# one\r\n  two\n\nthree \n")
    assert rows_of(path) == [(1, {"text": "# one\n  two\n\nthree \n"})]


def test_lines_keep_their_physical_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '\ufeff{"a": "1"}\r\n\r\n   \n\t{"a": "2"}  \n\n{"a": "3"}')
    assert rows_of(path) == [(1, {"a": "1"}), (4, {"a": "2"}), (6, {"a": "3"})]


def test_json_rows_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '\ufeff[{"a": 1},\r\n\r\n{"a": [null, {"b": 1.5}]}]')
    assert rows_of(path) == [(1, {"a": 1}), (2, {"a": [None, {"b": 1.5}]})]


def test_a_table_keeps_its_fields_and_names_rows_by_their_first_line(tmp_path: Path) -> None:
    text = '\ufeff\r\na,b\r\n"x, ""y""\r\nz",  1 \r\n\r\n,2\r\n"'
    path = written(tmp_path, "a.csv", text + 'q\n",3')
    assert rows_of(path) == [
        (3, {"a": 'x, "y"\r\nz', "b": "  1 "}),
        (6, {"a": "", "b": "2"}),
        (7, {"a": "q\n", "b": "3"}),
    ]


def test_quotes_in_a_tsv_are_letters(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", 'a\tb\n"say\t"hi" there\n')
    assert rows_of(path) == [(2, {"a": '"say', "b": '"hi" there'})]


def test_a_field_of_a_table_may_be_a_whole_document(tmp_path: Path) -> None:
    """The csv module refuses fields above 128 KiB unless told otherwise."""
    document = "word " * 60_000
    assert rows_of(written(tmp_path, "a.csv", f"text,id\n{document},1\n")) == [(2, {"text": document, "id": "1"})]


def test_parquet_has_values_and_nulls(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": None}]
    path = tmp_path / "a.parquet"
    table = pa.table({"a": ["x", None, "z"] * 700, "messages": [chat, None, []] * 700})
    pq.write_table(table, path, row_group_size=500)
    rows = rows_of(path)
    assert rows[:3] == [(1, {"a": "x", "messages": chat}), (2, {"a": None, "messages": None}),
                        (3, {"a": "z", "messages": []})]  # fmt: skip
    assert [number for number, _ in rows] == list(range(1, 2101))
    assert all(values == table.slice(n - 1, 1).to_pylist()[0] for n, values in rows[::97])


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_awkward_words_survive(tmp_path: Path, ending: str) -> None:
    check_round_trip(tmp_path / f"a.{ending}", [{"a": text, "b": text[::-1]} for text in AWKWARD])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"a": ANY_TEXT, "b": ANY_TEXT}), min_size=1, max_size=5), st.sampled_from("jlcp"))
def test_any_text_survives(tmp_path: Path, rows: list[dict[str, str]], which: str) -> None:
    ending = {"j": "json", "l": "jsonl", "c": "csv", "p": "parquet"}[which]
    check_round_trip(tmp_path / f"a.{ending}", rows)


def check_round_trip(path: Path, rows: list[dict[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["a", "b"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(buffer.getvalue().encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=len(row["a"]) % 2 == 0) for row in rows]
        path.write_bytes("\n".join(lines).encode())
    assert [values for _, values in rows_of(path)] == rows


# what is refused; the files of tests/data/bad_data are the other half of this


def test_good_and_bad_lines_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\nbad\n{"a": 2}\n[]\n')
    assert [(item.row if isinstance(item, RowProblem) else item.number) for item in read_file(path)] == [1, 2, 3, 4]
    assert [type(item) for item in read_file(path)] == [Row, RowProblem, Row, RowProblem]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_without_end_is_refused(tmp_path: Path, opening: str) -> None:
    message = "F:1: is not valid JSON: nested too deeply."
    assert problems_of(written(tmp_path, "a.json", opening * 100_000)) == [message]
    assert problems_of(written(tmp_path, "a.json", f"[{{}}, {opening * 100_000}")) == [message.replace(":1:", ":2:")]
    lines = problems_of(written(tmp_path, "a.jsonl", "{}\n" + opening * 100_000))
    assert lines == [message.replace(":1:", ":2:") + " Expected one object a line."]


def test_a_number_of_too_many_digits_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[{"a": 1}, {"a": ' + "9" * 5000 + "}]")
    (problem,) = problems_of(path)
    assert problem.startswith("F:2: is not valid JSON: ")


def test_a_repeated_key_among_many_is_found_quickly(tmp_path: Path) -> None:
    keys = ", ".join(f'"k{i}": 0' for i in range(30_000))
    path = written(tmp_path, "a.jsonl", "{" + keys + ', "k29999": 1}')
    assert problems_of(path) == ["F:1: is not valid JSON: key 'k29999' is repeated. Expected one object a line."]


def test_a_date_beyond_python_is_a_problem_of_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"when": pa.array([0, 2**60, 1], pa.timestamp("ms"))}), path)
    (problem,) = problems_of(path)
    assert problem.startswith("F:2: holds a value that cannot be read: ")


def test_damage_in_the_middle_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [f"text {i}" for i in range(5000)]}), path, compression="gzip")
    raw = bytearray(path.read_bytes())
    raw[200:20_000] = bytes(19_800)
    path.write_bytes(bytes(raw))
    (problem,) = problems_of(path)
    assert problem.startswith("F:1: is not readable parquet: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, name, "{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError) as caught:
        list(read_file(path))
    assert str(caught.value) == f"{path}: cannot be read: Permission denied."


# which files


def test_paths_start_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = written(tmp_path, "a.jsonl", "{}")
    assert locate(Source(path="../a.jsonl"), tmp_path / "sub") == [tmp_path / "sub" / "../a.jsonl"]
    assert locate(Source(path=str(path)), tmp_path / "elsewhere") == [path]


def test_globs_are_sorted_and_hold_files_only(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        written(tmp_path, name, name)
    (tmp_path / "folder.txt").mkdir()
    written(tmp_path / "folder.txt", "d.txt", "d")
    names = {"*.txt": ["a.txt", "b.txt"], "[bc].*": ["b.txt", "c.md"], "?.md": ["c.md"], "**/d.txt": ["d.txt"]}
    for pattern, found in names.items():
        for source in (pattern, f"../{tmp_path.name}/{pattern}", str(tmp_path / pattern)):
            assert [path.name for path in locate(Source(path=source), tmp_path) or []] == found
    assert [row.values["text"] for row in good(read_source(Source(path="?.*"), tmp_path))] == ["a.txt", "b.txt", "c.md"]


def test_marks_in_names_that_are_there_are_letters(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    folder.mkdir()
    path = written(folder, "data[2].jsonl", "{}")
    assert locate(Source(path="data[2].jsonl"), folder) == [path]
    assert locate(Source(path="*.jsonl"), folder) == [path]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rows.json", "rows.json: no such file. Did you mean 'rows.jsonl'?"),
        ("other.csv", "other.csv: no such file. Relative paths start from the recipe's folder."),
        ("./other", "other: no such file. Relative paths start from the recipe's folder."),
        ("a/b/c", "a/b/c: no such file. Relative paths start from the recipe's folder."),
        ("*.csv", "*.csv: no file matches this pattern. Relative paths start from the recipe's folder."),
        ("**.csv", "**.csv: is no valid pattern: Invalid pattern: '**' can only be an entire path component."),
        ("folder", "folder: is a folder. Name its files with a glob such as 'folder/*.jsonl'."),
        ("rows.xlsx", "rows.xlsx: unknown ending '.xlsx'. Expected one of: "
                      ".txt, .md, .jsonl, .json, .csv, .tsv, .parquet, .arrow, .feather, .conll, .bio, "
                      "each also with .gz or .zst. "
                      "Or say what it holds: {path: rows.xlsx, file_format: csv}."),
        ("rows.[xj]*", "rows.xlsx: unknown ending '.xlsx'. Expected one of: "
                       ".txt, .md, .jsonl, .json, .csv, .tsv, .parquet, .arrow, .feather, .conll, .bio, "
                      "each also with .gz or .zst. "
                      "Or say what it holds: {path: rows.xlsx, file_format: csv}."),
        ("x" * 300 + ".json", "x" * 300 + ".json: cannot be looked at: File name too long."),
    ],
)  # fmt: skip
def test_what_is_no_file(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("rows.jsonl", "rows.xlsx"):
        written(tmp_path, name, "{}")
    with pytest.raises(DataError) as caught:
        locate(Source(path=path), tmp_path)
    assert str(caught.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize("path", ["openai/gsm8k", "imdb", "user/set.v2"])
def test_anything_else_is_a_hub_id(tmp_path: Path, path: str) -> None:
    assert locate(Source(path=path), tmp_path) is None


def test_a_fingerprint_is_of_every_byte(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "x" * 3_000_000)
    before = fingerprint([path])
    assert list(before) == [str(path)]
    written(tmp_path, "a.txt", "x" * 2_999_999 + "y")
    assert fingerprint([path]) != before


# ranges


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", range(1, 11)),
        ("train[:4]", range(1, 5)),
        ("[:400]", range(1, 11)),
        ("[7:]", range(8, 11)),
        ("[2:5]", range(3, 6)),
        ("[10%:30%]", range(2, 4)),
        ("[95%:]", range(10, 11)),
        ("[:50%]", range(1, 6)),
    ],
)
def test_ranges_of_rows(tmp_path: Path, split: str, numbers: range) -> None:
    path = written(tmp_path, "a.jsonl", "".join(f'{{"i": {i}}}\n' for i in range(1, 11)))
    rows = list(good(read_source(Source(path=path.name, split=split), tmp_path)))
    assert [row.number for row in rows] == [row.values["i"] for row in rows] == list(numbers)


def test_a_range_runs_over_all_files_of_a_glob(tmp_path: Path) -> None:
    for name in "abc":
        written(tmp_path, f"{name}.jsonl", f'{{"i": "{name}1"}}\n{{"i": "{name}2"}}\n')
    rows = good(read_source(Source(path="*.jsonl", split="[1:5]"), tmp_path))
    assert [row.values["i"] for row in rows] == ["a2", "b1", "b2", "c1"]


@pytest.mark.parametrize("split", ["[10:]", "[20:30]", "[:5%]", "train[10:20]"])
def test_a_range_without_rows_is_refused(tmp_path: Path, split: str) -> None:
    written(tmp_path, "a.jsonl", '{"i": 1}\n' * 10)
    with pytest.raises(DataError) as caught:
        list(read_source(Source(path="a.jsonl", split=split), tmp_path))
    assert str(caught.value) == f"a.jsonl: the range '{split}' holds none of its 10 rows."


def test_a_problem_outside_the_range_is_told_all_the_same(tmp_path: Path) -> None:
    """Whether a percentage is right depends on it."""
    written(tmp_path, "a.jsonl", '{"i": 1}\n{"i": 2}\nbad\n')
    items = list(read_source(Source(path="a.jsonl", split="[:1]"), tmp_path))
    assert [item.row for item in items if isinstance(item, RowProblem)] == [3]
    assert [item.number for item in items if isinstance(item, Row)] == [1]


# the hub


def test_rows_of_a_hub_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked: list[Any] = []

    def load(path: str, name: str | None, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list([{"q": f"q{i}", "n": None} for i in range(10)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(path="user/set", split="test[20%:4]", subset="main", revision="abc")
    rows = list(read_source(source, tmp_path))
    assert rows == [Row("user/set[test]", 3, {"q": "q2", "n": None}), Row("user/set[test]", 4, {"q": "q3", "n": None})]
    assert len(list(read_source(Source(path="user/set", split="[:2]"), tmp_path))) == 2
    assert asked == [("user/set", "main", "test", "abc"), ("user/set", None, "train", None)]
    with pytest.raises(DataError, match=r"user/set: the range '\[10:\]' holds none of its 10 rows"):
        list(read_source(Source(path="user/set", split="[10:]"), tmp_path))


def test_hub_sets_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    from datasets import exceptions

    faults = {
        ConnectionError("offline\nand more"): (MachineError, "cannot be had from the hub: offline. Check the name"),
        ConnectionError(): (MachineError, "cannot be had from the hub: ConnectionError. "),
        exceptions.DatasetNotFoundError("no such set"): (MachineError, "from the hub: no such set. "),
        ValueError('Unknown split "tset".'): (DataError, "'user/set': Unknown split \"tset\"."),
        RuntimeError("Dataset scripts are no longer supported"): (DataError, "scripts are no longer supported."),
        exceptions.DatasetGenerationError("bad files"): (DataError, "'user/set': bad files."),
    }
    for fault, (kind, message) in faults.items():

        def load(*arguments: Any, fault: Exception = fault, **options: Any) -> Any:
            raise fault

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(kind) as caught:
            list(read_source(Source(path="user/set"), tmp_path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_labels_of_a_hub_set_have_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As numbers they would be other labels than those of a file with names, and the model would know no names."""
    import datasets

    kinds = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kinds, "tags": datasets.List(kinds)})
    values = [{"text": "a", "label": 1, "tags": [0, 1]}, {"text": "b", "label": -1, "tags": []}]
    table = datasets.Dataset.from_list(values, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    rows = [row.values for row in good(read_source(Source(path="user/set"), tmp_path))]
    assert rows == [
        {"text": "a", "label": "pos", "tags": ["neg", "pos"]}, {"text": "b", "label": None, "tags": []},
    ]  # fmt: skip


def test_a_hub_set_with_several_subsets_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample: x"
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError) as caught:
        list(read_source(Source(path="user/set"), tmp_path))
    expected = "data set 'user/set': has several subsets. Choose one with subset: ['main', 'socratic']."
    assert str(caught.value) == expected
