"""Chats that a model of a few million parameters can learn from: short, many kinds, each with one right or good answer.

    train, held = build(folders, texts)     # lists of [{"role": ..., "content": ...}, ...]

An item is what a chat asks about: a word, a pair of numbers, a sentence. Its hash says whether it is held out, so no
item of a held-out chat is asked about in training.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import clean
import shared
import sources
import tasks
import wordnet

TRAIN, HELD = 30_000, 500
SEED = 6
LONGEST = 900
"""Characters of a chat: about 250 tokens."""
SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "You are a small language model. Be short and clear.")
Chat = list[dict[str, str]]


def is_held(item: str) -> bool:
    """One item in sixteen is held out, by its own hash."""
    return hashlib.sha256(item.lower().encode()).digest()[0] < 16


@dataclass
class Pool:
    """What may be asked about: all of it is held out, or none. Every list is in a fixed order."""

    held: bool
    words: list[str] = field(default_factory=list)
    meanings: list[tuple[str, str, str]] = field(default_factory=list)
    """Word, part of speech, gloss."""
    examples: list[tuple[str, str]] = field(default_factory=list)
    kinds: list[tuple[str, str]] = field(default_factory=list)
    opposites: list[tuple[str, str]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    starts: list[tuple[str, str]] = field(default_factory=list)
    """The first words of a sentence, which others may share, and the sentence."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    countries: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, capital, location."""
    names: list[str] = field(default_factory=list)
    passages: list[tuple[str, str, str]] = field(default_factory=list)
    """What it is from, a sentence, the next one or nothing."""

    def takes(self, item: str) -> bool:
        """Whether an item is on this side of the cut."""
        return is_held(item) == self.held


def build(folders: sources.Folders, texts: dict[str, list[str]]) -> tuple[list[Chat], list[Chat]]:
    """Chats to train on and held-out ones; the same input gives the same chats."""
    pools = [pool(held, folders, texts) for held in (False, True)]
    return draw(pools[0], TRAIN, random.Random(SEED)), draw(pools[1], HELD, random.Random(SEED + 1))


def draw(pool: Pool, count: int, rng: random.Random) -> list[Chat]:
    """Draw different chats: four in five of one exchange, the others of two or three on different things."""
    found: list[Chat] = []
    seen: set[str] = set()
    names = [name for name in tasks.TASKS if not (pool.held and name == "manners")]  # these few are learned by heart
    weights = [tasks.TASKS[name][1] for name in names]
    while len(found) < count:
        turns = rng.choices((1, 2, 3), (16, 3, 1))[0]
        pairs = [tasks.TASKS[name][0](pool, rng) for name in rng.choices(names, weights, k=turns)]
        chat = as_chat(pairs, rng)
        key = "\n".join(question for question, _ in pairs)
        if key not in seen and sum(len(message["content"]) for message in chat) <= LONGEST:
            seen.add(key)
            found.append(chat)
    return found


def as_chat(pairs: Sequence[tuple[str, str]], rng: random.Random) -> Chat:
    """Messages of some exchanges; one in ten begins with a system message."""
    chat = [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.1 else []
    for question, answer in pairs:
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return chat


def pool(held: bool, folders: sources.Folders, texts: dict[str, list[str]]) -> Pool:
    """Everything on one side of the cut."""
    made = Pool(held)
    _add_words(made, wordnet.read(folders["wordnet"]), set(_blocks(texts, "wordnet")))
    made.sentences = [s for s in shared.tatoeba(folders["shared"]) if 3 <= len(s.split()) <= 12 and made.takes(s)]
    starts = ((" ".join(s.split()[: max(2, len(s.split()) // 2)]), s) for s in made.sentences)
    made.starts = [(start, sentence) for start, sentence in starts if made.takes(start)]
    made.problems = [(q, a) for q, a in _problems(texts) if len(q + a) < 420 and made.takes(q)]
    made.countries = [row for row in _countries(folders) if made.takes(row[0])]
    made.names = [name for name in NAMES.split() if made.takes(name)]
    made.passages = [row for row in _passages(texts) if made.takes(row[1])]
    return made


def _blocks(texts: dict[str, list[str]], name: str) -> list[str]:
    """Paragraphs of a source's training documents: what chats say must not be in its held-out ones."""
    return [block for document in texts.get(name, []) for block in document.split("\n\n")]


def _problems(texts: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Questions and worked answers that follow each other."""
    blocks = _blocks(texts, "gsm8k")
    pairs = zip(blocks, blocks[1:], strict=False)
    both = [(q, a) for q, a in pairs if q.startswith("Question: ") and a.startswith("Answer: ")]
    return [(q.removeprefix("Question: "), a.removeprefix("Answer: ")) for q, a in both]


def _simple(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and 2 < len(word) < 12


def _add_words(made: Pool, synsets: dict[str, wordnet.Synset], entries: set[str]) -> None:
    """Words that were seen in tagged text, each with the meaning in which it was seen most, if in `entries`."""
    best: dict[str, tuple[int, wordnet.Synset]] = {}
    for synset in synsets.values():
        if sources.entry(synset, synsets) not in entries:
            continue
        for word, count in zip(synset.words, synset.counts, strict=True):
            if count and _simple(word) and made.takes(word) and count > best.get(word, (0, synset))[0]:
                best[word] = (count, synset)
    made.words = sorted(best)
    for word in made.words:
        count, synset = best[word]
        if len(synset.gloss) < 120 and not synset.gloss.startswith("("):
            made.meanings.append((word, synset.part, synset.gloss))
        made.examples += [(word, example) for example in _sentences(synset) if word in example.lower().split()][:1]
        if synset.part == "noun" and synset.kinds and count > 1:
            wider = synsets[synset.kinds[0]].words[0]
            made.kinds += [(word, wider)] if wider.replace(" ", "").islower() and wider != word else []
        both = [(a, b) for a, b in synset.opposites if a == word and _simple(b) and made.takes(b)]
        made.opposites += both[:1]


def _sentences(synset: wordnet.Synset) -> list[str]:
    """Examples as sentences: a capital and a full stop."""
    found = (example.strip() for example in synset.examples if "`" not in example)
    return [
        e[0].upper() + e[1:] + ("" if e[-1] in ".?!" else ".") for e in found if len(e) < 120 and len(e.split()) > 4
    ]


def _countries(folders: sources.Folders) -> list[tuple[str, str, str]]:
    rows = []
    for path in sorted(folders["factbook"].glob("package/*/*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        name, capital, place = (
            _text(facts, *keys)
            for keys in (
                ("Government", "Country name", "conventional short form"),
                ("Government", "Capital", "name"),
                ("Geography", "Location"),
            )
        )
        if name and capital and place and "none" not in name and len(capital) < 25 and len(place.split()) < 15:
            rows.append((name, capital.split(" (")[0].split(";")[0], place))
    return rows


def _text(facts: object, *keys: str) -> str:
    for key in keys:
        facts = facts.get(key, {}) if isinstance(facts, dict) else {}
    return str(facts.get("text", "")).strip() if isinstance(facts, dict) else ""


KINDS = {
    "shakespeare": "a play",
    "kjv": "the Bible",
    "sotu": "a speech",
    "austen": "a novel",
    "sherlock": "a detective story",
    "policies": "a legal text",
    "wordnet": "a dictionary",
    "sqlite": "a technical manual",
    "papers": "a scientific paper",
}
"""Sources whose style can be told, and what a chat calls it."""


LISTS = ("wordnet", "papers")
"""Sources whose next sentence cannot be told."""
NAMES = (
    "Ada Ben Carl Dora Emma Felix Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Rosa Sam Tom Una Vera Will Zoe "
    "Anna Bob Clara David Eva Frank George Helen Ivan Jane Karl Lucy Mark Nina Otto Peter Ruth Sara Tim Walter Alice "
    "Bruno Cora Daniel Ella Fred Gina Hugo Iris James Laura Max Nick Olga Robert Sophie Theo Victor Amy Bill Dan Eric"
)


def _passages(texts: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """The first two sentences of paragraphs of the training documents, in two parts; 600 of a source."""
    rows = []
    for name, kind in KINDS.items():
        long = [block for block in _blocks(texts, name) if len(block) > 120 and clean.is_prose(block)]
        for block in long[:: max(1, len(long) // 600)]:
            first, _, rest = block.partition(". ")
            second = rest.partition(". ")[0].rstrip(".")
            if 30 < len(first) < 220 and 20 < len(second) < 220:
                rows.append((kind, first + ".", "" if name in LISTS else second + "."))
    return rows
