"""The store: whole or absent at every operation, every errno named, every damage found, one owner."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from damage import every_damage_is_found_and_named
from filelock import FileLock

from ftune import locking
from ftune import manifest as manifest_module
from ftune.checkpoints import checkpoints, newest_good, prune
from ftune.disk import disk_error
from ftune.errors import ArtifactError, DiskError, LockedError
from ftune.locking import lock
from ftune.manifest import MANIFEST, read_manifest, sha256_of, verify
from ftune.store import Store

REPOSITORY = Path(__file__).parents[2]
DISK_ERRNOS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES]
KINDS = {"create", "write", "fsync", "fsync_dir", "rename", "delete", "append", "truncate"}
Injection = Callable[[str, Path], None]


class Died(BaseException):
    """The process, at one operation; nothing of ours may catch it and go on writing."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where that is possible: the thousands of small folders below take a disk minutes when it is busy."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_real_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of cycles in seconds; the tests about fsync put their own in place."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def dies_from(number: int) -> Injection:
    count = 0

    def on_operation(kind: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count >= number:  # and ever after: a dead process cleans nothing up
            raise Died

    return on_operation


def fails_at(number: int, code: int, *, for_good: bool) -> Injection:
    count = 0

    def on_operation(kind: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(code, os.strerror(code), str(path))
        if for_good and count > number:  # another one, so that a failing clean-up cannot pass for the first failure
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    return on_operation


def operations_of(action: Callable[[Store], object], root: Path) -> list[tuple[str, Path]]:
    recorded: list[tuple[str, Path]] = []
    action(Store(root, lambda kind, path: recorded.append((kind, path))))
    return recorded


def writer(content: str) -> Callable[[Path], None]:
    """What a saver leaves: two files, one of them empty, and a subfolder."""

    def write(folder: Path) -> None:
        (folder / "adapter.safetensors").write_bytes(random.Random(content).randbytes(300))
        (folder / "state.json").write_text(json.dumps({"content": content}))
        (folder / "empty.txt").touch()
        (folder / "tokenizer" / "deep").mkdir(parents=True)
        (folder / "tokenizer" / "deep" / "vocab.json").write_text("{}" + content)

    return write


def content_of(folder: Path) -> str:
    return str(json.loads((folder / "state.json").read_text())["content"])


def publish_step(store: Store, step: int, content: str) -> Path:
    return store.publish(f"checkpoints/step_{step:06d}", writer(content), {"step": step})


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if path.name.startswith((".tmp-", ".trash-"))]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A run with steps 10, 20 and 30."""
    store = Store(tmp_path / "template")
    for step in (10, 20, 30):
        publish_step(store, step, "old")
    return store.root


@pytest.fixture
def fresh(template: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Copies of the run, each in the place of the last one."""

    def copy() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(template, tmp_path / "run"))

    yield copy


def cycle(store: Store) -> None:
    """One save over an existing checkpoint and the retention after it."""
    publish_step(store, 30, "new")
    prune(store, keep=1, protected={10})


# Writing


def test_publish_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    folder = store.publish(
        "checkpoints/step_000010", writer("one"), {"step": 10, "loss": 0.1, "text": "naïve \udcff \ud83d\ude00"}
    )
    assert folder == tmp_path / "run/checkpoints/step_000010"
    manifest = verify(folder)
    assert (manifest["format"], manifest["step"], manifest["loss"]) == (1, 10, 0.1)
    assert (manifest["name"], manifest["text"]) == ("step_000010", "naïve \udcff 😀")
    names = ["adapter.safetensors", "empty.txt", "state.json", "tokenizer/deep/vocab.json"]
    assert sorted(manifest["files"]) == names
    for name in names:
        record = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        assert manifest["files"][name] == record
    assert sha256_of(folder / "empty.txt") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert read_manifest(folder) == manifest
    assert leftovers(store.root) == []


def test_publish_replaces_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_step(store, 10, "old")
    (tmp_path / "checkpoints/step_000010/extra").touch()
    folder = publish_step(store, 10, "new")
    verify(folder)
    assert content_of(folder) == "new"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").touch()
    (tmp_path / "model").symlink_to("elsewhere")
    verify(store.publish("model", writer("new"), {}))
    assert not (tmp_path / "model").is_symlink()
    assert (tmp_path / "elsewhere/precious").exists()
    assert leftovers(tmp_path) == []


def test_publish_a_copy_of_a_published_folder_leaves_the_original(tmp_path: Path) -> None:
    store = Store(tmp_path)
    original = publish_step(store, 10, "one")

    def link(folder: Path) -> None:
        shutil.copytree(original, folder, dirs_exist_ok=True, copy_function=os.link)

    copy = store.publish("model", link, {"kind": "final"})
    assert verify(original)["step"] == 10
    assert verify(copy)["kind"] == "final"
    assert "step" not in verify(copy)


@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "fifo"])
def test_publish_refuses_what_is_not_a_file(tmp_path: Path, kind: str) -> None:
    def write(folder: Path) -> None:
        writer("one")(folder)
        if kind == "fifo":
            os.mkfifo(folder / "odd")
        else:
            (folder / "odd").symlink_to("state.json" if kind == "symlink" else "nowhere")

    with pytest.raises(ArtifactError, match="odd: "):
        Store(tmp_path).publish("model", write, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("facts", [{"files": {}}, {"name": "x"}, {"format": 2}, {"loss": float("nan")}])
def test_publish_refuses_facts_it_cannot_keep(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Store(tmp_path).publish("model", writer("one"), facts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "/etc/x", "../x", "a/../../x"])
def test_names_stay_inside_the_root(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "run")
    actions: list[Callable[[], object]] = [
        lambda: store.write_text(name, "x"),
        lambda: store.write_json(name, {}),
        lambda: store.append_json(name, {}),
        lambda: store.keep_lines(name, lambda event: True),
        lambda: store.publish(name, writer("x"), {}),
        lambda: store.remove(name),
    ]
    for action in actions:
        with pytest.raises(ValueError, match="not a name inside"):
            action()


@pytest.mark.parametrize("leaf", ["x" * 255, "two words", "new\nline", "caf\udce9", ".hidden", "-rf"])
def test_odd_names(tmp_path: Path, leaf: str) -> None:
    store = Store(tmp_path)
    for content in ("old", "new"):
        verify(store.publish(leaf, writer(content), {}))
    for number in range(1, len(operations_of(lambda store: store.publish(leaf, writer("new"), {}), tmp_path)) + 1):
        with pytest.raises(Died):
            Store(tmp_path, dies_from(number)).publish(leaf, writer("new"), {})
        store.sweep()
        assert [path.name for path in tmp_path.iterdir()] == [leaf]
        verify(tmp_path / leaf)
    store.remove(leaf)
    assert list(tmp_path.iterdir()) == []


def test_write_json_and_text(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    path = store.write_json("deep/er/plan.json", {"b": "é\udcff", "a": [1]})
    assert path.read_bytes() == b'{\n  "b": "\xc3\xa9\\udcff",\n  "a": [\n    1\n  ]\n}\n'
    assert json.loads(path.read_bytes()) == {"b": "é\udcff", "a": [1]}
    with pytest.raises(ValueError):
        store.write_json("deep/er/plan.json", {"loss": float("inf")})
    assert json.loads(path.read_bytes())["a"] == [1]
    assert store.write_text("recipe.yaml", "a: 1\r\nb: 'é'").read_bytes() == "a: 1\r\nb: 'é'".encode()
    assert leftovers(tmp_path) == []


def test_remove(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = publish_step(store, 10, "one")
    (tmp_path / "file").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").touch()
    (folder / "link").symlink_to(tmp_path / "outside")
    for name in ("checkpoints/step_000010", "file", "absent"):
        store.remove(name)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert (tmp_path / "outside/precious").exists()
    assert not (tmp_path / "file").exists()


# The order of operations


def test_recorded_order_of_publish(fresh: Callable[[], Path]) -> None:
    root = fresh()
    recorded = operations_of(lambda store: publish_step(store, 30, "new"), root)
    assert {kind for kind, _ in recorded} <= KINDS
    parent, target = root / "checkpoints", root / "checkpoints/step_000030"
    temp = next(path for kind, path in recorded if kind == "create")
    assert temp.name.startswith(".tmp-step_000030-")
    at = {(kind, path): index for index, (kind, path) in enumerate(recorded)}
    manifest = at["fsync", temp / MANIFEST]
    files = ["adapter.safetensors", "state.json", "empty.txt", "tokenizer/deep/vocab.json"]
    for name in files:
        assert at["fsync", temp / name] < at["create", temp / MANIFEST] < at["write", temp / MANIFEST] < manifest
    for folder in (temp / "tokenizer/deep", temp / "tokenizer", temp):
        assert manifest < at["fsync_dir", folder] < at["rename", target]
    assert at["fsync_dir", temp / "tokenizer/deep"] < at["fsync_dir", temp / "tokenizer"] < at["fsync_dir", temp]
    trash = next(path for kind, path in recorded if path.name.startswith(".trash-"))
    assert at["rename", trash] == at["rename", target] - 1
    assert at["fsync_dir", parent] == at["rename", target] + 1
    deleted = [path for kind, path in recorded if kind == "delete"]
    assert deleted[0] == trash / MANIFEST
    assert deleted[-1] == trash
    assert at["delete", trash / MANIFEST] < at["fsync_dir", trash] < at["delete", deleted[1]]
    assert at["fsync_dir", parent] < at["delete", trash / MANIFEST]


def test_recorded_order_of_the_others(fresh: Callable[[], Path]) -> None:
    root = fresh()
    recorded = operations_of(lambda store: store.write_json("new/run.json", {}), root)
    assert [kind for kind, _ in recorded] == [
        *("create", "fsync_dir"),
        *("create", "write", "fsync", "rename", "fsync_dir"),
    ]
    assert [path for _, path in recorded[:2]] == [root / "new", root]
    assert [path for _, path in recorded[-2:]] == [root / "new/run.json", root / "new"]
    recorded = operations_of(lambda store: store.remove("checkpoints/step_000010"), root)
    kinds = [kind for kind, _ in recorded]
    assert kinds[:4] == ["rename", "fsync_dir", "delete", "fsync_dir"]
    assert set(kinds[4:]) == {"delete"}
    assert recorded[1][1] == root / "checkpoints"
    assert operations_of(lambda store: store.append_json("metrics.jsonl", {}), root) == [
        ("append", root / "metrics.jsonl")
    ]
    assert operations_of(lambda store: store.sync("metrics.jsonl"), root) == [
        ("fsync", root / "metrics.jsonl"), ("fsync_dir", root),
    ]  # fmt: skip
    assert operations_of(lambda store: store.sync("absent.jsonl"), root) == []
    (root / "metrics.jsonl").write_text("torn")
    assert [kind for kind, _ in operations_of(lambda store: store.append_json("metrics.jsonl", {}), root)] == [
        "truncate",
        "append",
    ]


def test_every_announced_operation_happens(fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced is what the kernel gets, in that order."""
    root = fresh()
    log: list[tuple[str, str]] = []
    real_rename = Path.rename

    def fsync(descriptor: int) -> None:
        log.append(("fsynced", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def rename(source: Path, target: Path) -> Path:
        log.append(("renamed", str(target)))
        return real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    announced = {"fsync": "fsynced", "fsync_dir": "fsynced", "rename": "renamed"}
    cycle(Store(root, lambda kind, path: log.append((kind, str(path)))))
    expected = [(kind, path) for kind, path in log if kind not in announced.values()]
    doubled: list[tuple[str, str]] = []
    for kind, path in expected:
        doubled.append((kind, path))
        if kind in announced:
            doubled.append((announced[kind], path))
    assert log == doubled
    assert sum(kind == "fsynced" for kind, _ in log) > 10


# Death at every operation


def test_death_at_every_operation_of_a_cycle(fresh: Callable[[], Path]) -> None:
    count = len(operations_of(cycle, fresh()))
    assert count > 30
    outcomes = set()
    for number in range(1, count + 1):
        root = fresh()
        with pytest.raises(Died):
            cycle(Store(root, dies_from(number)))
        before_sweep, skipped = newest_good(root)
        assert before_sweep is not None
        assert skipped == [], "a reader saw a checkpoint that is neither whole nor absent"
        store = Store(root)
        store.sweep()
        assert leftovers(root) == []
        newest, skipped = newest_good(root)
        assert newest is not None
        assert newest[0] == 30
        assert skipped == []
        assert all(verify(path) for _, path in checkpoints(root))
        outcomes.add((content_of(newest[1]), tuple(step for step, _ in checkpoints(root))))
        cycle(store)
        assert [step for step, _ in checkpoints(root)] == [10, 30]
        assert content_of(root / "checkpoints/step_000030") == "new"
        assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["step_000010", "step_000030"]
    assert outcomes == {("old", (10, 20, 30)), ("new", (10, 20, 30)), ("new", (10, 30))}


def test_death_while_the_only_checkpoint_is_replaced(tmp_path: Path) -> None:
    """Between the two renames nothing is there; the sweep puts the old one back."""
    messages = []
    for number in range(1, 100):
        root = tmp_path / str(number)
        publish_step(Store(root), 10, "old")
        try:
            publish_step(Store(root, dies_from(number)), 10, "new")
        except Died:
            messages += Store(root).sweep()
            assert content_of(newest_good(root)[0][1]) in {"old", "new"}  # type: ignore[index]
        else:
            break
    assert sum("put back" in message for message in messages) == 1


def test_death_again_during_the_sweep(fresh: Callable[[], Path]) -> None:
    count = len(operations_of(cycle, fresh()))
    for number in range(1, count + 1):
        for second in range(1, 100):
            root = fresh()
            with pytest.raises(Died):
                cycle(Store(root, dies_from(number)))
            try:
                Store(root, dies_from(second)).sweep()
            except Died:
                Store(root).sweep()
                assert leftovers(root) == []
                newest, skipped = newest_good(root)
                assert newest is not None
                assert (newest[0], skipped) == (30, [])
            else:
                break


@pytest.mark.parametrize("existing", [True, False])
def test_death_in_a_file_replacement(tmp_path: Path, existing: bool) -> None:
    for number in range(1, 20):
        store = Store(tmp_path / str(number))
        if existing:
            store.write_json("sub/run.json", {"version": "old"})
        try:
            Store(store.root, dies_from(number)).write_json("sub/run.json", {"version": "new"})
        except Died:
            path = store.root / "sub/run.json"
            if existing or path.exists():
                versions = {"old", "new"} if existing else {"new"}
                assert json.loads(path.read_bytes())["version"] in versions
            store.write_json("sub/run.json", {"version": "again"})
            assert json.loads(path.read_bytes()) == {"version": "again"}
        else:
            assert number > 4
            return
    raise AssertionError("never finished")


def test_an_exception_of_the_writer_leaves_everything_as_it_was(fresh: Callable[[], Path]) -> None:
    root = fresh()
    before = sorted(str(path) for path in root.rglob("*"))
    for error in (
        ValueError("shape"),
        KeyboardInterrupt(),
        OSError(errno.ENOENT, "no such thing"),
        ArtifactError("x"),
        DiskError("Disk quota exceeded, as said before"),
    ):

        def write(folder: Path, error: BaseException = error) -> None:
            writer("new")(folder)
            raise error

        with pytest.raises(type(error)) as caught:
            Store(root).publish("checkpoints/step_000030", write, {})
        assert caught.value is error
        assert sorted(str(path) for path in root.rglob("*")) == before
    assert content_of(root / "checkpoints/step_000030") == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from ftune.store import Store
from test_store import cycle
count = 0
def on_operation(kind, path):
    global count
    count += 1
    if count == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
cycle(Store(Path({root!r}), on_operation))
"""


@contextmanager
def python(script: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_real_sigkill(fresh: Callable[[], Path]) -> None:
    root = fresh()
    recorded = operations_of(cycle, root)
    target = root / "checkpoints/step_000030"
    between_renames = recorded.index(("rename", target)) + 1
    for number in (3, between_renames, between_renames + 1, between_renames + 4, len(recorded)):
        root = fresh()
        script = KILLED.format(paths=[str(path) for path in Path(__file__).parents[:2]], number=number, root=str(root))
        with python(script) as process:
            assert process.wait(timeout=30) == -signal.SIGKILL
        if number == between_renames:
            assert not target.exists()
        Store(root).sweep()
        newest, skipped = newest_good(root)
        assert newest is not None
        assert (newest[0], skipped) == (30, [])
        cycle(Store(root))
        assert [step for step, _ in checkpoints(root)] == [10, 30]
        assert leftovers(root) == []


# Failing disks


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", DISK_ERRNOS, ids=[errno.errorcode[code] for code in DISK_ERRNOS])
def test_disk_failure_at_every_operation_of_a_cycle(fresh: Callable[[], Path], code: int, for_good: bool) -> None:
    root = fresh()
    recorded = operations_of(cycle, root)
    final_rename = recorded.index(("rename", root / "checkpoints/step_000030")) + 1
    for number in range(1, len(recorded) + 1):
        root = fresh()
        with pytest.raises(DiskError) as caught:
            cycle(Store(root, fails_at(number, code, for_good=for_good)))
        message = str(caught.value)
        assert caught.value.exit_code == 5
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == code
        assert str(root) in message
        assert os.strerror(code) in message
        assert "bytes free" in message
        assert "run the same command again" in message
        assert newest_good(root)[0] is not None
        if not for_good and number <= final_rename:
            assert content_of(root / "checkpoints/step_000030") == "old"
            assert leftovers(root) == []
        assert len([path for path in leftovers(root) if path.name.startswith(".tmp-")]) <= 1
        store = Store(root)
        store.sweep()
        assert leftovers(root) == []
        newest, skipped = newest_good(root)
        assert newest is not None
        assert (newest[0], skipped) == (30, [])
        assert content_of(newest[1]) == ("old" if number <= final_rename else "new")
        cycle(store)
        assert [step for step, _ in checkpoints(root)] == [10, 30]


@pytest.mark.parametrize("code", DISK_ERRNOS, ids=[errno.errorcode[code] for code in DISK_ERRNOS])
def test_disk_failure_at_every_operation_of_the_others(tmp_path: Path, code: int) -> None:
    def prepare(root: Path) -> None:
        store = Store(root)
        store.write_json("run.json", {"version": "old"})
        store.append_json("metrics.jsonl", {"step": 1})
        store.append_json("metrics.jsonl", {"step": 2})
        with (root / "metrics.jsonl").open("a") as file:
            file.write('{"st')
        (root / f".tmp-x-{'0' * 32}").mkdir()

    actions: dict[str, Callable[[Store], object]] = {
        "write_json": lambda store: store.write_json("run.json", {"version": "new"}),
        "append_json": lambda store: store.append_json("metrics.jsonl", {"step": 3}),
        "keep_lines": lambda store: store.keep_lines("metrics.jsonl", lambda event: event["step"] < 2),
        "remove": lambda store: store.remove("run.json"),
        "sweep": lambda store: store.sweep(),
    }
    for name, action in actions.items():
        prepare(tmp_path / name / "count")
        count = len(operations_of(action, tmp_path / name / "count"))
        assert count > 0
        for number in range(1, count + 1):
            root = tmp_path / name / str(number)
            prepare(root)
            with pytest.raises(DiskError):
                action(Store(root, fails_at(number, code, for_good=True)))
            if name != "remove":
                assert json.loads((root / "run.json").read_bytes())["version"] in {"old", "new"}
            assert (root / "metrics.jsonl").read_bytes().startswith(b'{"step": 1}\n')
            Store(root).sweep()
            assert leftovers(root) == []
            action(Store(root))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError('Error while serializing: I/O error: Os { code: 28, message: "No space left on device" }'),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("Disk quota exceeded"),
        Exception("I/O error: Permission denied (os error 13)"),
    ],
)
def test_words_of_other_libraries_for_a_failing_disk(tmp_path: Path, error: Exception) -> None:
    for wrap in (False, True):

        def write(folder: Path, wrap: bool = wrap) -> None:
            (folder / "half").write_bytes(b"half")
            if wrap:
                raise RuntimeError("saving failed") from error
            raise error

        advice = "choose another folder" if "13" in str(error) else "free some space"
        with pytest.raises(DiskError, match=rf"bytes free\); {advice}") as caught:
            Store(tmp_path).publish("model", write, {})
        assert caught.value.__cause__ is not None
        assert list(tmp_path.iterdir()) == []


def test_safetensors_on_a_disk_that_refuses_large_files(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")

    def write(folder: Path) -> None:
        safetensors.save_file({"weight": numpy.zeros(100_000, dtype="float32")}, folder / "model.safetensors")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DiskError, match="File too large"):
            Store(tmp_path).publish("model", write, {})
        with pytest.raises(DiskError, match=r"20,00\d bytes needed, [0-9,]+ bytes free"):
            Store(tmp_path).write_text("text", "x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    Store(tmp_path).publish("model", write, {})


FULL_DISK = """
import sys
from pathlib import Path
from ftune.errors import DiskError
from ftune.checkpoints import newest_good
from ftune.store import Store
store = Store(Path(sys.argv[1]))
def publish(size):
    store.publish("checkpoints/step_000001", lambda folder: (folder / "x").write_bytes(b"x" * size), {"size": size})
publish(100_000)
for size in range(100_000, 600_000, 50_000):
    try:
        store.require_space(size, "a checkpoint")
        print("fits", size)
    except DiskError as error:
        assert f"{size:,} bytes needed" in str(error), error
    try:
        publish(size)
        print("published", size)
    except DiskError as error:
        assert "free some space" in str(error), error
        print("full", size)
    (step, path), skipped = newest_good(store.root)
    assert not skipped
    assert sorted(p.name for p in path.parent.iterdir()) == ["step_000001"]
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    command = 'mount -t tmpfs -o size=500k none "$1" && exec "$2" -c "$3" "$1"'
    arguments = ["unshare", "-rm", "sh", "-c", command, "sh", str(tmp_path), sys.executable, FULL_DISK]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if not shutil.which("unshare") or subprocess.run([*arguments[:4], "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(arguments, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "published 200000" in done.stdout
    assert "full 500000" in done.stdout
    fitting = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("fits")}
    published = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("published")}
    assert published <= fitting


def test_places_that_cannot_hold_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    for root in (tmp_path / "file", tmp_path / "loop/x", tmp_path / "file/x", tmp_path / ("x" * 256)):
        with pytest.raises(DiskError, match="choose another folder"):
            Store(root).write_json("run.json", {})
        with pytest.raises(DiskError, match="choose another folder"):
            Store(root).publish("model", writer("x"), {})
        with pytest.raises(DiskError, match="choose another folder"), lock(root):
            pass


def test_require_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        if not Path(path).exists():
            raise FileNotFoundError(path)
        return shutil._ntuple_diskusage(2000, 1000, 1000)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    store = Store(tmp_path / "not/yet")
    store.require_space(1000, "3 checkpoints")
    assert asked[-1] == tmp_path
    with pytest.raises(DiskError) as caught:
        store.require_space(1001, "3 checkpoints")
    for part in (str(store.root), "3 checkpoints", "1,001 bytes needed", "1,000 bytes free", "free some space"):
        assert part in str(caught.value)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose another folder"),
        (errno.EACCES, "choose another folder"),
        (errno.EIO, "check it"),
    ],
)
def test_disk_error_says_what_to_do(tmp_path: Path, code: int, advice: str) -> None:
    error = disk_error(OSError(code, os.strerror(code)), tmp_path / "a/b", 12345)
    for part in (str(tmp_path / "a/b"), os.strerror(code), "12,345 bytes needed", "bytes free", advice):
        assert part in str(error)
    assert "run the same command again" in str(error)
    assert "needed" not in str(disk_error(OSError(code, "x"), tmp_path))


# Sweeping


def test_sweep_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    assert store.sweep() == []
    publish_step(store, 10, "one")
    for name in (".tmp-notes", ".trash", ".trash-1", ".tmp-x-0123", ".tmpfile", "x.tmp", ".trash-bin", ".Trash-1000"):
        (store.root / name).touch()
        (store.root / "checkpoints" / name).mkdir()
    before = sorted(store.root.rglob("*"))
    assert store.sweep() == []
    assert sorted(store.root.rglob("*")) == before


def test_sweep_deletes_through_no_link_and_reports(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    number = "0123456789abcdef" * 2
    root = store.write_json("run.json", {}).parent
    (root / f".trash-{number}").symlink_to(outside)
    (root / f".tmp-run.json-{number}").write_text("half")
    (root / "checkpoints" / f".tmp-step_000001-{number}" / "sub").mkdir(parents=True)
    (root / "checkpoints" / f".tmp-step_000001-{number}" / "sub/link").symlink_to(outside)
    done = store.sweep()
    assert len(done) == 3
    assert all("left by a crash" in line and ".t" in line for line in done)
    assert leftovers(root) == []
    assert (outside / "precious").exists()


def test_sweep_of_one_name_leaves_what_is_of_others(tmp_path: Path) -> None:
    """Two merges may write into one folder; one of them must not delete what the other is just writing."""
    number = "0123456789abcdef" * 2
    for name in (f".tmp-a-{number}", f".trash-a-{number}", f".tmp-a-b-{number}", f".trash-b-{number}"):
        (tmp_path / name).mkdir()
    publish_step(Store(tmp_path), 10, "one")
    (tmp_path / "checkpoints" / f".tmp-a-{number}").mkdir()
    assert len(Store(tmp_path).sweep("a")) == 2
    assert {path.name for path in leftovers(tmp_path)} == {
        f".tmp-a-b-{number}", f".trash-b-{number}", f".tmp-a-{number}",
    }  # fmt: skip


def test_sweep_does_not_put_back_over_a_target_or_outside(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    trash = store.root / f".trash-{'0' * 32}"
    new = store.publish("model", writer("new"), {})
    shutil.copytree(new, trash)
    assert "deleted" in store.sweep()[0]
    verify(new)
    for name in ("../model", "..", "", ".", "a/b", 7):
        shutil.copytree(new, trash)
        manifest = json.loads((trash / MANIFEST).read_bytes())
        del manifest[manifest_module.SEAL]
        (trash / MANIFEST).write_bytes(manifest_module.sealed({**manifest, "name": name}))
        read_manifest(trash)
        assert "deleted" in store.sweep()[0]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["deep", "model", "run", "tokenizer"]


# Damage


def test_every_damage_is_found_and_named(template: Path, tmp_path: Path) -> None:
    """`tests/crash/test_damaged_checkpoints.py` does it thousands of times, to what a real run left."""
    for step in (10, 20):
        publish_step(Store(template), step, str(step))
    assert min(every_damage_is_found_and_named(template, tmp_path, 300, seed=20).values()) >= 5


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = Store(tmp_path).publish("model", writer("one"), {"step": 10, "text": "é"})
    path = folder / MANIFEST
    whole = path.read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << (index % 8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read_manifest(folder)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtifactError):
            read_manifest(folder)
    path.write_bytes(whole)
    verify(folder)


def test_all_damaged_is_none_with_a_reason_for_each(template: Path) -> None:
    for step, path in checkpoints(template):
        (path / "state.json").write_text(f"{step}")
    newest, skipped = newest_good(template)
    assert newest is None
    assert [line.split(":")[0] for line in skipped] == [f"skipped checkpoint step_0000{step}" for step in (30, 20, 10)]
    assert newest_good(template / "absent") == (None, [])


def test_newer_format_says_both_versions(tmp_path: Path) -> None:
    folder = Store(tmp_path).publish("model", writer("one"), {})
    (folder / MANIFEST).write_text('{"format": 7, "anything": "else"}')
    with pytest.raises(ArtifactError, match=r"format 7, this ftune reads up to 1"):
        verify(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 1, "files": {}}',
        b'{"format": NaN}',
        b'{"format": 1, "files": ' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_manifest_that_is_no_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_manifest(tmp_path)


def test_manifest_absent_or_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="missing"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match="neither"):
        read_manifest(tmp_path)
    folder = Store(tmp_path).publish("model", writer("one"), {})
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ArtifactError, match="larger than 10 bytes"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "tokenizer/../../outside"])
def test_manifest_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("x")
    folder = Store(tmp_path).publish("model", writer("one"), {})
    manifest = read_manifest(folder)
    del manifest[manifest_module.SEAL]
    manifest["files"][name] = {"bytes": 1, "sha256": sha256_of(tmp_path / "outside")}
    (folder / MANIFEST).write_bytes(manifest_module.sealed(manifest))
    with pytest.raises(ArtifactError, match="leaves the folder"):
        verify(folder)


def test_links_and_pipes_are_named_and_never_opened(tmp_path: Path) -> None:
    folder = Store(tmp_path).publish("model", writer("one"), {})
    vocabulary = folder / "tokenizer"
    vocabulary.rename(tmp_path / "moved")
    vocabulary.symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="tokenizer"):
        verify(folder)
    vocabulary.unlink()
    (tmp_path / "moved").rename(vocabulary)
    verify(folder)
    (folder / "extra").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="extra: a symlink"):
        verify(folder)
    (folder / "extra").unlink()
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    with pytest.raises(ArtifactError, match="state.json: neither"):
        verify(folder)


def test_another_size_is_said(tmp_path: Path) -> None:
    folder = Store(tmp_path).publish("model", writer("one"), {})
    (folder / "adapter.safetensors").write_bytes(b"x" * 299)
    with pytest.raises(ArtifactError, match="has 299 bytes where MANIFEST.json says 300"):
        verify(folder)


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(tmp_path).publish("model", writer("one"), {})

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(manifest_module, "sha256_of", refuse)
    with pytest.raises(ArtifactError, match=r"adapter.safetensors: cannot be read: Permission denied"):
        verify(folder)


# Retention


def test_checkpoints_are_committed_and_in_order_of_steps(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (900, 1_000_000, 20, 1000):
        publish_step(store, step, "x")
    parent = tmp_path / "checkpoints"
    for name in ("step_000030", "step_12", "step_0000012", "step_000900.bak", "Step_000001", "step_٠٠٠٠٠١", "last"):
        shutil.copytree(parent / "step_000020", parent / name)
    (parent / "step_000030" / MANIFEST).unlink()
    (parent / "step_000040").touch()
    assert [step for step, _ in checkpoints(tmp_path)] == [20, 900, 1000, 1_000_000]
    assert all(path == parent / f"step_{step:06d}" for step, path in checkpoints(tmp_path))


def test_prune_against_an_oracle(tmp_path: Path) -> None:
    chance = random.Random(7)
    template = Store(tmp_path).publish("template", lambda folder: None, {})
    for sequence in range(200):
        store = Store(tmp_path / str(sequence))
        parent = store.root / "checkpoints"
        parent.mkdir(parents=True)
        present: set[int] = set()
        for _ in range(chance.randrange(4, 12)):
            step = chance.randrange(1, 40)
            if chance.random() < 0.7:
                if step not in present:
                    shutil.copytree(template, parent / f"step_{step:06d}")
                present.add(step)
                os.utime(parent / f"step_{step:06d}", (chance.randrange(2**31),) * 2)
            elif chance.random() < 0.2:
                (parent / f"step_{step + 100:06d}").mkdir(exist_ok=True)  # never committed, so never counted
            else:
                keep = chance.randrange(1, 5)
                protected = set(chance.sample(range(1, 40), 3)) | set(chance.sample(sorted(present), len(present) // 3))
                kept = set(sorted(present, reverse=True)[:keep]) | (present & protected)
                assert prune(store, keep, protected) == sorted(present - kept)
                present = kept
                assert len(present) <= keep + len(protected)
            assert {step for step, _ in checkpoints(store.root)} == present
        assert leftovers(store.root) == []


def test_prune_keeps_at_least_one(template: Path) -> None:
    for keep in (0, -1):
        with pytest.raises(ValueError):
            prune(Store(template), keep, set())
    assert prune(Store(template), 5, set()) == []
    assert len(checkpoints(template)) == 3


# Lines


def test_append_after_every_possible_tear(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "metrics.jsonl"
    store.append_json("metrics.jsonl", {"step": 1, "text": "é\u2028\n"})
    store.append_json("metrics.jsonl", {"step": 2})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        store.append_json("metrics.jsonl", {"step": 3})
        steps = [json.loads(line)["step"] for line in path.read_bytes().splitlines()]
        assert steps == [1][: cut >= first] + [2][: cut == len(whole)] + [3]
    with pytest.raises(ValueError):
        store.append_json("metrics.jsonl", {"loss": float("nan")})


def test_keep_lines(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "metrics.jsonl"
    store.keep_lines("metrics.jsonl", lambda event: True)
    assert not path.exists()
    lines = [b'{"step":1,  "text": "\\u00e9\xe2\x80\xa8"}\n', b'{"step": 2}\n', b'{"step": 3}\n']
    whole = b"".join(lines)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        store.keep_lines("metrics.jsonl", lambda event: event["step"] != 2)
        complete = [line for index, line in enumerate(lines) if cut >= len(b"".join(lines[: index + 1]))]
        assert path.read_bytes() == b"".join(line for line in complete if line != lines[1])
    for tail in (b"\x00\x00\x00", b"\x00\n", b"5\n", b'{"step"\n'):
        path.write_bytes(lines[0] + tail)
        store.keep_lines("metrics.jsonl", lambda event: True)
        assert path.read_bytes() == lines[0]
    path.write_bytes(lines[0] + b'{"st' + b"\0" * 4096 + b'p": 7}\n' + lines[1])  # a page that never came to the disk
    store.keep_lines("metrics.jsonl", lambda event: True)
    assert path.read_bytes() == lines[0] + lines[1]
    path.write_bytes(b"damage\n" + lines[0])
    with pytest.raises(ArtifactError, match=r"metrics.jsonl:1: not a JSON object"):
        store.keep_lines("metrics.jsonl", lambda event: True)
    assert path.read_bytes() == b"damage\n" + lines[0]


def test_keep_lines_is_all_or_nothing_and_touches_nothing_needlessly(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "metrics.jsonl"
    old, new = b'{"step": 1}\n{"step": 2}\n', b'{"step": 1}\n'
    path.write_bytes(old)
    assert operations_of(lambda store: store.keep_lines("metrics.jsonl", lambda event: True), tmp_path) == []
    for number in range(1, 6):
        path.write_bytes(old)
        with pytest.raises(Died):
            Store(tmp_path, dies_from(number)).keep_lines("metrics.jsonl", lambda event: event["step"] < 2)
        assert path.read_bytes() in (old, new)
        store.keep_lines("metrics.jsonl", lambda event: event["step"] < 2)
        assert path.read_bytes() == new


# The lock

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from ftune.locking import lock
with lock(Path(sys.argv[1])):
    children = []
    {extra}
    print("held", *children, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(root: Path, extra: str = "pass") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    script = HOLDER.format(extra=extra).replace("sys.argv[1]", repr(str(root)))
    with python(script) as process:
        assert process.stdout is not None
        word, *children = process.stdout.readline().split()
        assert word == "held"
        try:
            yield process, [int(child) for child in children]
        finally:
            for child in children:
                os.kill(int(child), signal.SIGKILL)


def test_lock_in_one_process(tmp_path: Path) -> None:
    root = tmp_path / "runs/one"
    for _ in range(2):
        with lock(root):
            info = json.loads((root / ".lock.json").read_bytes())
            assert (info["pid"], info["host"]) == (os.getpid(), socket.gethostname())
            with pytest.raises(LockedError, match=str(os.getpid())), lock(root):
                raise AssertionError("two owners")
            assert (root / ".lock.json").exists()
        assert not (root / ".lock.json").exists()
    with pytest.raises(ZeroDivisionError), lock(root):
        raise ZeroDivisionError
    with lock(root):
        assert Store(root).sweep() == []


def test_second_holder_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        began = time.monotonic()
        started = json.loads((tmp_path / ".lock.json").read_bytes())["started"]
        with pytest.raises(LockedError) as caught, lock(tmp_path):
            raise AssertionError("two owners")
        assert time.monotonic() - began < 1
        for part in (str(tmp_path), f"process {process.pid} ", socket.gethostname(), started):
            assert part in str(caught.value)
        assert caught.value.exit_code == 6
        process.kill()
        process.wait()
        assert (tmp_path / ".lock.json").exists()
        with lock(tmp_path):
            assert json.loads((tmp_path / ".lock.json").read_bytes())["pid"] == os.getpid()


DEAD = json.dumps({"pid": 99999999999999999999, "host": socket.gethostname()}).encode()


@pytest.mark.parametrize("info", [None, b'{"pid": 1', b"[]", b"{}", b'{"pid": "x", "host": "y"}', b'{"pid": 1}', DEAD])
def test_lock_whose_holder_has_no_readable_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: bytes | None
) -> None:
    monkeypatch.setattr(locking, "_LOCK_INFO_WAIT_SECONDS", 0.05)
    with lock(tmp_path):
        (tmp_path / ".lock.json").unlink()
        if info is not None:
            (tmp_path / ".lock.json").write_bytes(info)
        with pytest.raises(LockedError, match="another process"), lock(tmp_path):
            raise AssertionError("two owners")


def test_lock_waits_for_the_name_of_a_new_holder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock.json").write_bytes(DEAD)
        info = {"pid": os.getpid(), "host": socket.gethostname(), "started": "now"}
        timer = threading.Timer(0.2, Store(tmp_path).write_json, (".lock.json", info))
        timer.start()
        with pytest.raises(LockedError, match=f"process {os.getpid()} .*started now"), lock(tmp_path):
            raise AssertionError("two owners")
        timer.join()


def test_lock_waits_for_a_holder_that_is_just_dying(tmp_path: Path) -> None:
    held = FileLock(tmp_path / ".lock", thread_local=False)
    held.acquire()
    (tmp_path / ".lock.json").write_bytes(DEAD)
    timer = threading.Timer(0.2, held.release)
    timer.start()
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_bytes())["pid"] == os.getpid()
    timer.join()


SPAWN = {
    "subprocess": "children = [subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False).pid]",
    "fork": "children = [os.fork() or time.sleep(60)]",
    "multiprocessing": (
        "import multiprocessing; worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); "
        "worker.start(); children = [worker.pid]"
    ),
}


@pytest.mark.parametrize("extra", SPAWN.values(), ids=SPAWN)
def test_children_of_a_killed_holder_do_not_keep_the_lock(tmp_path: Path, extra: str) -> None:
    with holder(tmp_path, extra) as (process, children):
        (child,) = children
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with lock(tmp_path):
            os.kill(child, 0)  # alive, and the lock is ours all the same


def test_a_forked_child_that_leaves_the_block_frees_nothing(tmp_path: Path) -> None:
    extra = "child = os.fork(); child or sys.exit(0); os.waitpid(child, 0)"
    with holder(tmp_path, extra) as (process, _):
        assert (tmp_path / ".lock.json").exists()
        with pytest.raises(LockedError, match=f"process {process.pid} "), lock(tmp_path):
            raise AssertionError("two owners")


RACER = """
import sys, time
from pathlib import Path
from ftune.errors import LockedError
from ftune.locking import lock
root, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
try:
    with lock(root):
        print("won", flush=True)
        sys.stdin.read()
except LockedError as error:
    print(error, flush=True)
"""


def test_of_many_starts_at_once_one_wins(tmp_path: Path) -> None:
    start = time.time() + 1.0
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", RACER, str(tmp_path / "run"), str(start)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    racers = [subprocess.Popen(command, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    try:
        answers = {racer.pid: racer.stdout.readline().strip() for racer in racers}
    finally:
        for racer in racers:
            racer.communicate("")
    winners = [pid for pid, answer in answers.items() if answer == "won"]
    assert len(winners) == 1
    assert all(f"process {winners[0]} " in answer for pid, answer in answers.items() if pid != winners[0])


def test_the_store_is_cold() -> None:
    forbidden = {"torch", "numpy", "transformers", "pickle"}
    script = f"import sys; before = set(sys.modules); import ftune.store; print(*({forbidden} & set(sys.modules)))"
    with python(script) as process:
        assert process.communicate(timeout=30)[0].split() == []
