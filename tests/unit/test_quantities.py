"""Quantities written as text: what is read, what is refused, and that a range of rows stays a range."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.quantities import MAX_COUNT, Duration, Slice, is_share, parse_share, steps_of


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("3 epochs", 3.0, "epochs"),
        ("1 epoch", 1.0, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("2.25 epoch", 2.25, "epochs"),
        ("500 steps", 500.0, "steps"),
        ("1 step", 1.0, "steps"),
        ("500.0 steps", 500.0, "steps"),
        ("2_000_000 tokens", 2_000_000.0, "tokens"),
        ("1 token", 1.0, "tokens"),
        ("  3   epochs ", 3.0, "epochs"),
        (f"{MAX_COUNT} tokens", float(MAX_COUNT), "tokens"),
    ],
)
def test_durations(text: str, count: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(count, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "3", "epochs", "3epochs", "3 lightyears", "three epochs", "-1 epochs", "+3 epochs", "0 epochs",
        "0.0 epochs", "0 steps", "0.5 steps", "1.5 tokens", "1e3 steps", ".5 epochs", "5. epochs", "_1 steps",
        "3 Epochs", "3 epochs 2", "3 epochs\n4 steps", "nan epochs", "inf steps", "½ epochs", "٣ epochs", "10% steps",
    ],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="^expected .*, received ") as caught:
        Duration.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("unit", ["epochs", "steps", "tokens"])
@pytest.mark.parametrize("count", [str(MAX_COUNT + 1), "9" * 400, "9" * 5000])
def test_a_duration_without_end_is_refused(count: str, unit: str) -> None:
    """400 digits are infinity as a float, for which `int` raises what pydantic does not catch."""
    with pytest.raises(ValueError, match=r"^expected at most 1e\+15, received"):
        Duration.parse(f"{count} {unit}")


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("100%", 1.0), ("0.5%", 0.005), ("12.5 %", 0.125), (" 3% ", 0.03), ("099%", 0.99)],
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share, rel=1e-15)
    assert is_share(text)


@pytest.mark.parametrize(
    "text", ["", "%", "5", "0%", "0.0%", "100.1%", "101%", "-5%", "5%%", "5%x", "1e1%", "９%", "9" * 400 + "%"]
)
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="^expected a share such as '5%', received"):
        parse_share(text)


@pytest.mark.parametrize("value", [5, 0, 0.05, None, True, ["5%"], "5", "5% of", "data/5%/train.jsonl"])
def test_other_values_are_no_share(value: object) -> None:
    assert not is_share(value)


@pytest.mark.parametrize(
    ("cadence", "total", "steps"),
    [
        (7, 100, 7),
        (0, 100, 0),
        (200, 100, 200),
        ("10%", 100, 10),
        ("10%", 104, 10),
        ("10%", 106, 11),
        ("1%", 10, 1),
        ("0.001%", 10, 1),
        ("100%", 37, 37),
        ("50%", 0, 1),
    ],
)
def test_cadences_become_steps(cadence: int | str, total: int, steps: int) -> None:
    assert steps_of(cadence, total) == steps


@pytest.mark.parametrize(
    ("text", "rows", "name", "bounds"),
    [
        ("train", 10, "train", (0, 10)),
        ("", 10, "", (0, 10)),
        ("train[:4]", 10, "train", (0, 4)),
        ("train[:400]", 10, "train", (0, 10)),
        ("test[4:]", 10, "test", (4, 10)),
        ("[2:5]", 10, "", (2, 5)),
        ("[:]", 10, "", (0, 10)),
        ("[0:1]", 10, "", (0, 1)),
        ("[10%:20%]", 10, "", (1, 2)),
        ("train[50%:]", 5, "train", (2, 5)),
        ("[:100%]", 7, "", (0, 7)),
        ("[150%:]", 7, "", (7, 7)),
        ("[8:50%]", 10, "", (8, 8)),
        ("[20:]", 10, "", (10, 10)),
        ("train-v1.1[:3]", 10, "train-v1.1", (0, 3)),
        (" train[:3] ", 10, "train", (0, 3)),
        ("train[:3]", 0, "train", (0, 0)),
    ],
)
def test_slices(text: str, rows: int, name: str, bounds: tuple[int, int]) -> None:
    part = Slice.parse(text)
    assert part.name == name
    assert part.bounds(rows) == bounds


@pytest.mark.parametrize(
    "text",
    ["train[5]", "train[", "train]", "[1:2:3]", "[-3:]", "[a:b]", "[1.5:2]", "train[:4] x", "a b", "train/x",
     "[5%%:]", "[:" + "9" * 5000 + "]"],
)  # fmt: skip
def test_what_is_no_slice(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected 'train', 'train\[:400\]' or '\[10%:20%\]', received"):
        Slice.parse(text)


@pytest.mark.parametrize("text", ["[5:2]", "[5:5]", "[:0]", "[:0%]", "[0:0]", "[20%:10%]", "train[50%:50%]", "[05:5]"])
def test_a_slice_that_is_always_empty_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^expected a range that starts before it stops, received"):
        Slice.parse(text)


BOUNDS = st.one_of(st.just(""), st.integers(0, 300).map(str), st.integers(0, 150).map("{}%".format))


@settings(deadline=None)
@given(BOUNDS, BOUNDS, st.integers(0, 500))
def test_bounds_lie_within_the_rows(start: str, stop: str, rows: int) -> None:
    first, last = Slice("", start, stop).bounds(rows)
    assert 0 <= first <= last <= rows


@settings(deadline=None)
@given(st.integers(1, 99), st.integers(0, 10_000))
def test_complementary_shares_hold_every_row_once(percent: int, rows: int) -> None:
    below, above = Slice.parse(f"[:{percent}%]").bounds(rows), Slice.parse(f"[{percent}%:]").bounds(rows)
    assert below[0] == 0
    assert below[1] == above[0]
    assert above[1] == rows


@settings(deadline=None)
@given(
    st.one_of(
        st.text(), st.from_regex(r"[0-9_.]+ (epoch|step|token)s|[0-9.]+ ?%|\w*\[[0-9%]*:[0-9%]*\]", fullmatch=True)
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (Duration.parse, parse_share, Slice.parse):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).startswith("expected ")
