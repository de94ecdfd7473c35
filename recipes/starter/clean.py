r"""Plain paragraphs out of hard-wrapped books, HTML, reStructuredText, Markdown and others; pure functions of text.

unwrap("It was a\ndark night.\n\nShe left.")      # 'It was a dark night.\n\nShe left.'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

_SPACES = re.compile(r"[ \t\f\v\u00a0]+")


def normalise(text: str) -> str:
    """Unix newlines, no byte-order mark, no trailing or repeated blanks, one empty line between paragraphs."""
    text = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").replace("\u00ad", "")
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def unwrap(text: str) -> str:
    """Join the lines of each paragraph, but for verse and lists, whose lines are far shorter than a wrapped one.

    A word cut by a hyphen at the end of a line keeps its hyphen: a real one cannot be told from a soft one.
    """
    blocks = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").expandtabs(8))
    wide = _usual_width(blocks)
    return normalise("\n\n".join(_joined(block, wide) for block in blocks))


def _usual_width(blocks: list[str]) -> int:
    """The width to which a text was wrapped: nine lines in ten of its longer paragraphs are not wider."""
    widths = sorted(len(line) for block in blocks for line in block.split("\n")[:-1])
    return widths[len(widths) * 9 // 10] if widths else 0


def _joined(block: str, wide: int) -> str:
    lines = [line.strip() for line in block.strip("\n").split("\n")]
    body = lines[:-1]
    if body and sum(map(len, body)) / len(body) < 0.7 * wide:
        return "\n".join(lines)
    return re.sub(r"(?<=\w)- (?=[a-z])", "-", " ".join(lines))


def gutenberg(text: str) -> str:
    """The book alone: without Project Gutenberg's header, footer and the line that thanks who typed it."""
    start = re.search(r"\*\*\* ?START OF TH.*?\*\*\*", text, re.DOTALL)
    text = text[start.end() :] if start else text
    end = re.search(r"(\*\*\* ?END OF TH|End of (the )?Project Gutenberg)", text)
    text = text[: end.start()] if end else text
    return re.sub(r"\A\s*Produced by .*?\n\s*\n", "", text, flags=re.DOTALL)


def unmarked(text: str) -> str:
    """Without the underscores that Project Gutenberg writes for italics, and without its illustrations."""
    text = re.sub(r"\[Illustration[^\]]*\]", "", text)
    return re.sub(r"(?<![A-Za-z0-9])_([^_]+)_(?![A-Za-z0-9])", r"\1", text)


class _Reader(HTMLParser):
    """Text of block elements; code, tables and navigation are left out."""

    BLOCKS = frozenset(
        {"p", "li", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "blockquote", "div", "section", "article", "body"}
    )
    SKIPPED = frozenset({"script", "style", "pre", "table", "nav", "svg", "head", "title", "button", "form", "footer"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = [""]
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SKIPPED:
            self.depth += 1
        elif tag in self.BLOCKS:
            self.blocks.append("")
        elif tag == "br":
            self.blocks[-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIPPED:
            self.depth = max(0, self.depth - 1)
        elif tag in self.BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.blocks[-1] += data


def from_html(text: str) -> str:
    """Paragraphs of a page, with neither code nor tables."""
    reader = _Reader()
    reader.feed(text)
    return prose(" ".join(block.split()) for block in reader.blocks)


def prose(blocks: Iterable[str]) -> str:
    """Keep the paragraphs that read like text, and drop the headings that are left with nothing under them.

    Text is at least six words that are mostly letters; a heading is shorter and has a paragraph after it.
    """
    kept: list[str] = []
    heading = ""
    for block in blocks:
        if not block:
            continue
        if is_prose(block):
            kept += [heading, block] if heading else [block]
            heading = ""
        else:
            heading = block if re.fullmatch(r"(\d[\d.]* )?[A-Z][\w ,'’/()?-]{2,70}", block) else ""
    return normalise("\n\n".join(kept))


def is_prose(block: str) -> bool:
    """Whether a paragraph has words enough, is letters for the most part, and ends like a sentence if it is short."""
    words = len(block.split())
    letters = sum(char.isalpha() or char.isspace() for char in block)
    return words >= 6 and letters >= 0.85 * len(block) and (words >= 15 or block[-1] in ".?!:;)\"'”’")


_DIRECTIVE = re.compile(r"\.\. |:[\w -]+:( |$)|[=~^\-\"'#*+`]{3,}$|>>> ")
_LITERAL = re.compile(
    r"\s*\.\. (code|console|snippet|sourcecode|image|figure|list-table|csv-table|graphviz|toctree|raw)"
)
_ROLE = re.compile(r":[\w:+-]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")


def from_rst(text: str) -> str:
    """Paragraphs of reStructuredText without directives, literal blocks and roles."""
    return prose(_rst_blocks(text))


def _rst_blocks(text: str) -> Iterator[str]:
    literal: int | None = None  # indent of the paragraph that announced a literal block
    for block in re.split(r"\n[ \t]*\n", text.expandtabs(4)):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = len(lines[0]) - len(lines[0].lstrip())
        if literal is not None and indent > literal:
            continue
        directive = lines[0].lstrip().startswith(".. ")  # notes and functions hold prose, these do not
        announces = bool(_LITERAL.match(lines[0])) if directive else lines[-1].rstrip().endswith("::")
        literal = indent if announces else None
        words = "\n".join(line.strip() for line in lines if not _DIRECTIVE.match(line.strip()))
        yield from (_rst_inline(item) for item in re.split(r"(?m)^(?:\* |- |\d+\. |#\. )", words))


def _rst_inline(text: str) -> str:
    text = _ROLE.sub(r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"`([^`<]*?)\s*(?:<[^`>]*>)?`_*", r"\1", text)
    text = re.sub(r"\*\*?([^*\s][^*]*?)\*\*?", r"\1", text)
    return " ".join(text.replace("::", ":").replace("|", "").split())


def from_markdown(text: str) -> str:
    """Paragraphs of Markdown without front matter, link targets, emphasis, tables and template tags."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\{[%{].*?[%}]\}|<[^>]+>", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = unmarked(re.sub(r"(\*\*|__|`|^> ?(\[!\w+\])?)", "", text, flags=re.MULTILINE))
    lines = (line for line in text.split("\n") if not line.lstrip().startswith("|"))
    return normalise("\n".join(re.sub(r"^\s*#+\s*", "", line) for line in lines))


def grouped(pieces: Iterable[str], *, size: int = 4000) -> list[str]:
    """Join neighbouring pieces into documents of at least `size` characters; a short rest joins the last of them."""
    documents: list[str] = []
    held: list[str] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= size:
            documents.append("\n\n".join(held))
            held = []
    rest = "\n\n".join(held)
    if documents and len(rest) < size / 2:
        documents[-1] = f"{documents[-1]}\n\n{rest}".rstrip()
        return documents
    return [*documents, rest] if rest else documents


def split_long(text: str, *, size: int = 20_000) -> list[str]:
    """Cut a long text at paragraphs into documents of `size` characters or some more."""
    return grouped(text.split("\n\n"), size=size) if len(text) > 1.5 * size else [text]
