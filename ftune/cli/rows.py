"""How rows and counts look in a terminal, or as plain text elsewhere. Data never reaches the terminal unescaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftune.data.spell import visible
from ftune.data.view import Cut, Side, View

PAIRS = (("【", "】"), ("⟪", "⟫"), ("⟦", "⟧"), ("❮", "❯"), ("⦃", "⦄"), ("⧼", "⧽"))
"""Brackets that are taken for marks; the first that the rows do not hold."""
LEARNED, SPECIAL, REMARK = "bold green", "cyan", "black on yellow"
BAR_WIDTH = 40


class Paper(Console):
    """A console that says when the reader of its output has left, as `print` does. Rich would leave with code 1."""

    def on_broken_pipe(self) -> None:
        """Let the error go on."""
        raise BrokenPipeError


@dataclass(frozen=True)
class Marks:
    """How supervised text and remarks are told from the rest of a row.

    Args:
        coloured: whether colours say what is learned.
        learned: brackets around it, empty where they do.
        remark: brackets around what ftune says.
        escaped: characters of rows that are written as numbers, for marks use them.
    """

    coloured: bool
    learned: tuple[str, str]
    remark: tuple[str, str]
    escaped: frozenset[str]

    def shown(self, text: str) -> str:
        """Text of a row in which nothing can be mistaken for a mark."""
        safe = visible(text)
        for letter in self.escaped:
            safe = safe.replace(letter, f"<U+{ord(letter):04X}>")
        return safe

    def say(self, text: str) -> Text:
        """A remark."""
        return Text(f"{self.remark[0]}{self.shown(text)}{self.remark[1]}", style=REMARK if self.coloured else "")


def marks_for(views: Iterable[View], *, coloured: bool) -> Marks:
    """Brackets that occur in no row; where rows hold all there are, theirs are escaped."""
    letters: set[str] = set()
    for view in views:
        for side in view.sides:
            letters |= set(side.text)
    free = [pair for pair in PAIRS if not letters & set(pair)]
    learned, remark = [*free, *(pair for pair in PAIRS if pair not in free)][:2]
    taken = {*learned, *remark} & letters
    return Marks(coloured, ("", "") if coloured else learned, remark, frozenset(taken))


def is_coloured(console: Console) -> bool:
    """Whether colours reach the reader: a terminal, without NO_COLOR."""
    return console.is_terminal and not console.no_color and console.color_system is not None


def print_rows(console: Console, views: list[View], unit: str, *, tokens: bool) -> None:
    """Each example under its place; with `tokens`, a table of its tokens."""
    coloured = is_coloured(console)
    marks = marks_for(views, coloured=coloured)
    if coloured:
        console.print(Text.assemble(("learned", LEARNED), ", ", ("special tokens", SPECIAL), ", ", ("remarks", REMARK)))
    elif views:
        learned, remark = " and ".join(marks.learned), " and ".join(marks.remark)
        legend = f"Between {learned}: what is learned. Between {remark}: remarks, no part of the row."
        console.print(legend, soft_wrap=True)
    for view in views:
        console.print()
        console.print(_heading(view, unit, marks), soft_wrap=True)
        for line in _body(view, marks):
            console.print(line, soft_wrap=True)
        if view.words:
            console.print(_words_table(view, marks))
        for side in view.sides if tokens else ():
            console.print(_tokens_table(side, marks))


def _heading(view: View, unit: str, marks: Marks) -> Text:
    size = sum(len(side.tokens) for side in view.sides)
    part = f", {view.part}" if view.part else ""
    parts = [f"{size:,} tokens"]
    learned = sum(token.target for side in view.sides for token in side.tokens)
    if view.labels is None and view.value is None:
        hidden = "to be guessed" if unit.endswith("hidden") else unit
        parts.append(f"{learned:,} {hidden}")
    if view.times != 1:
        parts.append(f"{view.times:g} times an epoch")
    return Text(f"{marks.shown(view.file)}:{view.row}{part}: {', '.join(parts)}", style="bold")


def _body(view: View, marks: Marks) -> Iterable[Text]:
    """The lines of one example."""
    if view.dropped is not None:
        yield marks.say(f"not trained on: dropped ({view.dropped})")
    if view.answers:
        yield marks.say(f"{view.part}: an example of its own, as the template rewrites earlier turns")
    elif view.window > 1:
        yield marks.say(f"{view.part}: goes on from the one before")
    if view.writes is not None:
        yield marks.say("the encoder reads")
    yield painted(view.reads, marks)
    if view.writes is not None:
        yield marks.say("the decoder writes")
        yield painted(view.writes, marks)
    if view.window < view.windows and not view.answers:
        yield marks.say(f"goes on in window {view.window + 1}")
    if view.value is not None:
        yield marks.say(f"value: {view.value:g}")
    elif view.labels is not None:
        yield marks.say("; ".join(f"label {i}: {name}" for i, name in view.labels) or "no label")
    elif view.words is None and any(token.label is not None for token in view.reads.tokens):
        yield marks.say("to be guessed, in order: " + ", ".join(f"'{span.target}'" for span in view.reads.spans))


def painted(side: Side, marks: Marks) -> Text:
    """A text with its supervised spans, special tokens and cuts."""
    styles = [""] * len(side.text)
    for token in side.tokens:
        if token.special:
            styles[token.start : token.end] = [SPECIAL] * (token.end - token.start)
    before: list[tuple[int, int, Text]] = [(cut.at, 1, _cut(cut, marks)) for cut in side.cuts]
    for span in side.spans:
        styles[span.start : span.end] = [LEARNED] * (span.end - span.start)
        before.append((span.start, 2, Text(marks.learned[0])))
        before.append((span.end, 0 if span.end > span.start else 3, Text(marks.learned[1])))
    found, start = Text(), 0
    for at, _, mark in sorted(before, key=lambda event: event[:2]):
        _append(found, side.text, styles, start, at, marks)
        found.append_text(mark)
        start = at
    _append(found, side.text, styles, start, len(styles), marks)
    return found


def _cut(cut: Cut, marks: Marks) -> Text:
    return marks.say(f"{cut.tokens:,} tokens cut off here")


def _append(found: Text, text: str, styles: list[str], start: int, end: int, marks: Marks) -> None:
    """Put text[start:end] behind what is found, piece by piece of one style."""
    for style, places in groupby(range(start, end), key=styles.__getitem__):
        piece = [*places]
        found.append(marks.shown(text[piece[0] : piece[-1] + 1]), style=style if marks.coloured else "")


def _words_table(view: View, marks: Marks) -> Table:
    table = Table()
    for column in ("word", "label", "id", "on token", "which is"):
        table.add_column(column, overflow="fold")
    for word in view.words or ():
        token = view.reads.tokens[word.token]
        spelled = view.reads.text[token.start : token.end]
        known = "?" if word.word is None else word.word
        cells = (known, word.label, str(word.label_id), str(word.token), spelled)
        table.add_row(*(_cell(cell, marks) for cell in cells))
    return table


def _tokens_table(side: Side, marks: Marks) -> Table:
    table = Table()
    for column in ("position", "id", "token", "learned", "special"):
        table.add_column(column, overflow="fold", justify="right" if column in ("position", "id") else "left")
    for position, token in enumerate(side.tokens):
        learned = "" if not token.target else "yes" if token.label is None else token.label
        cells = (str(position), str(token.id), side.text[token.start : token.end], learned)
        table.add_row(*(_cell(cell, marks) for cell in cells), "special" if token.special else "")
    return table


def _cell(text: str, marks: Marks) -> str:
    return marks.shown(text).replace("\n", "\u240a")


def print_summary(console: Console, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Counts of each split, histograms of lengths, and the balance of labels."""
    table = Table(title="data")
    for column in ("split", "rows", "kept", "dropped", "cut short", "examples", "tokens", "learned"):
        table.add_column(column, overflow="fold", justify="left" if column in ("split", "dropped") else "right")
    for name, split in data.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in split["dropped"].items()) or "none"
        counts = (split["truncated"], split["examples"], split["tokens"], split["targets"])
        table.add_row(name, f"{split['rows']:,}", f"{split['kept']:,}", dropped, *(f"{n:,}" for n in counts))
    console.print(table)
    for name, split in data.items():
        console.print(_bars(f"{name}: tokens in an example", _intervals(split["token_histogram"])))
        if split["labels"] is not None:
            console.print(_bars(f"{name}: labels", _most(split["labels"])))
        elif split["value_histogram"] is not None:
            console.print(_bars(f"{name}: values", _intervals(split["value_histogram"])))


def _bars(title: str, heights: Mapping[str, int]) -> Table:
    table = Table(title=title, show_header=False, box=None, title_justify="left")
    table.add_column(justify="right", overflow="fold", max_width=30)
    table.add_column(width=BAR_WIDTH)
    table.add_column(justify="right")
    most = max(heights.values(), default=0) or 1
    for name, height in heights.items():
        table.add_row(name, Bar(size=most, begin=0, end=height, width=BAR_WIDTH), f"{height:,}")
    return table


def _intervals(found: Mapping[str, list[float]]) -> dict[str, int]:
    """Bars by their range; of whole numbers both ends are in it."""
    pairs = zip(found["edges"][:-1], found["edges"][1:], strict=True)
    names = [_interval(low, high) for low, high in pairs]
    return {name: int(count) for name, count in zip(names, found["counts"], strict=True)}


def _interval(low: float, high: float) -> str:
    if isinstance(low, int) and isinstance(high, int):
        return f"{low:,}" if low + 1 == high else f"{low:,} to {high - 1:,}"
    return f"{low:.4g} to {high:.4g}"


def _most(labels: Mapping[str, int]) -> dict[str, int]:
    from ftune.data_report import shown_labels

    shown = {visible(name).replace("\n", "\u240a"): count for name, count in shown_labels(labels).items()}
    rest = len(labels) - len(shown)
    return shown | ({f"({rest} more labels)": sum(labels.values()) - sum(shown.values())} if rest else {})
