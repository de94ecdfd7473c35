"""`ftune train --profile`: a Chrome trace of a few steps, and a table of where their time went.

The first steps are left out: they warm up. Numbers of the run do not change, but profiled steps are slower, and on CUDA
the device is waited for at the borders of each kind of work, so that its time is counted where it was asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ftune.device import device_name
from ftune.flops import Cost, cost_of, peak_flops, readable_flops
from ftune.loop import StepResult
from ftune.meter import Meter
from ftune.session import Run

if TYPE_CHECKING:
    import torch

SKIPPED = 2
"""Steps before the profiler is started, which then warms up for another one."""
SHOWN = 15
"""Operators in the table."""
KINDS = ("data", "forward", "backward", "clipping", "optimizer", "eval", "save")
_MARK = "ftune "
"""Before the names of our own spans in the trace."""


def meter_of(run: Run, steps: int | None) -> Meter:
    """What counts the operations of a run, and profiles `steps` of the steps it has left, where they are asked for."""
    plan = run.plan
    cost = cost_of(run.model, run.loaded.recipe.objective.encoding, run.method.frozen_body(run.model))
    peak = peak_flops(device_name(plan.device), plan.precision)
    peak = None if peak is None else peak * plan.num_processes
    if steps is None or not run.leads:
        return Meter(cost, peak)
    return Profiler(cost, peak, steps=steps, left=plan.steps - run.state.step, device=plan.device)


def publish_profile(run: Run, peak_memory: int) -> None:
    """`profile/` in the run folder, and the table on the screen."""
    profiler = run.meter
    if not isinstance(profiler, Profiler):
        raise AssertionError("only a profiler has a profile")
    table = profiler.table(peak_memory, run.plan.memory_bytes)
    run.store.publish("profile", lambda folder: profiler.write(folder, table), {"step": run.state.step})
    run.listener.note(f"{to_text(table)}\nthe trace is {run.folder / 'profile' / 'trace.json.gz'}")


class Profiler(Meter):
    """A meter with a clock, for `steps` steps of the `left` ones. Use as a context manager around the loop."""

    def __init__(self, cost: Cost, peak_flops: float | None, *, steps: int, left: int, device: str) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        super().__init__(cost, peak_flops)
        self.device = device
        self.warm_up = min(1, max(0, left - 1))
        self.first = min(SKIPPED, max(0, left - self.warm_up - steps)) + self.warm_up
        self.last = self.first + max(1, min(steps, left - self.first))
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        wait, active = self.first - self.warm_up, self.last - self.first
        plan = schedule(wait=wait, warmup=self.warm_up, active=active, repeat=1) if self.first else None
        self.profile = profile(activities=activities, schedule=plan, profile_memory=True, acc_events=True)
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.results: list[StepResult] = []
        self.done, self.wall, self.began = 0, 0.0, 0.0

    def __enter__(self) -> Self:
        self.profile.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.running:
            self.done = self.last
            self.profile.stop()

    @property
    def running(self) -> bool:
        """Whether steps are left to profile."""
        return self.done < self.last

    def span(self, name: str) -> AbstractContextManager[object]:
        """Time the work, where it is in a profiled step."""
        return self._timed(name) if self.first <= self.done < self.last else nullcontext()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        from torch.profiler import record_function

        self._wait()
        started = time.perf_counter()
        with record_function(_MARK + name):
            yield
            self._wait()
        self.seconds[name] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def after_step(self, result: StepResult, *, last: bool) -> bool:
        """Count a step, with all that followed it. True after the last one that is profiled: then there is a table."""
        if not self.running:
            return False
        if self.done >= self.first:
            self.results.append(result)
        self.done += 1
        if self.done == self.first:
            self.began = time.perf_counter()
        if self.running and not (last and self.results):
            self.profile.step()
            return False
        self.done = self.last
        self.wall = time.perf_counter() - self.began
        self.profile.stop()
        return True

    def table(self, peak_memory: int, planned_memory: dict[str, int]) -> dict[str, Any]:
        """Where the time of the profiled steps went, in seconds, and their memory, in bytes."""
        steps, seconds = len(self.results), {name: total for name, total in self.seconds.items() if total > 0}
        seconds["other"] = max(0.0, self.wall - sum(seconds.values()))
        flops, stepping = sum(r.flops for r in self.results), sum(r.seconds for r in self.results)
        return {
            "first_step": self.results[0].step,
            "last_step": self.results[-1].step,
            "device": self.device,
            "seconds_per_step": self.wall / steps,
            "tokens_per_second": sum(r.tokens for r in self.results) / stepping,
            "flops_per_second": flops / stepping,
            "mfu": self.mfu(flops, stepping),
            "kinds": {name: {"seconds": s / steps, "share": s / self.wall} for name, s in seconds.items()},
            "operators": _operators(self.profile, self.device),
            "peak_memory_bytes": peak_memory,
            "planned_memory_bytes": planned_memory,
        }

    def write(self, folder: Path, table: dict[str, Any]) -> None:
        """`trace.json.gz` for chrome://tracing or https://ui.perfetto.dev, `table.json` and `table.txt`."""
        self.profile.export_chrome_trace(str(folder / "trace.json.gz"))
        (folder / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        (folder / "table.txt").write_text(to_text(table), encoding="utf-8")


def _operators(profile: torch.profiler.profile, device: str) -> list[dict[str, Any]]:
    """The operators that took longest by themselves, without what they called."""
    on_device = device == "cuda"
    events = [e for e in profile.key_averages() if not e.key.startswith((_MARK, "ProfilerStep"))]
    own = {e.key: float(e.self_device_time_total if on_device else e.self_cpu_time_total) / 1e6 for e in events}
    total = max(sum(own.values()), 1e-12)
    longest = sorted(events, key=lambda e: -own[e.key])[:SHOWN]
    return [
        {
            "name": e.key,
            "calls": e.count,
            "seconds": own[e.key],
            "share": own[e.key] / total,
            "memory_bytes": int(e.self_device_memory_usage if on_device else e.self_cpu_memory_usage),
        }
        for e in longest
    ]


def to_text(table: dict[str, Any]) -> str:
    """The table for people."""
    mfu = "" if table["mfu"] is None else f", {table['mfu']:.1%} of the device's peak"
    lines = [
        f"profile of steps {table['first_step']} to {table['last_step']}: {table['seconds_per_step']:.3f} s a step, "
        f"{table['tokens_per_second']:,.0f} tokens/s, {readable_flops(table['flops_per_second'])}{mfu}",
        "",
        f"{'where':<12}{'s a step':>10}{'share':>8}",
        *(f"{name:<12}{kind['seconds']:>10.4f}{kind['share']:>8.1%}" for name, kind in table["kinds"].items()),
        "",
        f"{'operator, without what it calls':<44}{'calls':>8}{'seconds':>10}{'share':>8}{'memory MiB':>12}",
        *(
            f"{op['name'][:43]:<44}{op['calls']:>8}{op['seconds']:>10.4f}{op['share']:>8.1%}"
            f"{op['memory_bytes'] / 2**20:>12,.1f}"
            for op in table["operators"]
        ),
        "",
        f"peak memory {table['peak_memory_bytes'] / 2**20:,.0f} MiB; the plan's estimate is "
        + ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in table["planned_memory_bytes"].items() if size),
    ]
    return "\n".join(lines) + "\n"
