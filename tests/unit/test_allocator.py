"""Memory is asked for in huge pages, where nobody chose otherwise, and the plan says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from facts import facts, plan_of

from ftune import allocator
from ftune.allocator import SWITCH, ask_for_huge_pages, look_at_allocator, own_settings


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, None),
        ({"PATH": "/bin", "LD_PRELOAD": "/lib/libfaketime.so"}, None),
        ({"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"}, "LD_PRELOAD"),
        ({"LD_PRELOAD": "/a.so:/usr/lib/libjemalloc.so.2"}, "LD_PRELOAD"),
        ({"LD_PRELOAD": "libmimalloc.so"}, "LD_PRELOAD"),
        ({"MALLOC_ARENA_MAX": "2"}, "MALLOC_ARENA_MAX"),
        ({"MALLOC_CONF": "thp:never"}, "MALLOC_CONF"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "GLIBC_TUNABLES"),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off"}, None),
        ({SWITCH: "0"}, SWITCH),
        ({SWITCH: "1"}, SWITCH),
    ],
)
def test_what_the_user_chose_is_kept(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], chosen: str | None
) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert own_settings(environment) == chosen
    after = dict(environment)
    ask_for_huge_pages(after)
    assert after == (environment | {SWITCH: "1"} if chosen is None else environment)


@pytest.mark.parametrize(("platform", "loaded"), [("darwin", False), ("win32", False), ("linux", True)])
def test_nothing_is_set_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch, platform: str, loaded: bool) -> None:
    monkeypatch.setattr(allocator.sys, "platform", platform)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    after: dict[str, str] = {}
    ask_for_huge_pages(after)
    assert after == {}


@pytest.mark.parametrize(
    ("environment", "system", "what", "why"),
    [
        ({SWITCH: "1"}, "always [madvise] never", "huge pages", SWITCH),
        ({SWITCH: "1"}, "[always] madvise never", "huge pages", SWITCH),
        ({SWITCH: "1"}, "always madvise [never]", "pages of the system", "switched off in"),
        ({SWITCH: "1"}, None, "pages of the system", "no huge pages"),
        ({SWITCH: "0"}, "always [madvise] never", "pages of the system", f"{SWITCH} is not 1"),
        ({}, "always [madvise] never", "pages of the system", f"{SWITCH} is not 1"),
        ({SWITCH: "1", "MALLOC_ARENA_MAX": "1"}, "[madvise]", "the environment's", "MALLOC_ARENA_MAX is set"),
        ({"LD_PRELOAD": "libtcmalloc.so"}, "[madvise]", "the environment's", "LD_PRELOAD is set"),
    ],
)
def test_what_is_said_of_it(
    tmp_path: Path, environment: dict[str, str], system: str | None, what: str, why: str
) -> None:
    if system is not None:
        (tmp_path / "enabled").write_text(system + "\n", encoding="ascii")
    said = look_at_allocator(environment, tmp_path / "enabled")
    assert said[0] == what and why in said[1]


def test_the_plan_says_it_of_a_cpu_only() -> None:
    plan = plan_of(facts(allocator=("huge pages", "because")))
    assert (plan.allocator, plan.sources["allocator"]) == ("huge pages", "because")
    plan = plan_of(facts(device="cuda", fast_bf16=True, allocator=("huge pages", "because")))
    assert (plan.allocator, plan.sources["allocator"]) == ("the device's own", "torch keeps the memory of cuda")


PROGRAM = """
import os
from ftune.cli.common import prepare_process
prepare_process(offline=True, verbose=False)
import torch
block = torch.ones(16 * 2**20)
text = open("/proc/self/smaps_rollup").read()
print(next(int(line.split()[1]) for line in text.splitlines() if line.startswith("AnonHugePages")))
print(float(block.sum()))
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").is_file()
    or not allocator.HUGE_PAGES.is_file()
    or "[madvise]" not in allocator.HUGE_PAGES.read_text(),
    reason="this system gives no huge pages on request",
)
@pytest.mark.parametrize(("own", "kibibytes"), [({}, range(32 * 1024, 2**30)), ({SWITCH: "0"}, range(16 * 1024))])
def test_torch_obeys(own: dict[str, str], kibibytes: range) -> None:
    """A block of 64 MiB lies in huge pages, or in none where the user says so."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in (SWITCH, "LD_PRELOAD", "GLIBC_TUNABLES") and not name.startswith("MALLOC_")
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | own, capture_output=True, text=True, check=True, timeout=300
    )
    huge, total = ran.stdout.split()
    assert int(huge) in kibibytes
    assert float(total) == 16 * 2**20
