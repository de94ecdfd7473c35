"""The benchmark's pure parts: ratios with intervals, tables, counts of tokens; and docs/results.md is what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import contests  # noqa: E402 - the scripts of the benchmark lie beside each other, not in a package
import page  # noqa: E402
import race  # noqa: E402
import ratios  # noqa: E402
import speed  # noqa: E402
import workloads  # noqa: E402


def record(
    stamps: list[float], tokens: list[int], *, peak: float = 100.0, error: str | None = None, fed: int = 0
) -> dict[str, Any]:
    more = {"fed": fed} if fed else {}
    steps = [{"tokens": count, "rows": 4, "loss": 3.0 - i, **more} for i, count in enumerate(tokens)]
    return {"stamps": stamps, "steps": steps, "peak_mib": peak, "error": error}


def test_speed_counts_steps_after_those_skipped() -> None:
    one = record([10.0, 12.0, 13.0, 16.0], [100, 50, 70, 30])
    assert ratios.real_speed(one, 1) == pytest.approx((50 + 70 + 30) / 6)
    assert ratios.real_speed(one, 2) == pytest.approx((70 + 30) / 4)
    assert ratios.step_seconds(one, 2) == pytest.approx(2.0)


def test_ratio_is_the_median_of_pairs_and_its_interval_lies_within_them() -> None:
    middle, low, high = ratios.ratio([20, 30, 44, 50, 60], [10, 10, 20, 20, 40])
    assert middle == pytest.approx(2.2)  # of 2, 3, 2.2, 2.5, 1.5; the quotient of the medians is also 2.2
    assert (low, high) == (1.5, 3.0)
    assert ratios.ratio([1, 3, 8], [1, 1, 1])[0] == 3  # pairs, not medians of sides
    assert ratios.ratio([6, 2, 9], [3, 1, 4.5]) == (2, 2, 2)


def test_a_published_command_names_no_place_of_this_machine() -> None:
    given = ["--runs", "5", "--cache", "/here", "--data=/there", "--set", "a.b=1", "--data", "x"]
    assert speed.without_places(given) == ["--runs", "5", "--set", "a.b=1"]


def test_interval_narrows_with_the_number_of_pairs() -> None:
    few, many = ([1.0 + 0.1 * (i % 5) for i in range(n)] for n in (5, 200))
    widths = [high - low for _, low, high in (ratios.ratio(x, [1.0] * len(x)) for x in (few, many))]
    assert widths[0] == pytest.approx(0.4)
    assert widths[1] <= 0.2


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])])
def test_rounds_must_pair_up(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="each round must have one of each"):
        ratios.ratio(ours, theirs)


def rounds() -> list[dict[str, dict[str, Any]]]:
    return [
        {
            "ftune lora fp32": record([2.0, 3.0, 4.0], [90, 100, 100], peak=50),
            "hf lora fp32 2x8": record([4.0, 8.0, 12.0], [90, 100, 100], peak=200, fed=150),
            "trl lora fp32 1x5": record([], [], error="a traceback\nValueError: bf16 | is not here"),
        }
        for _ in range(3)
    ]


def test_tokens_read_are_those_of_the_data_where_they_are_known() -> None:
    one = {**record([1.0, 2.0], [30, 40]), "events": [{"event": "model"}]}
    assert ratios.tokens_read(one) == 70
    assert ratios.tokens_read({**one, "events": [{"event": "data", "tokens": 90}]}) == 90


def test_summary_compares_the_first_with_all_and_keeps_failures() -> None:
    ours, hf, trl = ratios.summary(rounds(), "ftune lora fp32", 1)
    assert ours["tokens_per_second"] == 100 and "ratios" not in ours
    assert hf["tokens_per_second"] == 25 and hf["runs"] == 3
    assert hf["ratios"]["tokens_per_second"] == (4, 4, 4)
    assert hf["ratios"]["peak_mib"] == (0.25, 0.25, 0.25)
    assert hf["ratios"]["first_step_seconds"] == (0.5, 0.5, 0.5)
    assert hf["padding"] == pytest.approx(1 - 290 / 450)
    assert hf["losses"] == [3.0, 1.0] and hf["rows_per_step"] == 4
    assert trl["runs"] == 0 and "ValueError" in trl["error"] and "ratios" not in trl


def test_a_failure_in_one_round_leaves_the_others_and_is_named() -> None:
    three = rounds()
    three[1]["hf lora fp32 2x8"] = record([], [], error="exit code -9: ")
    _, hf, _ = ratios.summary(three, "ftune lora fp32", 1)
    assert hf["runs"] == 2 and hf["error"] == "exit code -9: "
    assert "then failed: exit code -9:" in ratios.table([hf])


def test_table_shows_every_entrant_in_cells_of_equal_number() -> None:
    text = ratios.table(ratios.summary(rounds(), "ftune lora fp32", 1))
    lines = text.splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {12}
    assert "| hf lora fp32 2x8 | 3 | 25 | 4.00x (4.00 to 4.00) | 4.0 | 36% | 200 | 0.25x" in lines[3]
    assert "failed: ValueError: bf16 / is not here" in lines[4]


@pytest.mark.parametrize(
    ("value", "direction", "said"),
    [(2.1, "at least", "goal"), (1.7, "at least", "required"), (1.2, "at least", "missed"),
     (1.2, "at most", "goal"), (1.7, "at most", "required"), (2.1, "at most", "missed")],
)  # fmt: skip
def test_verdict(value: float, direction: str, said: str) -> None:
    required, goal = (1.5, 2.0) if direction == "at least" else (2.0, 1.5)
    assert page.verdict(value, direction, required, goal) == said


def test_micro_batches_make_a_step_of_the_batch_size() -> None:
    hf = race.Entry("hf", "lora", "fp32")
    assert [(c.micro, c.accumulation) for c in contests.choices(hf, 16)] == [(2, 8), (1, 16), (4, 4)]
    assert all(c.micro * c.accumulation == 32 for c in contests.choices(hf, 32))
    assert contests.choices(race.Entry("ftune", "lora", "fp32"), 16) == [race.Entry("ftune", "lora", "fp32")]


def test_contests_do_not_repeat_themselves() -> None:
    kinds, both = list(contests.KINDS), ["W1", "W2"]
    names = [c.name for c in contests.contests(kinds, both, contests.PEERS, "fp32", 16)]
    assert names == ["lora W1", "lora W2", "full W1", "qlora W1"]
    names = [c.name for c in contests.contests(kinds, both, contests.PEERS, "bf16", 16)]
    assert names == ["lora W1", "lora W2", "fp32 W1", "full W1", "qlora W1"]


def test_lines_are_read_whole_and_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert race._new_lines(file, 0) == ([], 0)
    file.write_text('{"event": "step"}\n{"event"', encoding="utf-8")
    lines, seen = race._new_lines(file, 0)
    assert lines == [{"event": "step"}] and seen == 18
    assert race._new_lines(file, seen) == ([], 18)
    file.write_text('{"event": "step"}\n{"event": "end"}\n', encoding="utf-8")
    assert race._new_lines(file, seen) == ([{"event": "end"}], 35)


def test_rows_and_their_tokens(tmp_path: Path) -> None:
    corpus = ["the ship sails over the sea and the moon is high above the mast of the ship. " * 40]
    tokenizer = workloads.make_tokenizer(corpus, 300)
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids([workloads.PAD, workloads.START, workloads.END]) == [0, 1, 2]
    rows = [{"messages": chat} for chat in workloads.make_rows(tokenizer, corpus, 5)]
    assert [chat["messages"] for chat in rows] == list(workloads.make_rows(tokenizer, corpus, 5))
    tokenizer.save_pretrained(tmp_path)
    lengths = [len(workloads._rendered(tokenizer, *(turn["content"] for turn in row["messages"]))) for row in rows]
    assert workloads.count_tokens(tmp_path, rows) == sum(lengths)
    assert max(lengths) <= workloads.LONGEST


def test_peers_read_the_rows_in_the_order_of_ftune() -> None:
    from ftune.data.order import window
    from ftune.data.pack import Cut

    rows = [{"number": i} for i in range(10)]

    class Fake:
        def __init__(self, number: int) -> None:
            self.number, self.num_tokens, self.num_targets = number, 1, 1

    taken = window([Fake(i) for i in range(10)], 1, batch_size=4, cut=Cut(4), seed=0)  # type: ignore[arg-type]
    ordered = race.ordered_rows(rows)
    assert sorted(row["number"] for row in ordered) == list(range(10))
    assert {e.number for e in taken.micro_batches[0]} == {row["number"] for row in ordered[4:8]}  # type: ignore[attr-defined]


def kept(**changes: Any) -> dict[str, Any]:
    conditions = {"threads": 2, "dtype": "fp32", "allocator": "tcmalloc", "steps": 20, "batch_size": 16, "skip": 2}
    contest = {
        "kind": "lora", "workload": "W1", "tokens": 290, "search": [], "remarks": [], "rounds": 5, "date": "2026-01-01",
        "command": "python tests/bench/speed.py", "remark": "", "machine": {"processor": "P", "memory_gib": 24.0},
        "conditions": {**conditions, "settings": []}, "rows": ratios.summary(rounds(), "ftune lora fp32", 1), **changes,
    }  # fmt: skip
    return {"contests": [contest], "startup": {"ftune --help": [1.25, 1.2, 1.4]}, "versions": {"stock": {"trl": "1"}}}


def test_page_has_the_goals_that_were_measured() -> None:
    said = page.goal_rows(kept())
    assert ("real tokens a second, W1: ftune lora fp32 / hf lora fp32 2x8", "at least 2.5 / 3",
            "4.00 (4.00 to 4.00)", "goal") in said  # fmt: skip
    # of fp32 there is no contest of its own where everything is in fp32: LoRA's counts for both goals
    assert sum("tokens a second" in what for what, *_ in said) == 2
    assert said[-1] == ("`ftune --help` / bare imports", "at most 1.3", "1.25 (1.20 to 1.40)", "goal")
    assert not any("trl" in what for what, *_ in said), "a peer that failed has no ratio"


def test_page_says_what_is_wrong_with_a_measurement() -> None:
    assert "Fewer runs" not in page.page(kept()) and "Not the same work" not in page.page(kept())
    assert "Fewer runs or steps" in page.page(kept(rounds=4))
    assert "**Not the same work: x read 1 token.**" in page.page(kept(remarks=["x read 1 token"]))
    assert "hf 1x1 failed (no memory)" in page.page(kept(search=[{"name": "hf 1x1", "speed": 0, "error": "no memory"}]))


def test_section_is_put_between_its_marks_only() -> None:
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    assert page.with_section(text, "new\n") == f"before\n{page.BEGIN}\n\nnew\n\n{page.END}\nafter\n"
    with pytest.raises(ValueError, match="once each"):
        page.with_section("no marks", "new")


def test_results_page_is_what_the_kept_numbers_say() -> None:
    found = json.loads(page.KEPT.read_text(encoding="utf-8"))
    results = page.RESULTS.read_text(encoding="utf-8")
    assert page.with_section(results, page.page(found)) == results, (
        "run: python tests/bench/speed.py --from RAW --publish"
    )
