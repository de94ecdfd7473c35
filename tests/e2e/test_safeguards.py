"""Take one safeguard out of the program, and some test must fail: the tests see what they are there for. `make crash`.

Each case changes one place of a copy of the package and runs tests of the copy. The tests pass on the copy as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Safeguard(NamedTuple):
    """What is taken out, where, and which test sees it."""

    file: str
    old: str
    new: str
    test: str


WRITING, SEALING = 'self._operation("write", temp, needed_bytes):\n', "self._write_manifest(temp, head)\n"
STORE, MANIFEST = "tests/unit/test_store.py", "ftune/manifest.py"
RESUME = "tests/unit/test_laws_resume.py::test_law_8_cut_once_and_run_to_the_end"
SAFEGUARDS = {
    "a file is synced to the disk": Safeguard(
        "ftune/store.py", 'with self._operation("fsync", path):\n                _fsync(path)', "pass",
        f"{STORE}::test_recorded_order_of_publish",
    ),
    "a folder is synced to the disk": Safeguard(
        "ftune/store.py", 'with self._operation("fsync_dir", folder):\n                _fsync(folder)', "pass",
        f"{STORE}::test_recorded_order_of_publish",
    ),
    "what is announced is really synced": Safeguard(
        "ftune/store.py", "os.fsync(descriptor)", "pass", f"{STORE}::test_every_announced_operation_happens",
    ),
    "the manifest is written last": Safeguard(
        "ftune/store.py",
        f"            with {WRITING}                write(temp)\n            {SEALING}",
        f"            {SEALING}            with {WRITING}                write(temp)\n",
        f"{STORE}::test_publish_round_trip",
    ),
    "a folder appears by a rename": Safeguard(
        "ftune/store.py", "            self._rename(temp, target)\n        except BaseException:",
        "            __import__('shutil').copytree(temp, target)\n        except BaseException:",
        f"{STORE}::test_death_at_every_operation_of_a_cycle",
    ),
    "what is replaced is kept until the new one is there": Safeguard(
        "ftune/store.py", "self._rename(target, trash)\n            self._rename(temp, target)",
        "self._delete(target)\n            self._rename(temp, target)",
        f"{STORE}::test_death_while_the_only_checkpoint_is_replaced",
    ),
    "what was learned from is synced in the log": Safeguard(
        "ftune/run.py", '    run.store.sync("metrics.jsonl")', "    pass",
        "tests/crash/test_power_loss.py::test_power_cut_at_every_operation",
    ),
    "leftovers of a crash are swept up": Safeguard(
        "ftune/store.py", 'for folder in (self.root, self.root / "checkpoints") if name is None else (self.root,):',
        "for folder in list[Path]():",
        f"{STORE}::test_death_while_the_only_checkpoint_is_replaced",
    ),
    "files are compared with their hashes": Safeguard(
        MANIFEST, 'if sha256_of(path) != expected.get("sha256"):', "if False:",
        f"{STORE}::test_every_damage_is_found_and_named",
    ),
    "a file that nobody listed is found": Safeguard(
        MANIFEST, "if name not in files:", "if False:", f"{STORE}::test_every_damage_is_found_and_named",
    ),
    "the manifest is sealed": Safeguard(
        MANIFEST, "    if not intact or not", "    if not", f"{STORE}::test_every_byte_of_the_manifest_counts",
    ),
    "the best checkpoint is protected": Safeguard(
        "ftune/checkpoints.py", "if step not in protected]", "]", f"{STORE}::test_prune_against_an_oracle",
    ),
    "one process owns a folder": Safeguard(
        "ftune/locking.py", "held.acquire(blocking=False)", "pass",
        f"{STORE}::test_second_holder_is_refused_with_the_first_ones_name",
    ),
    "every micro-batch has its own seed": Safeguard(
        "ftune/loop.py",
        '        torch.manual_seed(derived_seed("micro-batch", plan.seed, work.step, number))\n', "", RESUME,
    ),
    "the optimizer's state is restored": Safeguard(
        "ftune/begin.py",
        'load_optimizer_state(run.optimizer, run.model, read_weights(folder / "optimizer.safetensors"))', "pass",
        RESUME,
    ),
    "changed rows are noticed": Safeguard(
        "ftune/drift.py", 'if run["fingerprints"].get(what, "none") != now', "if False",
        "tests/e2e/test_refusals.py::test_refusals_touch_nothing",
    ),
    "a changed recipe is noticed": Safeguard(
        "ftune/drift.py", "if not is_free(key) and key not in BY_CONTENT", "if False",
        "tests/e2e/test_refusals.py::test_refusals_touch_nothing",
    ),
    "a loss that is not finite ends the run": Safeguard(
        "ftune/loop.py", "    if not (math.isfinite(loss) and math.isfinite(grad_norm)):", "    if False:",
        "tests/unit/test_divergence.py::test_one_bad_row_is_named",
    ),
    "steps are saved before memory is shared anew": Safeguard(
        "ftune/out_of_memory.py", "    if run.state.step > 0:\n        save()\n", "",
        "tests/unit/test_out_of_memory.py::test_later_it_goes_on_and_a_resumed_run_goes_on_alike",
    ),
}  # fmt: skip


def copied(folder: Path) -> Path:
    for name in ("ftune", "tests", "recipes", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_test(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", ""]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, test], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("whole"))


@pytest.mark.crash
@pytest.mark.parametrize("test", sorted({safeguard.test for safeguard in SAFEGUARDS.values()}))
def test_with_all_safeguards_it_passes(whole: Path, test: str) -> None:
    done = run_test(whole, test)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.crash
@pytest.mark.parametrize("name", SAFEGUARDS)
def test_without_a_safeguard_a_test_fails(tmp_path: Path, name: str) -> None:
    safeguard, folder = SAFEGUARDS[name], copied(tmp_path)
    path = folder / safeguard.file
    text = path.read_text(encoding="utf-8")
    assert text.count(safeguard.old) == 1, "the place has changed: name it anew"
    path.write_text(text.replace(safeguard.old, safeguard.new), encoding="utf-8")
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
    done = run_test(folder, safeguard.test)
    assert done.returncode == 1 and " failed" in done.stdout, done.stdout[-2000:]


def test_every_place_is_there() -> None:
    """Quick, so that a change of the program or of the page is noticed before `make crash`."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name, safeguard in SAFEGUARDS.items():
        assert (ROOT / safeguard.file).read_text(encoding="utf-8").count(safeguard.old) == 1, name
        assert f"| {name} | `{Path(safeguard.file).name}` | `{safeguard.test.partition('::')[2]}` |" in page, name
    assert f"all {len(SAFEGUARDS)} were seen" in page
