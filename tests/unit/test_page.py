"""Building blocks of pages: nothing of a user's is markup, nothing is loaded, every plot has its numbers as text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import HOSTILE

import ftune
from ftune.page import document, folded, heading, inline_json, items, number, paragraph, preformatted, table
from ftune.page_plots import (
    MOST_POINTS,
    Interval,
    Series,
    bars,
    confusion_matrix,
    intervals,
    line_plot,
    running_mean,
    thinned,
)

UPLOT = Path(ftune.__file__).parent / "assets" / "uplot"
VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Elements, attributes and texts of a page; fails where tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._open = "", [], list[str]()
        self.feed(page)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.text += data

    @property
    def policy(self) -> str:
        return next(str(a["content"]) for tag, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")


def everything(text: str) -> list[str]:
    return [
        heading(text),
        paragraph(text),
        items([text]),
        preformatted(text),
        folded(text, table((text, text), [(text, 1.0), (text, None)], marks=[text])),
        line_plot(text, text, text, [Series(text, [(1, 1.0), (2, 2.0)])]),
        bars(text, [(text, 1.0, text, text)]),
        intervals(text, [Interval(text, 1.0, 0.5, 2.0)]),
        confusion_matrix(text, [text, "b"], [[1, 2], [0, 3]]),
    ]


def test_hostile_text_stays_text() -> None:
    page = document(HOSTILE, everything(HOSTILE), scripts=True)
    read, tame = Reader(page), Reader(document("x", everything("x"), scripts=True))
    # the whole of a text that is cut is in a title of its own, so only those may be more
    assert [tag for tag, _ in read.tags if tag != "title"] == [tag for tag, _ in tame.tags if tag != "title"]
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "<script>alert(1)" in read.text


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_any_text_is_text(text: str) -> None:
    read, tame = Reader(document(text, everything(text))), Reader(document("x", everything("x")))
    assert [tag for tag, _ in read.tags if tag != "title"] == [tag for tag, _ in tame.tags if tag != "title"]


def test_the_policy_allows_what_is_there_and_nothing_else() -> None:
    read = Reader(page := document("x", everything("x"), scripts=True))
    code = [text for text in read.scripts if not text.startswith("{")]
    assert len(code) == 2
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert style is not None
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (*code, style[1])}
    parts = dict(part.split(" ", 1) for part in read.policy.split("; "))
    assert set(parts) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert {parts["default-src"], parts["base-uri"], parts["form-action"]} == {"'none'"}
    assert set(f"{parts['style-src']} {parts['script-src']}".split()) == hashes
    assert "unsafe" not in read.policy
    assert "script-src" not in Reader(document("x", [])).policy


def test_nothing_is_loaded() -> None:
    page = document("x", everything("x"), scripts=True)
    read = Reader(page)
    assert not [a for _, a in read.tags if {"src", "href", "srcset", "data", "action", "style"} & set(a)]
    bare = page.replace("/*! https://github.com/leeoniya/uPlot (v1.6.32) */", "")
    assert not re.search(r"https?:|url\(|@import|\beval\(|new Function", bare)


def test_the_library_is_the_published_one_and_keeps_its_licence() -> None:
    readme = (UPLOT / "README.md").read_text()
    for name, digest in re.findall(r"\| `(uPlot\S+)` \| `([0-9a-f]{64})` \|", readme):
        assert hashlib.sha256((UPLOT / name).read_bytes()).hexdigest() == digest
    assert readme.count(".min.") == 2
    page = document("x", [], scripts=True)
    assert "The MIT License (MIT)" in page
    assert "Leon Sorokin" in page
    assert len(page) < 70_000, "a page without anything in it"
    assert len(document("x", [])) < 8_000


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(deadline=None)
def test_json_comes_back_and_ends_no_element(value: Any) -> None:
    text = inline_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        inline_json(float("nan"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.5, "0.5000"), (0.0, "0.0000"), (2e-5, "2.000e-05"), (-3.25, "-3.2500")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_a_plot_has_its_numbers_in_a_table() -> None:
    train = [(i, 2.0 / i) for i in range(1, 101)]
    plot = line_plot("Loss", "step", "nats", [Series("train", train), Series("eval", [(50, 0.123456)], "points")])
    read = Reader(plot)
    spec = json.loads(read.scripts[0])
    assert [(one["name"], one["style"], len(one["x"])) for one in spec["series"]] == [
        ("train", "line", 100), ("eval", "points", 1)
    ]  # fmt: skip
    for text in ("Loss", "nats", "train", "eval", "0.1235", "2.0000", "0.0200"):
        assert text in read.text
    assert line_plot("Loss", "step", "", [Series("train", [(1, "nan"), (2, float("inf")), (None, 3.0)])]) == ""


def test_a_long_curve_keeps_its_spikes() -> None:
    points = [(i, 1000.0 if i == 54_321 else float(i % 7)) for i in range(100_000)]
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert (54_321, 1000.0) in found
    assert found == sorted(found)
    assert thinned(points[:5]) == points[:5]


def test_a_running_mean() -> None:
    assert running_mean([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 6.0)]


def test_figures_without_scripts_say_their_numbers() -> None:
    assert "12 MiB" in Reader(bars("Memory", [("logits", 12.0, "12 MiB", "a"), ("none", 0.0, "0 MiB", "a")])).text
    text = Reader(intervals("accuracy", [Interval("one", 0.5, 0.4, 0.6), Interval("two", 0.7)])).text
    assert "0.5000 (0.4000 to 0.6000)" in text
    assert "0.7000" in text
    text = Reader(confusion_matrix("all", ["cat", "dog"], [[3, 1], [0, 0]])).text
    assert "cat, taken for dog: 1 of 4 (25.0%)" in text
    assert "cat, taken for cat: 3 of 4 (75.0%)" in text


def test_columns_of_numbers_stand_to_the_right() -> None:
    found = table(("name", "count", "mixed"), [("a", 1, 2), ("b", None, "x")])
    assert '<th>name</th><th class="n">count</th><th>mixed</th>' in found
    assert '<td>a</td><td class="n">1</td><td class="n">2</td>' in found
