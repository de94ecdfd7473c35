"""`ftune data --html`: rows and counts as one page that needs nothing else, no script and no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ftune.data.view import Side, View
from ftune.data_report import data_svg
from ftune.page import safe, table

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Even if something in a row got past the escaping, a browser would neither run nor load it."""
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8886; border-radius: 4px; padding: .7rem; }
table { border-collapse: collapse; } th, td { border: 1px solid #8886; padding: .15rem .5rem; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
mark { background: #a6e3a1; color: #000; } i { color: #0a7ea4; font-style: normal; }
mark i { color: #00506b; } b.r { background: #ffe28a; color: #000; font-weight: normal; }
figure, .wide { overflow-x: auto; } figure { margin: 1rem 0; background: #fff; }
td { white-space: pre-wrap; font-family: ui-monospace, monospace; }
"""


def page(
    title: str,
    about: Sequence[str],
    views: Sequence[View],
    data: Mapping[str, Mapping[str, Any]],
    remarks: Sequence[str],
    *,
    tokens: bool,
) -> str:
    """The whole page.

    Args:
        title: name of the recipe.
        about: what made the rows what they are.
        views: the rows.
        data: summary and profile of each split.
        remarks: sentences below the counts.
        tokens: whether each token is listed.
    """
    head = f"ftune data: {safe(title)}"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"<title>{head}</title><style>{STYLE}</style></head><body>",
        f"<h1>{head}</h1>",
        *(f"<p>{safe(line)}</p>" for line in about),
        "<h2>Counts</h2>",
        _counts(data),
        "<ul>",
        *(f"<li>{safe(line)}</li>" for line in remarks),
        "</ul>",
        f"<figure>{data_svg({name: dict(split) for name, split in data.items()})}</figure>",
        "<h2>Rows</h2>",
        "<p><mark>Learned</mark>, <i>special tokens</i>, <b class=r>remarks, no part of the row</b>.</p>",
        *(part for view in views for part in _view(view, tokens=tokens)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _counts(data: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("rows", "kept", "truncated", "examples", "tokens", "targets")
    rows: list[list[str | int]] = []
    for name, split in data.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in split["dropped"].items()) or "none"
        rows.append([name, dropped, *(int(split[key]) for key in keys)])
    header = ("split", "dropped", "rows", "kept", "cut short", "examples", "tokens", "learned")
    return table(header, rows)


def _view(view: View, *, tokens: bool) -> Iterable[str]:
    part = f", {view.part}" if view.part else ""
    times = f", {view.times:g} times an epoch" if view.times != 1 else ""
    yield f"<h3>{safe(f'{view.file}:{view.row}{part}{times}')}</h3>"
    if view.dropped is not None:
        yield f"<p>{_remark(f'not trained on: dropped ({view.dropped})')}</p>"
    names = ("The model reads",) if view.writes is None else ("The encoder reads", "The decoder writes")
    for name, side in zip(names, view.sides, strict=True):
        yield f"<p>{name} {len(side.tokens):,} tokens:</p><pre>{_text(side)}</pre>"
    if view.value is not None:
        yield f"<p>Value: {view.value:g}</p>"
    if view.labels is not None:
        yield table(("label", "name"), view.labels)
    if view.words is not None:
        cells = [("?" if w.word is None else w.word, w.label, w.label_id, w.token) for w in view.words]
        yield table(("word", "label", "id", "on token"), cells)
    elif any(token.label is not None for token in view.reads.tokens):
        yield table(("to be guessed, in order",), ([span.target] for span in view.reads.spans))
    for side in view.sides if tokens else ():
        yield _tokens(side)


def _remark(text: str) -> str:
    return f"<b class=r>{safe(text)}</b>"


def _text(side: Side) -> str:
    """The text with marks around what is learned, special tokens and cuts."""
    events: list[tuple[int, int, str]] = [
        (cut.at, 2, _remark(f"{cut.tokens:,} tokens cut off here")) for cut in side.cuts
    ]
    for span in side.spans:
        events += [(span.start, 3, "<mark>"), (span.end, 1 if span.end > span.start else 4, "</mark>")]
    for token in side.tokens:
        if token.special and token.end > token.start:
            events += [(token.start, 5, "<i>"), (token.end, 0, "</i>")]
    found, at = [], 0
    for place, _, tag in sorted(events, key=lambda event: event[:2]):
        found += [safe(side.text[at:place]), tag]
        at = place
    return "".join([*found, safe(side.text[at:])])


def _tokens(side: Side) -> str:
    rows = (
        (n, token.id, side.text[token.start : token.end], _learned(token.target, token.label))
        for n, token in enumerate(side.tokens)
    )
    return table(("position", "id", "token", "learned"), rows)


def _learned(target: bool, label: str | None) -> str:
    return "" if not target else "yes" if label is None else label
