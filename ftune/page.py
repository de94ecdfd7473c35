"""Building blocks of pages that need nothing else: one file, no network, readable with scripts off.

    document("two runs", [heading("Result"), table(("metric", "value"), [("loss", 1.25)])])

Every function returns HTML, in which what came from users is text and nothing else. Plots are in `ftune.page_plots`.
The plotting library is uPlot (MIT, `ftune/assets/uplot`): its 50 kB are in every page that has plots.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from ftune.data.spell import visible

Cell = str | int | float | None
"""Text, a number, or nothing. Floats are shown with four decimals."""
_NUMBER = ' class="n"'


def document(title: str, parts: Iterable[str], *, scripts: bool = False) -> str:
    """A whole page.

    The policy in it lets a browser load nothing, and run and apply only what was written here, by hash: even if
    something of a user's got past the escaping, it would be dead.

    Args:
        title: plain text.
        parts: HTML of the functions here.
        scripts: whether there are plots.

    Returns:
        The same bytes for the same arguments.
    """
    style = asset("page.css") + (asset("uplot/uPlot.min.css") if scripts else "")
    code = [_library(), asset("plots.js")] if scripts else []
    policy = ["default-src 'none'", f"style-src {_hash(style)}", "base-uri 'none'", "form-action 'none'"]
    policy += [f"script-src {' '.join(map(_hash, code))}"] if code else []
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape("; ".join(policy), quote=False)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{safe(title)}</title><style>{style}</style></head><body>",
            f"<h1>{safe(title)}</h1>",
            *parts,
            *(f"<script>{text}</script>" for text in code),
            "</body></html>\n",
        ]
    )


def safe(text: str) -> str:
    """Text that is only text: nothing in it is markup, and nothing turns the writing around."""
    return escape(visible(text))


def heading(text: str) -> str:
    """The title of a section."""
    return f"<h2>{safe(text)}</h2>"


def paragraph(text: str) -> str:
    """One paragraph of plain text."""
    return f"<p>{safe(text)}</p>"


def items(lines: Iterable[str]) -> str:
    """A list of plain sentences; nothing where there is none."""
    found = "".join(f"<li>{safe(line)}</li>\n" for line in lines)
    return f"<ul>\n{found}</ul>" if found else ""


def preformatted(text: str) -> str:
    """Text with its line ends, such as a recipe."""
    return f"<pre>{safe(text)}</pre>"


def folded(summary: str, *parts: str) -> str:
    """HTML that opens on a click; works without scripts."""
    return f"<details><summary>{safe(summary)}</summary>\n{''.join(parts)}\n</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, marks: Sequence[str] = ()) -> str:
    """Numbers to the right, everything escaped.

    Args:
        header: names of the columns.
        rows: as many cells each.
        marks: a class for each row, such as `right`, `wrong`, `differs`; none are given without it.
    """
    lines = [list(row) for row in rows]
    numeric = [
        any(isinstance(line[i], (int, float)) for line in lines) and not any(isinstance(line[i], str) for line in lines)
        for i in range(len(header))
    ]
    head = "".join(
        f"<th{_NUMBER if right else ''}>{safe(cell)}</th>" for cell, right in zip(header, numeric, strict=True)
    )
    body = []
    for i, line in enumerate(lines):
        mark = f' class="{safe(marks[i])}"' if i < len(marks) and marks[i] else ""
        body.append(f"<tr{mark}>{''.join(map(_cell, line))}</tr>\n")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{"".join(body)}</tbody></table></div>'


def _cell(value: Cell) -> str:
    if value is None or isinstance(value, str):
        return f"<td>{safe(value or '')}</td>"
    return f"<td{_NUMBER}>{number(value)}</td>"


def number(value: float) -> str:
    """A number for people: whole ones with commas; others with four decimals, or four digits where they are small."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3e}"


def inline_json(value: Any) -> str:
    """JSON that may stand in a `<script type="application/json">`: nothing in it ends the element.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def asset(name: str) -> str:
    """A text file of `ftune/assets`."""
    return (files("ftune") / "assets" / name).read_text(encoding="utf-8")


def _library() -> str:
    """The plotting library with its licence, which must stay with every copy."""
    return f"/*!\n{asset('uplot/LICENSE').strip()}\n*/\n{asset('uplot/uPlot.iife.min.js')}"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
