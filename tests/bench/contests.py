"""Which trainers meet over what, and the micro-batches that each peer may choose from before it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from race import Entry

KINDS = ("lora", "fp32", "full", "qlora")
PEERS = ("hf", "trl", "llamafactory")
MICRO_BATCHES = {"hf": ((2, 8), (1, 16), (4, 4)), "trl": ((1, 5), (5, 1)), "llamafactory": ((1, 5), (5, 1))}
"""Rows, or packs of 512 tokens, and how many of them make an optimizer step: 16 rows, or packs that hold about as many.
The fastest of a short trial takes part."""


@dataclass(frozen=True)
class Contest:
    """Args:
    kind: of `KINDS`.
    workload: of `workloads.SHAPES`.
    entries: the first is compared with all others.
    """

    kind: str
    workload: str
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.kind} {self.workload}"


def contests(
    kinds: Sequence[str], workloads: Sequence[str], peers: Sequence[str], dtype: str, batch_size: int
) -> list[Contest]:
    """All contests asked for. LoRA in the machine's type is run on every workload, the others on the first.

    Args:
        kinds: of `KINDS`; `fp32` is left out where the machine's type is fp32, since `lora` is the same then.
        workloads: of `workloads.SHAPES`.
        peers: of `PEERS`.
        dtype: fp32 or bf16.
        batch_size: rows of an optimizer step.
    """
    found = []
    first = workloads[0]
    for kind in kinds:
        if kind == "lora":
            entries = entries_of("lora", dtype, peers, batch_size)
            found += [Contest(kind, workload, entries) for workload in workloads]
        elif kind == "fp32" and dtype != "fp32":
            found.append(Contest(kind, first, entries_of("lora", "fp32", [p for p in peers if p == "hf"], batch_size)))
        elif kind == "full":
            found.append(Contest(kind, first, entries_of("full", dtype, [p for p in peers if p == "hf"], batch_size)))
        elif kind == "qlora":
            found.append(Contest(kind, first, (Entry("ftune", "qlora", dtype), Entry("ftune", "lora", dtype))))
    return found


def entries_of(method: str, dtype: str, peers: Sequence[str], batch_size: int) -> tuple[Entry, ...]:
    """ftune, and each peer with the first of its micro-batches."""
    return (Entry("ftune", method, dtype), *(choices(Entry(peer, method, dtype), batch_size)[0] for peer in peers))


def choices(entry: Entry, batch_size: int) -> list[Entry]:
    """The micro-batches that a peer may take, made to fit another batch size than 16; ftune chooses by itself."""
    found = []
    for micro, times in MICRO_BATCHES.get(entry.tool, ()):
        accumulation = max(1, round(times * batch_size / 16)) if times > 1 else 1
        whole = micro if times > 1 else max(1, round(micro * batch_size / 16))
        found.append(replace(entry, micro=whole, accumulation=accumulation))
    return found or [entry]
