"""Pages of real runs in a real browser: drawn, in light and dark, without a complaint and without the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from command import ftune, write_recipe
from run_folders import HOSTILE, write_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium, or FTUNE_TEST_CHROMIUM"),
]
DRAWN = """[...document.querySelectorAll('figure.plot')].map(figure => {
  const canvas = figure.querySelector('canvas');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) colours.add(pixels.slice(i, i + 3).join());
  return [canvas.clientWidth, canvas.clientHeight, colours.size, figure.scrollWidth <= figure.clientWidth];
})"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = chromium()
    assert program is not None
    with Browser(program, tmp_path / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels, one of them hostile, in two classes and a test set."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = [{"text": f"{'red' if i % 2 else 'blue'} {i}", "label": HOSTILE if i % 2 else "plain"} for i in range(24)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "labels.jsonl", "eval": "25%", "test": "labels.jsonl", "format": "classification"}
    how = {"model": "builtin:tiny-bert", "objective": "sequence_classification", "method": "task"}
    ftune("train", write_recipe(folder, data=data, **how), "--quiet", cwd=folder)
    return folder / "runs" / "recipe"


def look(browser: Browser, page: Path, plots: int, screens: Path) -> None:
    """Open `page` in light and dark and check what can be checked without eyes."""
    colours = set()
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        drawn = browser.evaluate(DRAWN)
        assert len(drawn) == plots
        for width, height, kinds, fits in drawn:
            assert width > 200
            assert height > 200
            assert kinds > 2, "axes and a curve"
            assert fits
        assert all(browser.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"))
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        colours.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.screenshot(screens / f"{page.stem}_{scheme}.png")
        assert browser.complaints() == []
        assert set(browser.requests()) == {page.as_uri()}
    assert len(colours) == 2


def test_a_language_model(straight: Path, browser: Browser, tmp_path: Path) -> None:
    look(browser, straight / "runs" / "recipe" / "report.html", 7, tmp_path)


def test_a_classifier_with_a_hostile_label(classifier: Path, browser: Browser, tmp_path: Path) -> None:
    look(browser, classifier / "report.html", 6, tmp_path)
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert len((classifier / "predictions_test.jsonl").read_text().splitlines()) == 24


def test_a_difference(straight: Path, classifier: Path, browser: Browser, tmp_path: Path) -> None:
    ftune("report", straight / "runs" / "recipe", classifier, "--html", tmp_path / "diff.html", cwd=tmp_path)
    look(browser, tmp_path / "diff.html", 5, tmp_path)


def test_hostile_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>", text=HOSTILE)
    ftune("report", run, "--html", tmp_path / "one.html", cwd=tmp_path)
    ftune("report", run, run, "--html", tmp_path / "two.html", cwd=tmp_path)
    look(browser, tmp_path / "one.html", 6, tmp_path)
    look(browser, tmp_path / "two.html", 5, tmp_path)


def test_the_plots_can_be_played_with(straight: Path, browser: Browser) -> None:
    browser.open(straight / "runs" / "recipe" / "report.html")
    button = "document.querySelector('figure.plot button')"
    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(f"{button}.textContent") == "linear", "the switch of the scale now offers the way back"
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=300, y=400)
    middle = "(r => [r.x + r.width / 2, r.y + r.height / 2])"
    x, y = browser.evaluate(f"{middle}(document.querySelector('.u-over').getBoundingClientRect())")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    said = browser.evaluate("[...document.querySelectorAll('.u-legend')].map(one => one.innerText)")
    assert sum(any(character.isdigit() for character in text) for text in said) == 7, "all plots show the same step"
    picture = "document.querySelector('canvas').toDataURL()"
    light = browser.evaluate(picture)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate(picture) != light, "plots follow when light turns to dark"
    assert browser.complaints() == []


def test_a_violation_would_be_seen(browser: Browser, tmp_path: Path, straight: Path) -> None:
    page = (straight / "runs" / "recipe" / "report.html").read_text()
    bad = page.replace("</body>", '<script>alert(1)</script><img src="https://example.org/x.png"></body>')
    (tmp_path / "bad.html").write_text(bad)
    browser.open(tmp_path / "bad.html")
    assert len(browser.complaints()) >= 2
