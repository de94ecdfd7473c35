"""The text of `builtin:starter`: cleaning, packages that are checked, right chats, a tokenizer without loss."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

STARTER = Path(__file__).parents[2] / "recipes" / "starter"
sys.path.insert(0, str(STARTER))

import chats  # noqa: E402
import clean  # noqa: E402
import fetch  # noqa: E402
import gather  # noqa: E402
import shared  # noqa: E402
import sources  # noqa: E402
import tasks  # noqa: E402
import tokenizer  # noqa: E402
import wordnet  # noqa: E402

ODD = [
    "",
    " ",
    "\n\n\t x",
    "naïve café — “quoted”",
    "日本語\u200d🙂",
    "a\x00b",
    "\r\n\r\n",
    "x" * 300,
    "</s ><pad",
    "1234.56",
]
WORDS = ["apple", "brother", "cloud", "dinner", "eagle", "forest", "garden", "hill", "island", "jacket", "king", "lamp"]


def test_wrapped_prose_is_joined_and_verse_is_not() -> None:
    wide = "It was a dark and stormy night and the rain fell in torrents over\n"
    verse = "Tyger tyger, burning bright,\nIn the forests of the night;"
    text = clean.unwrap(wide * 9 + "the half-\nburnt town.\r\n\r\n\n" + verse)
    assert text.endswith(f"over the half-burnt town.\n\n{verse}")
    assert "over\n" not in text


def test_a_book_is_freed_of_what_others_added() -> None:
    raw = "Header\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nProduced by A\nand B.\n\nIt _was_ so. snake_c_x\n"
    book = clean.unmarked(clean.gutenberg(raw + "[Illustration: a\ncat]\nEnd of the Project Gutenberg EBook"))
    assert book.strip() == "It was so. snake_c_x"


def test_a_page_keeps_its_sentences_only() -> None:
    page = (
        "<head><title>T</title></head><nav><li>Home page of this long menu here.</li></nav><h2>Empty</h2><h2>About</h2>"
        "<p>This is a <b>sentence</b> of&nbsp;seven &amp; more words.</p><pre>let x = 1; // some code is in here</pre>"
        "<table><tr><td>a table with some words in it.</td></tr></table>"
    )
    assert clean.from_html(page) == "About\n\nThis is a sentence of seven & more words."


def test_restructured_text_loses_its_marks() -> None:
    text = (
        "Title\n=====\n\nUse a :class:`~forms.Form` and ``save()`` of `a page <https://x.org>`_ *now* like so::\n"
        "\n    import this_is_code_with_many_words as it\n\n.. note::\n\n    This note is kept as it is prose.\n"
        "\n* one item of a list here is kept.\n* an image is not.\n"
    )
    assert clean.from_rst(text) == (
        "Title\n\nUse a forms.Form and save() of a page now like so:\n\nThis note is kept as it is prose."
        "\n\none item of a list here is kept."
    )


def test_markdown_loses_its_marks() -> None:
    text = "---\ntitle: x\n---\n# Head\n\n> [!NOTE]\n> See **the** [terms](/t) _here_.\n\n| a | b |\n"
    assert clean.from_markdown(text) == "Head\n\nSee the terms here."


def test_grouping_keeps_every_piece_in_order() -> None:
    pieces = [f"piece {i} " * 20 for i in range(50)]
    documents = clean.grouped(pieces, size=1000)
    assert "\n\n".join(documents) == "\n\n".join(pieces).rstrip()
    assert all(len(document) >= 1000 for document in documents[:-1])
    assert clean.grouped([], size=10) == []


def test_strings_of_r_are_read() -> None:
    def string(text: bytes) -> bytes:
        return struct.pack(">ii", 0x40009, len(text)) + text

    head = b"X\n" + struct.pack(">iii", 3, 262402, 197888) + struct.pack(">i", 5) + b"UTF-8"
    assert sources.r_strings(
        head + struct.pack(">ii", 16, 3) + string(b"EMMA") + string(b"") + string("é".encode())
    ) == [
        "EMMA",
        "",
        "é",
    ]
    with pytest.raises(ValueError, match="type 16, received 13"):
        sources.r_strings(head + struct.pack(">ii", 13, 0))


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(b"other")
    received = hashlib.sha256(b"other").hexdigest()
    fetch.check(path, received)
    with pytest.raises(fetch.FetchError, match=f"expected SHA-256 {'0' * 64}, received {received}"):
        fetch.check(path, "0" * 64)


def test_shakespeare_and_policies_are_cut_where_others_score(tmp_path: Path) -> None:
    plays, rules = tmp_path / "tiny_shakespeare", tmp_path / "legal_site_policy"
    plays.mkdir(), rules.mkdir()
    later = (STARTER.parent / "data/shakespeare_later.txt").read_text(encoding="utf-8")
    lines = [f"SPEAKER {i}:\nWords of line {i}.\n\n" for i in range(2000)]
    text = "".join(lines[:500]) + later.strip() + "\n\n" + "".join(lines[500:])
    (plays / "input.txt").write_text(text, encoding="utf-8")
    for i in range(57):
        (rules / f"p{i:02d}.md").write_text(f"Policy {i}.", encoding="utf-8")
    train, held = "".join(shared.shakespeare(tmp_path)), shared.shakespeare_held(tmp_path)[0]
    assert held == text[len(text) * 9 // 10 :]
    assert later.strip().split("\n\n")[3] not in train
    assert "SPEAKER 499" in train and "SPEAKER 500" in train and "SPEAKER 1999" not in train
    assert shared.policies_held(tmp_path) == [f"Policy {i}." for i in range(51, 57)]
    assert len(shared.policies(tmp_path)) == 51


@pytest.mark.parametrize("tail", [True, False])
def test_a_tenth_at_most_is_held_out_and_shares_no_run_with_the_rest(tail: bool) -> None:
    documents = [" ".join(f"word{i}x{j}" for j in range(60)) for i in range(40)]
    train, held = gather.split(documents, tail=tail)
    assert sorted(train + held) == sorted(documents)
    assert 1 <= len(held) <= 5
    known = {run for text in held for run in gather.runs(text)}
    copied = f"Some other paragraph.\n\nAs said: {held[0][:200]} and so on."
    assert gather.apart([*train, copied, held[0]], known) == [*train, "Some other paragraph."]


WORDNET = """\
00001740 03 n 01 entity 0 000 | that which is perceived
00002684 03 n 02 object 0 physical_object 0 002 @ 00001740 n 0000 ! 00003000 n 0101 | a thing; "a few old objects"; "x"
00003000 03 n 01 subject 0 001 ! 00002684 n 0101 | who sees
"""


def test_wordnet_is_read(tmp_path: Path) -> None:
    home = tmp_path / "usr/share/wordnet"
    home.mkdir(parents=True)
    for suffix in wordnet.PARTS:
        (home / f"data.{suffix}").write_text("  1 licence\n" + (WORDNET if suffix == "noun" else ""), encoding="utf-8")
    (home / "cntlist.rev").write_text("object%1:03:00:: 1 21\n", encoding="utf-8")
    synsets = wordnet.read(tmp_path)
    thing = synsets["n00002684"]
    assert (thing.words, thing.gloss, thing.examples) == (
        ("object", "physical object"), "a thing", ("a few old objects",)
    )  # fmt: skip
    assert thing.opposites == (("object", "subject"),)
    assert (thing.kinds, thing.counts, thing.known, synsets["n00003000"].known) == (
        ("n00001740",),
        (21, 0),
        True,
        False,
    )
    assert sources.entry(thing, synsets) == (
        "object, physical object (noun): a thing. A kind of entity. The opposite of object is subject. "
        'Example: "a few old objects."'
    )


@pytest.fixture(params=[False, True], ids=["train", "held"])
def pool(request: pytest.FixtureRequest) -> chats.Pool:
    sentences = [f"The {a} is near the {b}." for a in WORDS for b in WORDS]
    made = chats.Pool(request.param)
    made.words = WORDS
    made.sentences = [*filter(made.takes, sentences), f"Is the {WORDS[request.param]} red?"]
    made.starts = [(sentence.rsplit(" ", 2)[0], sentence) for sentence in made.sentences]
    made.meanings = [(word, "noun", f"what is called {word}") for word in WORDS]
    made.examples = [(word, f"I saw the {word} there.") for word in WORDS]
    made.kinds = [("apple", "fruit"), ("king", "man")]
    made.opposites = [("hot", "cold")]
    made.problems = [("How many?", "Two.\nThe answer is 2.")]
    made.countries = [("France", "Paris", "Western Europe")]
    made.passages = [("a play", "Who goes there.", "It is I."), ("a dictionary", "A word.", "")]
    made.names = ["Ada", "Ben"]
    return made


def asked(pool: chats.Pool, name: str) -> list[tuple[str, str]]:
    rng = random.Random(1)
    return [tasks.TASKS[name][0](pool, rng) for _ in range(200)]


def after(question: str) -> str:
    """What a question is about: after its colon or question mark."""
    return re.split(r"[:?] ", question, maxsplit=1)[1]


def test_answers_about_words_are_right(pool: chats.Pool) -> None:
    for question, answer in asked(pool, "repeat"):
        assert question.endswith(f": {answer}")
    for question, answer in asked(pool, "reverse"):
        assert after(question).split() == answer.split()[::-1]
    for question, answer in asked(pool, "pick"):
        assert answer == after(question).split()[0 if "first" in question else -1]
    for question, answer in asked(pool, "count_words"):
        assert int(answer) == len(after(question).split())
    for question, answer in asked(pool, "order"):
        assert answer == ", ".join(sorted(after(question).split(", ")))
    for question, answer in asked(pool, "odd_one"):
        asked_for = question.split()[3]
        assert answer == ("Yes." if asked_for in after(question).split(", ") else "No.")
    for question, answer in asked(pool, "upper") + asked(pool, "lower"):
        assert {answer.upper(), answer.lower()} == {after(question).upper(), after(question).lower()}
        assert answer in (answer.upper(), answer.lower())


def test_answers_about_letters_are_right(pool: chats.Pool) -> None:
    def word(question: str) -> str:
        return next(word for word in WORDS if word in re.findall(r"\w+", question))

    for question, answer in asked(pool, "spell"):
        assert answer.split("-") == list(word(question))
    for question, answer in asked(pool, "count_letters"):
        assert answer == f"{'-'.join(word(question))}: {len(word(question))} letters."
    for question, answer in asked(pool, "first_letter"):
        assert answer == word(question)[0 if "first" in question else -1]


def test_arithmetic_is_right_and_its_pairs_are_on_one_side(pool: chats.Pool) -> None:
    signs: dict[str, Any] = {"plus": ("+", int.__add__), "minus": ("-", int.__sub__), "times": ("*", int.__mul__)}
    for name, (sign, function) in signs.items():
        for question, answer in asked(pool, name):
            a, b = map(int, re.findall(r"\d+", question))
            if question.startswith("Subtract"):
                a, b = b, a
            assert int(answer) == function(a, b)
            assert pool.takes(f"{min(a, b)}{sign}{max(a, b)}")
    for question, answer in asked(pool, "compare"):
        pair = [int(number) for number in re.findall(r"\d+", question)]
        assert int(answer) == (max(pair) if "larger" in question else min(pair))
    for question, answer in asked(pool, "next_number"):
        *_, a, b = map(int, re.findall(r"\d+", question))
        assert int(answer) == b + (b - a)


def test_answers_about_meanings_come_from_the_pool(pool: chats.Pool) -> None:
    for question, answer in asked(pool, "is_kind"):
        word, kind = re.fullmatch(r"Is (\w+) a kind of (\w+)\?", question).groups()  # type: ignore[union-attr]
        right = dict(pool.kinds)[word]
        assert answer == ("Yes." if kind == right else f"No, {word} is a kind of {right}.")
    for question, answer in asked(pool, "define"):
        assert any(word in question and answer == f"What is called {word}." for word in WORDS)
    for question, answer in asked(pool, "complete"):
        assert answer.startswith(after(question).removesuffix(" ..."))
    for question, answer in asked(pool, "question"):
        assert (answer == "a question") == ("red" in question)
    assert {answer for _, answer in asked(pool, "go_on")} == {"It is I."}


def test_chats_are_drawn_again_alike_and_are_well_formed(pool: chats.Pool) -> None:
    drawn = chats.draw(pool, 300, random.Random(5))
    assert drawn == chats.draw(pool, 300, random.Random(5))
    assert len({json.dumps(chat) for chat in drawn}) == 300
    for chat in drawn:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message["content"].strip() for message in chat)
        assert sum(len(message["content"]) for message in chat) <= chats.LONGEST


def test_no_item_is_on_both_sides() -> None:
    both = chats.Pool(False), chats.Pool(True)
    items = [f"{a} {b}" for a in WORDS for b in WORDS]
    train, held = ([item for item in items if pool.takes(item)] for pool in both)
    assert sorted(train + held) == sorted(items)
    assert 0 < len(held) < len(items) / 5


def test_the_tokenizer_loses_nothing_and_is_the_same_again(tmp_path: Path) -> None:
    texts = [f"The {a} and the {b} saw 12 {a}s. " * 3 for a in WORDS for b in WORDS]
    one, two = tokenizer.train(texts, tmp_path / "a"), tokenizer.train(texts, tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in [*ODD, *texts[:3]]:
        ids = one(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids == two(text)["input_ids"]
        assert loaded.decode(ids) == text
    assert len(loaded.tokenize("2026")) == 4
    assert loaded.convert_tokens_to_ids(tokenizer.SPECIAL) == list(range(len(tokenizer.SPECIAL)))
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<s>", "</s>")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    text = loaded.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    assert loaded.decode(loaded.apply_chat_template(chat)["input_ids"]) == text
