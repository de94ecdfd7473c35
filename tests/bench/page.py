"""The section of docs/results.md about speed, made from the numbers of one benchmark in `speed.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratios import one_line, shown, table

KEPT = Path(__file__).parent / "speed.json"
RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
BEGIN, END = "<!-- written by `make bench` -->", "<!-- end of what `make bench` wrote -->"
MORE, LESS = "at least", "at most"
GOALS = (
    ("lora", "llamafactory", "tokens_per_second", MORE, 1.5, 2.0),
    ("lora", "hf", "tokens_per_second", MORE, 2.5, 3.0),
    ("lora", "trl", "tokens_per_second", MORE, 2.5, 3.0),
    ("full", "hf", "tokens_per_second", MORE, 3.0, 3.0),
    ("fp32", "hf", "tokens_per_second", MORE, 3.0, 3.0),
    ("lora", "llamafactory", "peak_mib", LESS, 1.0, 0.9),
    ("lora", "hf", "peak_mib", LESS, 0.8, 0.6),
    ("lora", "llamafactory", "first_step_seconds", LESS, 0.6, 0.6),
    ("qlora", "ftune lora", "step_seconds", LESS, 1.3, 1.3),
)
"""Contest, the one ftune is beside, measure, direction, required, goal."""
WORDS = {
    "tokens_per_second": "real tokens a second",
    "peak_mib": "peak memory",
    "first_step_seconds": "start of the process to the end of the first step",
    "step_seconds": "time of a step",
}
RECORDED = """\
Two goals are met by numbers recorded elsewhere on this page, not by this run: the second run of `feature_based` on
banking77 took 16 s, 0.004 of the 3,586 s of `full` (at most 0.02), and NF4 layers take 0.26 of their size in bf16 (at
most 0.35)."""


def goal_rows(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was wanted, the two limits, what was measured, and whether the limits are kept."""
    rows = []
    for kind, peer, measure, direction, required, goal in GOALS:
        for contest in found["contests"]:
            same = kind == "fp32" and contest["kind"] == "lora" and contest["conditions"]["dtype"] == "fp32"
            if contest["kind"] != kind and not same:
                continue
            for row in contest["rows"]:
                if not row["name"].startswith(peer) or "ratios" not in row:
                    continue
                interval = row["ratios"][measure]
                what = f"{WORDS[measure]}, {contest['workload']}: {contest['rows'][0]['name']} / {row['name']}"
                rows.append((what, f"{direction} {required:g} / {goal:g}", shown(interval, ""),
                             verdict(interval[0], direction, required, goal)))  # fmt: skip
    for name, interval in found.get("startup", {}).items():
        if name == "ftune --help":
            rows.append((f"`{name}` / bare imports", "at most 1.3", shown(interval, ""),
                         verdict(interval[0], LESS, 1.3, 1.3)))  # fmt: skip
    return rows


def verdict(value: float, direction: str, required: float, goal: float) -> str:
    """`goal`, `required` or `missed`, by the middle of the interval."""

    def reached(limit: float) -> bool:
        return value >= limit if direction == MORE else value <= limit

    return "goal" if reached(goal) else "required" if reached(required) else "missed"


def page(found: dict[str, Any]) -> str:
    """The section's text between its two marks."""
    if not found["contests"]:
        return "Not measured yet.\n"
    parts = ["Ratios are medians over pairs of runs, with 95% of 10,000 bootstrap draws of the pairs."]
    goals = ["| ftune / the other | required / goal | measured | reached |", "|---|---|---|---|"]
    goals += [f"| {' | '.join(row)} |" for row in goal_rows(found)]
    parts += ["\n".join(goals), RECORDED]
    for contest in found["contests"]:
        parts += [f"### {contest['kind']}, {contest['workload']}", how(contest), table(contest["rows"])]
        parts += [f"**Not the same work: {remark}.**" for remark in contest["remarks"]]
        if contest["search"]:
            tried = ", ".join(f"{one['name']} {outcome(one)}" for one in contest["search"])
            parts.append(f"Micro-batches of peers, tried before: {tried}.")
    versions = [
        f"| {name} | {', '.join(f'{k} {v}' for k, v in of.items())} |" for name, of in found["versions"].items()
    ]
    parts.append("\n".join(["| environment | versions |", "|---|---|", *versions]))
    return "\n\n".join(parts) + "\n"


def how(contest: dict[str, Any]) -> str:
    """On what, and how much of it, a contest was measured."""
    conditions, machine = contest["conditions"], contest["machine"]
    parts = [
        f"{contest['date']}. {machine['processor']}, {conditions['threads']} threads, {machine['memory_gib']:.0f} GiB; "
        f"{conditions['dtype']}; allocator of everyone: {conditions['allocator']}. Medians of {contest['rounds']} runs "
        f"in turn, {conditions['steps']} steps of {conditions['batch_size']} rows after {conditions['skip']} that do "
        f"not count. Command: `{contest['command']}`."
    ]
    if conditions["settings"]:
        parts.append(f"Recipe of ftune: {', '.join(conditions['settings'])}.")
    if contest["rounds"] < 5 or conditions["steps"] < 20:
        parts.append("**Fewer runs or steps than the goals ask for (5 and 20).**")
    return " ".join([*parts, contest["remark"]]).strip()


def outcome(search: dict[str, Any]) -> str:
    """Speed of a trial, or why there is none."""
    return f"{search['speed']:,.0f} tokens/s" if search["error"] is None else f"failed ({one_line(search['error'])})"


def with_section(results: str, section: str) -> str:
    """The page with what is between the marks replaced.

    Raises:
        ValueError: the page does not have the marks.
    """
    if results.count(BEGIN) != 1 or results.count(END) != 1:
        raise ValueError(f"docs/results.md must hold {BEGIN!r} and {END!r} once each")
    before, rest = results.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n{END}{rest.split(END)[1]}"
