"""How memory of tensors on a CPU is asked for, so that little time goes into page faults.

A step frees and asks for the same large blocks again. The system hands them out in pages of 4 KiB, cleared and mapped
one by one. torch can ask for pages of 2 MiB instead, for blocks of at least that size, when `THP_MEM_ALLOC_ENABLE` is
set before it is imported. Results do not change: it is only memory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SWITCH = "THP_MEM_ALLOC_ENABLE"
"""Read by torch when it first asks for memory."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OTHER_ALLOCATORS = ("malloc", "hoard", "snmalloc")
"""Parts of the names of libraries that replace malloc, as `libtcmalloc.so`."""


def ask_for_huge_pages(environment: MutableMapping[str, str]) -> None:
    """Set the switch, unless the environment says something of allocators already. Call before torch is imported."""
    if sys.platform == "linux" and "torch" not in sys.modules and own_settings(environment) is None:
        environment[SWITCH] = "1"


def own_settings(environment: Mapping[str, str]) -> str | None:
    """The variable by which the user has chosen how memory is asked for; it wins. None where there is none."""
    preloaded = environment.get("LD_PRELOAD", "")
    if any(name in preloaded for name in OTHER_ALLOCATORS):
        return "LD_PRELOAD"
    tuned = "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
    named = (name for name in environment if name.startswith("MALLOC_") or name == SWITCH)
    return "GLIBC_TUNABLES" if tuned else next(named, None)


def look_at_allocator(environment: Mapping[str, str], huge_pages: Path = HUGE_PAGES) -> tuple[str, str]:
    """How this process asks for memory, and why: what `ftune plan` shows."""
    chosen = own_settings({name: value for name, value in environment.items() if name != SWITCH})
    if chosen is not None:
        return "the environment's", f"environment: {chosen} is set"
    if environment.get(SWITCH) != "1":
        return "pages of the system", f"{SWITCH} is not 1"
    try:
        allowed = huge_pages.read_text(encoding="ascii")
    except OSError:
        return "pages of the system", "this system has no huge pages"
    if "[never]" in allowed:
        return "pages of the system", f"huge pages are switched off in {huge_pages}"
    return "huge pages", f"{SWITCH}: blocks of 2 MiB and more are mapped in few page faults"
