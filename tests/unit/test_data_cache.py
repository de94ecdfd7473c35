"""Rows and tokens are kept: keyed by everything that shapes them and by nothing else, whole, and made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from laws import recipe
from tiny_tokenizers import byte_tokenizer
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data import encoder as building
from ftune.data.build import Dataset, build_data
from ftune.data.cache import Cache, Listed, alone, cache_root, listed, remove
from ftune.data.render import Renderer
from ftune.errors import DataError
from ftune.objectives.causal_lm import CausalLM
from ftune.objectives.sequence_classification import SequenceClassification
from ftune.prepare import prepare
from ftune.recipe import Data

ROWS = [{"prompt": f"{i} + {i} = ", "completion": str(2 * i), "label": "ab"[i % 2]} for i in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that were tokenised, one number for each time that a source is."""
    seen: list[int] = []
    original = building.encode_rows

    def counted(rows: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(0)
        for one in original(rows, *arguments, **options):
            seen[-1] += 1
            yield one

    monkeypatch.setattr(building, "encode_rows", counted)
    return seen


def build(
    folder: Path, cache: Cache, *, tokenizer: Any = None, seed: int = 0, max_length: int = 99, **values: Any
) -> Dataset:
    data = Data(**{"train": "a.jsonl", **values})
    return build_data(
        data, folder, Renderer(tokenizer or byte_tokenizer(), data.template), CausalLM(), max_length=max_length,
        seed=seed, max_eval_rows=None, accepted=CausalLM().formats, guard=[], encoder_decoder=False,
        tick=lambda *_: None, cache=cache,
    )  # fmt: skip


def same(one: Dataset, other: Dataset) -> bool:
    pairs = zip(one.train.examples, other.train.examples, strict=True)
    alike = all((a.ids.tolist(), a.is_target.tolist(), a.place) == (b.ids.tolist(), b.is_target.tolist(), b.place)
                for a, b in pairs)  # fmt: skip
    return alike and one.train.report == other.train.report and one.train.fingerprint == other.train.fingerprint


def test_a_second_start_reads_and_tokenises_nothing(tmp_path: Path, calls: list[int]) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    first = build(tmp_path, Cache(tmp_path / "cache"), eval="10%")
    told: list[str] = []
    second = build(tmp_path, Cache(tmp_path / "cache"), eval="10%")
    assert (first.story, second.story, calls) == ("read and tokenised", "cached", [40])
    assert same(first, second) and told == []
    assert same(first, build(tmp_path, Cache(), eval="10%"))
    assert calls == [40, 40]


def test_what_does_not_shape_tokens_hits(tmp_path: Path, calls: list[int]) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    root = tmp_path / "cache"
    build(tmp_path, Cache(root))
    write(tmp_path / "moved.jsonl", ROWS)
    for options in (
        {"seed": 7}, {"eval": "10%"}, {"eval": "20%", "seed": 3}, {"max_dropped": "5%"}, {"on_bad_row": "skip"},
        {"train": "moved.jsonl"}, {"train": {"path": "a.jsonl", "weight": 2.0}},
    ):  # fmt: skip
        cache = Cache(root)
        dataset = build(tmp_path, cache, **options)
        assert (cache.made, len(calls)) == (0, 1), options
    assert Path(dataset.train.examples[0].file).name == "a.jsonl"
    assert Path(build(tmp_path, Cache(root), train="moved.jsonl").train.examples[0].file).name == "moved.jsonl"


@pytest.mark.parametrize(
    ("options", "rows_too"),
    [
        ({"template": "{{ prompt }}!"}, True),
        ({"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, False),
        ({"max_length": 98}, False), ({"train_on": "all"}, False), ({"overlong": "drop"}, False),
        ({"tokenizer": byte_tokenizer(merges=(("Ġ", "+"),))}, False), ({"tokenizer": byte_tokenizer(bos=True)}, False),
        ({"tokenizer": byte_tokenizer(template="{% for m in messages %}{{ m.content }}{% endfor %}")}, False),
        ({"columns": {"prompt": "completion"}}, True), ({"train": {"path": "a.jsonl", "split": "[:40]"}}, True),
    ],
)  # fmt: skip
def test_what_shapes_tokens_misses(tmp_path: Path, calls: list[int], options: dict[str, Any], rows_too: bool) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    root = tmp_path / "cache"
    build(tmp_path, Cache(root))
    cache = Cache(root)
    build(tmp_path, cache, **options)
    assert (cache.made, len(calls)) == (1 + rows_too, 2)


def test_one_byte_misses_though_size_and_time_are_the_same(tmp_path: Path, calls: list[int]) -> None:
    path, root = tmp_path / "a.jsonl", tmp_path / "cache"
    write(path, ROWS)
    before = path.stat()
    first = build(tmp_path, Cache(root))
    path.write_bytes(path.read_bytes().replace(b"7 + 7", b"7 + 8", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = build(tmp_path, Cache(root))
    assert second.story == "read and tokenised" and len(calls) == 2
    assert second.train.fingerprint != first.train.fingerprint


def test_labels_are_part_of_the_key(tmp_path: Path) -> None:
    def made(rows: list[dict[str, Any]]) -> tuple[int, str]:
        write(tmp_path / "b.jsonl", rows)
        cache, data, kind = Cache(tmp_path / "cache"), Data(train=["a.jsonl", "b.jsonl"]), SequenceClassification()
        dataset = build_data(
            data, tmp_path, Renderer(byte_tokenizer(), None), kind, max_length=99, seed=0, max_eval_rows=None,
            accepted=kind.formats, guard=[], encoder_decoder=False, tick=lambda *_: None, cache=cache,
        )  # fmt: skip
        return cache.made, dataset.train.fingerprint

    write(tmp_path / "a.jsonl", [{"text": "x", "label": "m"}, {"text": "y", "label": "n"}])
    first = made([{"text": "z", "label": "m"}])
    assert made([{"text": "z", "label": "m"}]) == (0, first[1])
    assert made([{"text": "z", "label": "a"}])[0] == 3  # the rows of b, and both files with other numbers of labels


def test_learning_rate_output_dir_and_seed_hit_through_the_recipe(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))
    prepare(recipe(tmp_path, rows=ROWS), lambda *_: None)
    for sections in ({"train": {"learning_rate": 0.5}}, {"output_dir": str(tmp_path / "other")}, {"seed": 5},
                     {"train": {"batch_size": 2}}):  # fmt: skip
        prepared = prepare(recipe(tmp_path, rows=ROWS, **sections), lambda *_: None)
        assert (prepared.dataset.story, len(calls)) == ("cached", 1), sections
    prepare(recipe(tmp_path, rows=ROWS, data={"max_length": 64}), lambda *_: None)
    assert len(calls) == 2


def entries(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("MANIFEST.json"))


@pytest.mark.parametrize("kind", ["rows", "tokens"])
@pytest.mark.parametrize("fault", ["changed", "missing", "torn"])
def test_a_damaged_entry_is_made_again_and_told(tmp_path: Path, kind: str, fault: str) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    root = tmp_path / "cache"
    first = build(tmp_path, Cache(root))
    (entry,) = (path for path in entries(root) if kind in path.parts)
    victim = next(path for path in sorted(entry.iterdir()) if path.stat().st_size > 20 and path.suffix != ".json")
    if fault == "changed":
        victim.write_bytes(bytes([victim.read_bytes()[0] ^ 1]) + victim.read_bytes()[1:])
    elif fault == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3])
    cache = Cache(root)
    second = build(tmp_path, cache)
    assert (cache.made, cache.taken) == (1, 1)
    assert len(second.notes) == 2 and second.notes[0].startswith("an entry of the cache was damaged and is")
    assert same(first, second)
    assert build(tmp_path, Cache(root)).notes == second.notes[1:]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = Cache(tmp_path / "cache")
    found = build(tmp_path, cache, eval="10%")
    assert same(found, build(tmp_path, Cache(), eval="10%"))
    assert found.story == "read and tokenised"
    *told, _ = found.notes  # the last says how rows were read
    assert all(note.startswith("the cache cannot be used, so the work is done again next ") for note in told)
    assert 1 <= len(told) <= 2


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from ftune.store import Store

    write(tmp_path / "a.jsonl", ROWS)

    def full(self: Store, name: str, write: Callable[[Path], None], facts: dict[str, Any]) -> Path:
        with self._operation("write", self.root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Store, "publish", full)
    found = build(tmp_path, Cache(tmp_path / "cache"))
    assert "No space left on device" in found.notes[0] and len(found.train.examples) == 40


def test_bad_rows_are_kept_too_and_policies_are_not(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "p", "completion": ""}])
    root = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(DataError, match="a.jsonl:41 completion: is empty."):
            build(tmp_path, Cache(root))
    for kept, allowed in (((1, 1), "3%"), ((2, 0), "5%")):  # rows that are refused are not tokenised to the end
        cache = Cache(root)
        report = build(tmp_path, cache, on_bad_row="skip", max_dropped=allowed).train.report
        assert (report.rows, report.kept, report.dropped) == (41, 40, {"bad_row": 1})
        assert (cache.taken, cache.made) == kept
    with pytest.raises(DataError, match="a.jsonl:41 completion: is empty."):
        build(tmp_path, Cache(root))


PROGRAM = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
import test_data_cache as test
from ftune.data import encoder as building
original = building.encode_rows
def slow(rows, *arguments, **options):
    with open(sys.argv[3], "a") as log:
        log.write("tokenised\\n")
    time.sleep(1)
    return original(rows, *arguments, **options)
building.encode_rows = slow
found = test.build(Path(sys.argv[2]), test.Cache(Path(sys.argv[2]) / "cache"))
print(found.train.fingerprint, found.story)
"""


def test_two_processes_make_an_entry_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    here, log = str(Path(__file__).parent), tmp_path / "log"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-c", PROGRAM, here, str(tmp_path), str(log)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
            for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=100)[0].split(maxsplit=1) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0]
    assert log.read_text() == "tokenised\n"


def test_where_the_cache_is(tmp_path: Path) -> None:
    assert cache_root({"FTUNE_CACHE": "/a/b"}, tmp_path) == Path("/a/b")
    assert cache_root({}, tmp_path).is_relative_to(tmp_path)
    with mock.patch("sys.platform", "linux"):
        assert cache_root({"XDG_CACHE_HOME": "/x"}, tmp_path) == Path("/x/ftune")
        assert cache_root({}, tmp_path) == tmp_path / ".cache" / "ftune"


# ftune cache


def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a.jsonl", ROWS)
    build(tmp_path, Cache(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def test_what_is_kept_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cached(tmp_path, monkeypatch)
    found = run("ls", "--json")
    assert [(entry["kind"], entry["rows"], entry["locked"]) for entry in found["entries"]] == [
        ("rows", 40, False), ("tokens", 40, False),
    ]  # fmt: skip
    files = [path for path in root.rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files) > 1000
    assert found["folder"] == str(root)
    assert all(entry["made"] <= entry["used"] for entry in found["entries"])
    assert "40 rows" in run("ls")


def test_entries_are_deleted_by_age_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cached(tmp_path, monkeypatch)
    (old,) = (path for path in entries(root) if "tokens" in path.parts)
    os.utime(old / "MANIFEST.json", (time.time() - 10 * 86400,) * 2)
    assert run("rm", "--older-than", "11d", "--json") == {"removed": [], "locked": []}
    assert [entry["kind"] for entry in run("rm", "--older-than", "9d", "--json")["removed"]] == ["tokens"]
    assert [entry["kind"] for entry in run("ls", "--json")["entries"]] == ["rows"]
    run("rm", "--all")
    assert entries(root) == [] and listed(root) == []
    for arguments, words in (
        (["rm"], "say what to delete"), (["rm", "--all", "--older-than", "1d"], "say what to delete"),
        (["rm", "--older-than", "soon"], "expected a time such as 30d"),
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["cache", *arguments])
        assert result.exit_code == 2 and words in result.stderr


def test_taking_an_entry_makes_it_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cached(tmp_path, monkeypatch)
    for entry in entries(root):
        os.utime(entry / "MANIFEST.json", (1e9,) * 2)
    build(tmp_path, Cache(root))
    assert all(time.time() - entry.used < 100 for entry in listed(root))


def test_what_is_being_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cached(tmp_path, monkeypatch)
    busy: Listed = listed(root)[0]
    with alone(root / busy.kind / busy.key, lambda: None):
        assert [entry.locked for entry in listed(root)] == [True, False]
        assert not remove(root, busy)
        assert [entry["kind"] for entry in run("rm", "--all", "--json")["locked"]] == ["rows"]
    assert remove(root, busy)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, DataError])
def test_what_could_not_be_made_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    cache = Cache(tmp_path / "cache")

    def fails(folder: Path) -> dict[str, Any]:
        (folder / "part").write_text("x")
        raise kind("no")

    with pytest.raises(kind):
        cache.entry("rows", "k", fails, lambda: None)
    assert listed(tmp_path / "cache") == []
    assert [*(tmp_path / "cache" / "rows").iterdir()] == []
    assert not cache.entry("rows", "k", lambda folder: {"rows": 1}, lambda: None).taken
    assert cache.entry("rows", "k", fails, lambda: None).taken
    assert [entry.rows for entry in listed(tmp_path / "cache")] == [1]


def test_one_that_waits_for_what_fails_makes_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    begun, go_on = threading.Event(), threading.Event()

    def fails(folder: Path) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(30)
        raise DataError("no")

    def first() -> None:
        with suppress(DataError):
            cache.entry("rows", "k", fails, lambda: None)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(30)
    entry = Cache(tmp_path / "cache").entry("rows", "k", lambda folder: {"rows": 2}, go_on.set)
    thread.join()
    assert not entry.taken
    assert [found.rows for found in listed(tmp_path / "cache")] == [2]


def test_a_folder_that_goes_while_it_is_looked_at_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` finds it there, and it is gone when `mkdir` asks whether it is a folder."""
    real, folder = Path.is_dir, tmp_path / "cache" / "rows" / "k"
    folder.mkdir(parents=True)

    def goes(path: Path) -> bool:
        if path == folder:
            monkeypatch.setattr(Path, "is_dir", real)
            folder.rmdir()
        return real(path)

    monkeypatch.setattr(Path, "is_dir", goes)
    cache = Cache(tmp_path / "cache")
    assert not cache.entry("rows", "k", lambda _: {"rows": 2}, lambda: None).taken
    assert Path.is_dir is real, "it was asked"
    assert [found.rows for found in listed(tmp_path / "cache")] == [2] and not cache.notes


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "none"))
    assert run("ls", "--json")["entries"] == [] == run("rm", "--all", "--json")["removed"]
    assert not (tmp_path / "none").exists()
    assert cache_root({"XDG_CACHE_HOME": "/x"}, tmp_path) in (
        Path("/x/ftune"),
        tmp_path / "Library" / "Caches" / "ftune",
    )


def test_plan_says_where_its_data_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTUNE_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "r.yaml").write_text("model: builtin:tiny-llama\ndata: {train: a.jsonl}\ntrain: {batch_size: 4}\n")
    for story in ("data: read and tokenised", "data: cached"):
        result = CliRunner().invoke(app, ["plan", "r.yaml", "--offline"])
        assert result.exit_code == 0 and story in result.stdout.splitlines(), result.output
