"""ftune beside other trainers on the same rows: speed, memory and time to the first step, in runs that take turns.

    python tests/bench/speed.py                  # everything: hours, on a machine that does nothing else
    python tests/bench/speed.py --quick          # does it work? a small workload, few steps, numbers to throw away
    python tests/bench/speed.py --check          # do packed rows of the peers see each other?
    python tests/bench/speed.py --from RAW.json ...  # the tables of benchmarks that are done, or were cut

Makes the workloads, sets each peer up in an environment of its own, finds each peer's best micro-batch in a short
trial, and runs everyone in turn. All of it lies under `.bench/` of the checkout; every round is added to
`.bench/results/` as soon as it ends. With `--publish`, the summary goes to tests/bench/speed.json and its tables to
docs/results.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import contests as program
import page
import startup
from contests import Contest
from environments import PINS, InstallError, find_tcmalloc, python_of, versions_of
from race import ENVIRONMENT, OWN_PYTHON, ROOT, Conditions, Entry, ordered_rows, run
from ratios import real_speed, summary, table, tokens_read
from workloads import SHAPES, build, count_tokens, read_rows

QUICK = {"workloads": "W1", "contests": "lora", "runs": 2, "steps": 2, "skip": 1, "batch_size": 4, "search_steps": 0}
START_TOKEN, PAD_TOKEN = "<|im_start|>", "<|endoftext|>"


def options(words: list[str]) -> argparse.Namespace:
    """Every choice, with its default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"other defaults: {QUICK}")
    parser.add_argument("--check", action="store_true", help="only look whether packed rows see each other")
    parser.add_argument("--from", dest="raw", type=Path, nargs="+", help="raw results to make tables of, without a run")
    parser.add_argument("--publish", action="store_true", help="write tests/bench/speed.json and docs/results.md")
    parser.add_argument("--remark", default="", help="a sentence for the page, such as what else ran")
    parser.add_argument("--workloads", default="W1,W2", help="W1 (28M), W2 (135M)")
    parser.add_argument("--contests", default="lora,fp32,full,qlora,startup")
    parser.add_argument("--peers", default="hf,trl,llamafactory")
    parser.add_argument("--runs", type=int, default=5, help="rounds in which everyone runs once")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps that count in each run")
    parser.add_argument("--skip", type=int, default=2, help="optimizer steps before them that do not")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of an optimizer step; a multiple of 4")
    parser.add_argument("--pack-length", type=int, default=512, help="tokens of a pack of the peers that pack")
    parser.add_argument("--search-steps", type=int, default=2, help="steps of the trial of a micro-batch; 0: none")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto", help="auto: what is fast here")
    parser.add_argument("--allocator", choices=["tcmalloc", "system"], default="tcmalloc", help="of everyone")
    parser.add_argument("--threads", type=int, default=0, help="cores and threads of everyone; 0: all there are")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a run has failed")
    parser.add_argument("--set", action="append", default=[], help="section.key=value for the recipe of ftune")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench", help="environments, workloads, raw results")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the reference sets")
    if "--quick" in words:
        parser.set_defaults(**QUICK)
    asked = parser.parse_args(words)
    for name in ("workloads", "contests", "peers"):
        setattr(asked, name, [word for word in getattr(asked, name).split(",") if word])
    if asked.skip < 1:
        parser.error("--skip: at least 1, since the first step holds the start")
    if asked.batch_size % 4:
        parser.error("--batch-size: a multiple of 4, so that each micro-batch of a peer divides it")
    if unknown := set(asked.workloads) - set(SHAPES) | set(asked.peers) - set(program.PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join((*SHAPES, *program.PEERS))}")
    asked.cache = asked.cache.absolute()
    return asked


class Bench:
    """The options, what was found on this machine, and the results so far, which are on disk after every run."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from ftune.facts import look_at_machine

        self.asked = asked
        cores = sorted(os.sched_getaffinity(0))
        machine = look_at_machine(ROOT)
        self.cores = tuple(cores[: asked.threads or None])
        self.dtype = {"auto": "bf16" if machine.fast_bf16 else "fp32"}.get(asked.dtype, asked.dtype)
        self.preload = find_tcmalloc(asked.cache) if asked.allocator == "tcmalloc" else None
        if asked.allocator == "tcmalloc" and self.preload is None:
            sys.exit("tcmalloc was not found and could not be fetched. Install it, or add --allocator system.")
        self.pythons: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        stamp = time.strftime("%Y-%m-%dT%H%M%S")
        self.raw_file = asked.cache / "results" / f"{stamp}.json"
        self.raw: dict[str, Any] = {
            "date": stamp[:10],
            "command": shlex.join(["python", "tests/bench/speed.py", *without_places(sys.argv[1:])]),
            "remark": asked.remark,
            "machine": {"processor": _processor(), "memory_gib": machine.memory_bytes / 2**30},
            "conditions": {
                "threads": len(self.cores), "dtype": self.dtype, "batch_size": asked.batch_size, "runs": asked.runs,
                "allocator": "the system's" if self.preload is None else f"tcmalloc ({self.preload.resolve().name})",
                "steps": asked.steps, "skip": asked.skip, "settings": asked.set,
            },
            "versions": {}, "startup": {}, "contests": [],
        }  # fmt: skip

    def save(self) -> None:
        self.raw_file.parent.mkdir(parents=True, exist_ok=True)
        self.raw_file.write_text(json.dumps(self.raw), encoding="utf-8")

    def install(self) -> None:
        """Make the environments; one that fails is told of, and its peers fail with that error."""
        wanted = {ENVIRONMENT[peer] for peer in self.asked.peers}
        self.raw["versions"]["ftune"] = versions_of(OWN_PYTHON)
        for name in (name for name in PINS if name in wanted):
            _say(f"environment {name}")
            try:
                self.pythons[name] = python_of(name, self.asked.cache)
                self.raw["versions"][name] = versions_of(self.pythons[name])
            except InstallError as error:
                self.failures[name] = str(error)
                _say(f"environment {name} failed: {error}")

    def conditions(self, workload: str, steps: int) -> Conditions:
        """Make the workload and the file of rows for so many steps: one epoch, in ftune's order."""
        from transformers import AutoTokenizer

        folder = build(workload, self.asked.cache / "workloads", self.asked.data)
        rows = read_rows(folder, steps * self.asked.batch_size)
        files = [self.asked.cache / f"{workload}-{name}.jsonl" for name in ("rows", "ordered")]
        for file, which in zip(files, (rows, ordered_rows(rows)), strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in which), encoding="utf-8")
        pad, start = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([PAD_TOKEN, START_TOKEN])
        return Conditions(folder, *files, self.asked.batch_size, steps, self.asked.pack_length, pad, start, self.cores,
                          self.preload, self.asked.timeout, tuple(self.asked.set))  # fmt: skip

    def once(self, entry: Entry, conditions: Conditions, *, check: bool = False) -> dict[str, Any]:
        """One run, or the error for which its environment is not there."""
        environment = ENVIRONMENT.get(entry.tool)
        if environment in self.failures:
            return {"name": entry.name, "error": f"not installed: {self.failures[environment]}"}
        python = OWN_PYTHON if environment is None else self.pythons[environment]
        record = run(entry, conditions, python, self.asked.cache / "scratch", check=check)
        skip = min(self.asked.skip, conditions.steps - 1)
        fine = record["error"] is None and not check
        said = f"{real_speed(record, skip):,.0f} tokens/s" if fine else record["error"] or record["events"][-1]
        _say(f"{entry.name}: {said} in {record['seconds']:.0f} s")
        return record

    def contest(self, contest: Contest) -> None:
        """Trials of the peers' micro-batches, then rounds, every second one in reverse."""
        asked = self.asked
        kept: dict[str, Any] = {"kind": contest.kind, "workload": contest.workload, "search": [], "rounds": [],
                                "remarks": []}  # fmt: skip
        self.raw["contests"].append(kept)
        entries = [self.best(entry, contest.workload, kept["search"]) for entry in contest.entries]
        conditions = self.conditions(contest.workload, asked.skip + asked.steps)
        rows = read_rows(conditions.workload, conditions.steps * asked.batch_size)
        kept["tokens"] = count_tokens(conditions.workload, rows)
        for number in range(asked.runs):
            _say(f"{contest.name}: round {number + 1} of {asked.runs}")
            turn = entries if number % 2 == 0 else entries[::-1]
            records = {entry.name: self.once(entry, conditions) for entry in turn}
            kept["rounds"].append({entry.name: records[entry.name] for entry in entries})
            for name, record in records.items():
                if record["error"] is None and (read := tokens_read(record)) != kept["tokens"]:
                    kept["remarks"].append(f"{name} read {read} tokens of {kept['tokens']} in round {number + 1}")
                    _say(kept["remarks"][-1])
            self.save()

    def best(self, entry: Entry, workload: str, search: list[dict[str, Any]]) -> Entry:
        """The micro-batch of `entry` that is fastest in a short run; the first of them if none works."""
        choices = program.choices(entry, self.asked.batch_size)
        if self.asked.search_steps == 0 or len(choices) == 1:
            return entry
        conditions = self.conditions(workload, 1 + self.asked.search_steps)
        speeds = {}
        for choice in choices:
            record = self.once(choice, conditions)
            speeds[choice] = real_speed(record, 1) if record["error"] is None else 0.0
            search.append({"name": choice.name, "speed": speeds[choice], "error": record["error"]})
            self.save()
        return max(choices, key=lambda choice: speeds[choice])

    def check(self) -> None:
        """Whether packed rows see each other, for each peer that packs."""
        conditions = self.conditions(self.asked.workloads[0], 2)
        for entry in program.entries_of("lora", self.dtype, self.asked.peers, self.asked.batch_size):
            if entry.tool in ("trl", "llamafactory"):
                self.once(entry, conditions, check=True)


def compact(raws: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept in the repository: medians, ratios and intervals of one benchmark, or of several done in parts."""
    contests, started, versions = [], {}, {}
    for raw in raws:
        started |= raw["startup"]
        versions |= raw["versions"]
        for contest in (contest for contest in raw["contests"] if contest["rounds"]):
            first = next(iter(contest["rounds"][0]))
            rows = summary(contest["rounds"], first, raw["conditions"]["skip"])
            kept = {key: contest[key] for key in ("kind", "workload", "tokens", "search", "remarks")}
            of_raw = {key: raw[key] for key in ("date", "command", "remark", "machine", "conditions")}
            contests.append({**kept, **of_raw, "rounds": len(contest["rounds"]), "rows": rows})
    return {"contests": contests, "startup": started, "versions": versions}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def without_places(arguments: list[str]) -> list[str]:
    """Arguments as others would give them: where the cache and the reference sets lie here is of no use to them."""
    pairs = itertools.pairwise(["", *arguments])
    return [word for before, word in pairs if not {before, word.partition("=")[0]} & {"--cache", "--data"}]


def main() -> None:
    """Run what was asked for and print the tables."""
    asked = options(sys.argv[1:])
    if asked.raw is None:
        bench = Bench(asked)
        bench.install()
        if asked.check:
            bench.check()
            return
        if "startup" in asked.contests:
            bench.raw["startup"] = startup.measure()
        kinds = [kind for kind in asked.contests if kind != "startup"]
        for contest in program.contests(kinds, asked.workloads, asked.peers, bench.dtype, asked.batch_size):
            bench.contest(contest)
        bench.save()
        _say(f"raw results: {bench.raw_file}")
        raws = [bench.raw]
    else:
        raws = [json.loads(file.read_text(encoding="utf-8")) for file in asked.raw]
    found = compact(raws)
    for contest in found["contests"]:
        print(f"\n{contest['kind']} {contest['workload']}\n{table(contest['rows'])}")
    print()
    print("\n".join(" | ".join(row) for row in page.goal_rows(found)))
    if asked.publish:
        page.KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        results = page.RESULTS.read_text(encoding="utf-8")
        page.RESULTS.write_text(page.with_section(results, page.page(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
