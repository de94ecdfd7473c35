"""Sources of every shape: compressed files, odd tables, keyed JSON, constants, ranges; and what a block may not say."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ftune.data.read import Row, files_of, read_source, uses_hub
from ftune.data.samples import read_samples
from ftune.errors import DataError, RecipeError, RowProblem
from ftune.load import load_recipe
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import Data, Source


def read(folder: Path, path: str, **keys: Any) -> list[tuple[int, Any]]:
    """Number and values of each row; number and message of each problem."""
    items = read_source(Source(path=path, **keys), folder)
    return [(item.number, item.values) if isinstance(item, Row) else (item.row, item.message) for item in items]


def zst(raw: bytes) -> bytes:
    import pyarrow

    found: bytes = pyarrow.compress(raw, codec="zstd", asbytes=True)
    return found


def table() -> Any:
    import pyarrow

    return pyarrow.table({"a": [f"word {i}" for i in range(3000)], "n": range(3000)})


def columnar(path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    if kind == "feather":
        pyarrow.feather.write_feather(table(), str(path))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table(), path)
    else:
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with make(str(path), table().schema) as writer:
            writer.write_table(table(), max_chunksize=700)


TEXTS = {
    "a.jsonl": ('{"a": "1"}\n\n{"a": "é"}', [(1, {"a": "1"}), (3, {"a": "é"})]),
    "a.json": ('[{"a": "1"}, {"a": "é"}]', [(1, {"a": "1"}), (2, {"a": "é"})]),
    "a.csv": ('a\n"x\ny"\né\n', [(2, {"a": "x\ny"}), (4, {"a": "é"})]),
    "a.tsv": ('a\tb\n"x\té\n', [(2, {"a": '"x', "b": "é"})]),
    "a.txt": ("one\ntwo é\n", [(1, {"text": "one\ntwo é\n"})]),
    "a.md": ("# one", [(1, {"text": "# one"})]),
    "a.conll": ("In O\nÅ B-x\n\nwe O\n",
                [(1, {"tokens": ["In", "Å"], "tags": ["O", "B-x"]}), (4, {"tokens": ["we"], "tags": ["O"]})]),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".GZ"])
def test_a_compressed_file_has_the_rows_of_the_plain_one(tmp_path: Path, name: str, ending: str) -> None:
    text, expected = TEXTS[name]
    change = {"": bytes, ".gz": gzip.compress, ".GZ": gzip.compress, ".zst": zst}[ending]
    (tmp_path / f"{name}{ending}").write_bytes(change(text.encode("utf-8")))
    assert read(tmp_path, f"{name}{ending}") == expected


@pytest.mark.parametrize("kind", ["parquet", "file", "stream", "feather"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_columnar_files(tmp_path: Path, kind: str, ending: str) -> None:
    name = f"a.{kind if kind in ('parquet', 'feather') else 'arrow'}"
    columnar(tmp_path / name, kind)
    change = {"": bytes, ".gz": gzip.compress, ".zst": zst}[ending]
    (tmp_path / f"{name}{ending}").write_bytes(change((tmp_path / name).read_bytes()))
    assert read(tmp_path, f"{name}{ending}") == list(enumerate(table().to_pylist(), start=1))


def test_a_glob_may_match_files_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"a": "2"}'))
    (tmp_path / "c.jsonl.zst").write_bytes(zst(b'{"a": "3"}'))
    assert [values["a"] for _, values in read(tmp_path, "*")] == ["1", "2", "3"]


def test_a_file_of_several_gzip_parts_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert read(tmp_path, "a.jsonl.gz") == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(("name", "codec"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zst)])
def test_rows_before_a_damage_are_given_and_nothing_after_it(tmp_path: Path, name: str, codec: Any) -> None:
    whole = codec(b"".join(b'{"a": %d}\n' % i for i in range(50_000)))
    (tmp_path / name).write_bytes(whole[: len(whole) - 5])
    items = list(read_source(Source(path=name), tmp_path))
    problem = items[-1]
    assert isinstance(problem, RowProblem) and problem.ends
    assert "is cut off here: nothing from this line on can be decompressed" in problem.message
    assert problem.row == len(items) and all(isinstance(item, Row) for item in items[:-1])
    assert len(items) > 40_000
    (tmp_path / name).write_bytes(whole + b"garbage")
    assert [item for item in read(tmp_path, name) if isinstance(item[1], str)][0][0] == 50_001


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conll", "a.log", "a.jsonl.gz", "a.csv.zst"])
def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    """1 MB of rows in less than half of that; a range reads on without keeping anything."""
    line = {"jsonl": '{"a": "%s"}', "csv": '"%s",x', "tsv": "%s\tx", "conll": "%s O\n"}.get(name.split(".")[1], "%s")
    raw = "".join(line % f"{i:0100d}" + "\n" for i in range(10_000)).encode()
    change = {"gz": gzip.compress, "zst": zst}.get(name.rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(change(raw))
    del raw
    keys: dict[str, Any] = {"file_format": "lines"} if name == "a.log" else {}
    keys |= {"header": ["a", "b"]} if "csv" in name or "tsv" in name else {}
    assert sum(1 for _ in read_source(Source(path=name, **keys), tmp_path)) == 10_000  # what is imported is not counted
    tracemalloc.start()
    count = sum(1 for _ in read_source(Source(path=name, split="[10:9999]", **keys), tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 9_989 and peak < 500_000


# odd shapes


def test_a_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('ham\t"quoted" text\nspam\tb\n')
    rows = read(tmp_path, "a.tsv", header=["label", "text"])
    assert rows == [(1, {"label": "ham", "text": '"quoted" text'}), (2, {"label": "spam", "text": "b"})]
    (problem, _) = read(tmp_path, "a.tsv", header=["label"])
    assert problem == (1, "expected 1 fields (label), received 2.")


def test_quotes_may_be_letters_in_a_csv_and_enclose_fields_in_a_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"x,y"\n')
    assert read(tmp_path, "a.csv", quoting=False) == [(2, {"a": '"x', "b": 'y"'})]
    (tmp_path / "a.tsv").write_text('a\tb\n"x\ty"\tz\n')
    assert read(tmp_path, "a.tsv", quoting=True) == [(2, {"a": "x\ty", "b": "z"})]


def test_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "rt.pos").write_bytes("\ufeff one \r\n\n \ntwo\u2028still two\n".encode())
    found = read(tmp_path, "rt.pos", file_format="lines", values={"label": "positive"})
    assert found == [
        (1, {"text": " one ", "label": "positive"}),
        (4, {"text": "two\u2028still two", "label": "positive"}),
    ]


def test_the_recipe_may_say_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text('{"a": 1}\n')
    assert read(tmp_path, "rows.txt", file_format="jsonl") == [(1, {"a": 1})]
    (tmp_path / "rows").write_text("a;b\n")
    assert read(tmp_path, "rows", file_format="csv", header=["a"]) == [(1, {"a": "a;b"})]
    (tmp_path / "rows.gz").write_bytes(gzip.compress(b"a\n1\n"))
    assert read(tmp_path, "rows.gz", file_format="csv") == [(2, {"a": "1"})]
    with pytest.raises(DataError, match=r"rows.gz: unknown ending ''. Expected one of: .txt, .* file_format: csv"):
        read(tmp_path, "rows.gz")


def test_a_constant_does_not_hide_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    found = read(tmp_path, "a.csv", values={"label": "y"})
    assert found == [(2, "is a column of the row and a constant in values. Leave one out.")]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"7": {"q": 1}, "9": {"q": 2}}', [(1, {"key": "7", "q": 1}), (2, {"key": "9", "q": 2})]),
        ('{"7": {"key": "own"}}', [(1, {"key": "own"})]),
        ('{"data": [{"q": 1}, {"q": 2}]}', [(1, {"q": 1}), (2, {"q": 2})]),
        ('{"version": "1", "info": {"by": "me"}, "data": [{"q": 1}]}', [(1, {"q": 1})]),
        ('{"data": [{"q": 1}, 5]}', [(1, {"q": 1}), (2, "expected an object, received a number.")]),
        ('{"7": {"q": 1}, "9": 5, "11": {}}', [(1, {"key": "7", "q": 1}), (2, "expected an object, received a number."),
                                               (3, {"key": "11"})]),
        ('{"7": {"q": 1}, "9": {"q": 1, "q": 2}}', [(2, "is not valid JSON: key 'q' is repeated.")]),
        ('{"7": {"q": 1}, "7": {"q": 2}}', [(2, "is not valid JSON: key '7' is repeated.")]),
        ('{"v": 1, "data": [{"q": 1}, {}, {"q": NaN}]}', [(3, "is not valid JSON: NaN is no JSON value.")]),
    ],
)  # fmt: skip
def test_objects_of_objects_and_lists_within(tmp_path: Path, text: str, rows: list[Any]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read(tmp_path, "a.json") == rows


@pytest.mark.parametrize(
    "text", ['{"train": [{"q": 1}], "test": [{"q": 2}]}', '{"q": "one row", "a": "b"}', '{"q": [1, 2]}', "{}", "5"]
)
def test_what_json_may_not_be_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    ((row, message),) = read(tmp_path, "a.json")
    assert row == 1
    assert message.startswith("expected a list of objects, an object of objects, or an object with one list of objects")


def test_a_sentence_with_a_fault_is_no_row(tmp_path: Path) -> None:
    """Else it would be trained without the word, where bad rows are skipped."""
    (tmp_path / "a.conll").write_text("a O\nalone\nb O\n\nc O\n")
    found = read(tmp_path, "a.conll")
    assert found == [(2, "expected a word and a tag, received 'alone'."), (5, {"tokens": ["c"], "tags": ["O"]})]


def test_after_a_faulty_row_a_table_goes_on_unless_lines_were_swallowed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"x" y,1\n2,3\n"x\ny" z,1\n4,5\n')
    items = list(read_source(Source(path="a.csv"), tmp_path))
    assert [getattr(item, "row", None) or getattr(item, "number", None) for item in items] == [2, 3, 4]
    bad, _, last = items
    assert isinstance(bad, RowProblem) and not bad.ends
    assert isinstance(last, RowProblem) and last.ends
    assert "takes in all lines up to 5" in last.message


def test_files_and_hub_sets_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    assert uses_hub([Source(path="a.jsonl.gz"), Source(path="org/set")], tmp_path)
    assert not uses_hub([Source(path="a.jsonl.gz")], tmp_path)
    for path, keys in (("rows.zst", {}), ("rows", {"file_format": "csv"}), ("org/set", {"loader": "m:f"})):
        with pytest.raises(DataError, match="no such file"):
            uses_hub([Source(path=path, **keys)], tmp_path)
    assert files_of(Source(path="org/set"), tmp_path) == []


# what a recipe may say


def problems(folder: Path, data: dict[str, Any], **sections: Any) -> list[str]:
    values = {"model": "builtin:tiny-llama", "data": data, **sections}
    (folder / "r.yaml").write_text(json.dumps(values), encoding="utf-8")
    try:
        load_recipe(folder / "r.yaml")
    except RecipeError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"path": "a.csv", "split": "test"}, "data.train.split: a file has no split 'test'. Name the file"),
        ({"path": "data/*", "split": "test[:4]"}, "data.train.split: a file has no split 'test'."),
        ({"path": "a.csv", "subset": "main"}, "data.train.subset: has no effect on a file. Remove it."),
        ({"path": "a.csv.gz", "revision": "abc"}, "data.train.revision: has no effect on a file. Remove it."),
        ({"path": "a.jsonl", "header": ["a"]}, "data.train.header: has no effect on jsonl. Remove it."),
        ({"path": "a.csv", "file_format": "json", "quoting": True}, "data.train.quoting: has no effect on json."),
        ({"path": "org/set", "quoting": True}, "data.train.quoting: has no effect on a set of the hub. Remove it."),
        ({"path": "a.csv", "loader": "m:f", "file_format": "csv"},
         "data.train.file_format: has no effect on what a loader reads. Remove it."),
        ({"path": "a.csv", "header": ["a", "b", "a"]}, "data.train.header: names a column twice: a, b, a. Remove one."),
        ({"path": "a.csv", "loader": "no function"},
         "data.train.loader: expected 'module:function', such as 'my_code:my_function', received 'no function'."),
        ({"path": "a.csv", "format": "token_labels"}, "data.train.format: token_labels rows do not fit here."),
        ({"path": "a.csv", "columns": {"promt": "x"}},
         "data.train.columns.promt: is no column of ours. Did you mean 'prompt'?"),
        ({"path": "a.csv", "file_format": "xls"}, "data.train.file_format: expected 'txt', 'lines', 'jsonl', 'json'"),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_obeyed(tmp_path: Path, source: dict[str, Any], expected: str) -> None:
    (found,) = problems(tmp_path, {"train": source})
    assert found.startswith(expected)
    (inside,) = problems(tmp_path, {"train": ["b.jsonl", source]})
    assert inside.startswith(expected.replace("data.train", "data.train.1"))


@pytest.mark.parametrize(
    "source",
    [
        {"path": "a.csv", "split": "train[:4]"},
        {"path": "a.csv", "header": ["a"], "quoting": False, "values": {"label": 1}},
        {"path": "a.dat", "file_format": "tsv", "quoting": True},
        {"path": "org/set", "split": "test", "subset": "main", "revision": "abc"},
        {"path": "data/*", "header": ["a"]},
    ],
)
def test_a_block_that_can_be_obeyed(tmp_path: Path, source: dict[str, Any]) -> None:
    assert problems(tmp_path, {"train": source}) == []


def test_columns_of_a_source_with_its_own_format_are_known(tmp_path: Path) -> None:
    train = [{"path": "a.csv", "format": "pairs"}, "b.csv"]
    assert (
        problems(tmp_path, {"train": train, "format": "instruction", "columns": {"target": "x", "output": "y"}}) == []
    )
    found = problems(tmp_path, {"train": "a.csv", "format": "instruction", "columns": {"target": "x"}})
    assert len(found) == 1 and found[0].startswith("data.columns.target: is no column of ours.")


def test_keys_that_rows_of_tokens_do_not_need(tmp_path: Path) -> None:
    data = {"train": "a.jsonl", "format": "tokens", "template": "x", "train_on": "all", "roles": {"a": "user"}}
    assert [line.partition(":")[0] for line in problems(tmp_path, data)] == [
        "data.template", "data.train_on", "data.roles",
    ]  # fmt: skip


def test_skipping_bad_rows_does_not_skip_the_rest_of_a_file(tmp_path: Path) -> None:
    def read(text: str) -> int:
        (tmp_path / "a.csv").write_text("text\n" + "fine\n" * 400 + text)
        data = Data(train="a.csv", on_bad_row="skip", max_dropped="5%")
        accepted = CausalLM().formats
        rows = read_samples(data, tmp_path, accepted=accepted, seed=0, max_eval_rows=None, tick=lambda *_: None)
        return len(rows.train)

    assert read('"x" y\nfine\n') == 401
    with pytest.raises(DataError) as caught:
        read('x,y\n"never closed\nfine\n')
    assert "skip leaves out rows, not the rest of a file" in str(caught.value)
    assert [problem.row for problem in caught.value.problems] == [403]
