"""WordNet's files (wndb(5WN)) as sets of synonyms: their words, gloss, examples, kinds and opposites.

synsets = read(Path("wordnet"))      # of `usr/share/wordnet/data.*` below that folder
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


_COARSE = re.compile(
    r"obscen|offensive|disparag|slur\b|vulgar|genital|sexual|prostitut|excrement|derogat", re.IGNORECASE
)


@dataclass(frozen=True)
class Synset:
    """Words of one meaning; `kinds` are keys of wider meanings, `opposites` pairs of a word here and its antonym."""

    key: str
    part: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    kinds: tuple[str, ...]
    opposites: tuple[tuple[str, str], ...]
    counts: tuple[int, ...]
    """How often each word was seen in this meaning in a million words of tagged text."""

    @property
    def known(self) -> bool:
        """Whether the meaning is one that people use, and may: seen in tagged text or with an example, not coarse."""
        return (any(self.counts) or bool(self.examples)) and not _COARSE.search(self.gloss)


def read(folder: Path) -> dict[str, Synset]:
    """Every set of synonyms by its key (letter and offset), in the order of the files."""
    home = folder / "usr/share/wordnet"
    counts = _counts(home / "cntlist.rev")
    lines: dict[str, tuple[str, str]] = {}
    for suffix, part in PARTS.items():
        for line in (home / f"data.{suffix}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # the licence
                lines[suffix[0] + line[:8] if suffix != "adv" else "r" + line[:8]] = (part, line)
    words = {key: _words(line) for key, (_, line) in lines.items()}
    return {key: _synset(key, part, line, words, counts) for key, (part, line) in lines.items()}


def _counts(path: Path) -> dict[tuple[str, str], int]:
    """(word, kind and lexicographer's file and sense) -> count; the key of cntlist is a sense key."""
    found: dict[tuple[str, str], int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        sense, _, count = line.split()
        word, _, rest = sense.partition("%")
        kind, file, number, *_ = rest.split(":")
        found[word, f"{kind}:{file}:{number}"] = int(count)
    return found


_KIND = {"n": "1", "v": "2", "a": "3", "r": "4", "s": "5"}


def _words(line: str) -> list[tuple[str, str]]:
    """Each word of a line with its number in the lexicographer's file."""
    fields = line.split(" | ")[0].split(" ")
    found = fields[4 : 4 + 2 * int(fields[3], 16)]
    names = [re.sub(r"\((a|p|ip)\)$", "", word) for word in found[::2]]
    return [(name, f"{int(number, 16):02d}") for name, number in zip(names, found[1::2], strict=True)]


def _synset(
    key: str, part: str, line: str, words: dict[str, list[tuple[str, str]]], counts: dict[tuple[str, str], int]
) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split(" ")
    own = words[key]
    at = 4 + 2 * len(own)
    kinds, opposites = [], []
    for i in range(int(fields[at])):
        sign, offset, letter, ends = fields[at + 1 + 4 * i : at + 5 + 4 * i]
        other = letter.replace("s", "a") + offset
        if sign in ("@", "@i"):
            kinds.append(other)
        elif sign == "!":
            opposites.append((_plain(own[int(ends[:2], 16) - 1][0]), _plain(words[other][int(ends[2:], 16) - 1][0])))
    sense = f"{_KIND[fields[2]]}:{fields[1]}"
    definition, examples = _gloss(gloss)
    return Synset(
        key=key,
        part=part,
        words=tuple(_plain(word) for word, _ in own),
        gloss=definition,
        examples=examples,
        kinds=tuple(kinds),
        opposites=tuple(opposites),
        counts=tuple(counts.get((word.lower(), f"{sense}:{number}"), 0) for word, number in own),
    )


def _plain(word: str) -> str:
    return word.replace("_", " ")


def _gloss(text: str) -> tuple[str, tuple[str, ...]]:
    """The definition, and the whole sentences or phrases that are quoted after it."""
    examples = tuple(found.strip() for found in re.findall(r'"([^"]+)"', text) if len(found.split()) > 2)
    definition = re.split(r';\s*"|^\s*"', text)[0]
    return definition.strip(" ;").replace('"', ""), examples
