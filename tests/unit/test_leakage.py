"""Rows of eval and test that are also in train, word for word or nearly: planted ones are found, others are not."""

from __future__ import annotations

import csv
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.data.chat import Turn
from ftune.data.leakage import AUTO_ROWS, Leaks, find_leaks, texts_of
from ftune.data.near import (
    MIN_WORDS,
    MISSED,
    PERMUTATIONS,
    NearIndex,
    bands,
    shingles_of,
    templates_in,
    without_templates,
    words_of,
)
from ftune.data.read import Row
from ftune.data.shape import Sample
from ftune.data.split import digests, duplicates
from ftune.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")


def texts(rows: Sequence[str], file: str = "train.csv", label: str = "x") -> list[Sample]:
    return [Sample(Row(file, number, {}), text=text, label=label) for number, text in enumerate(rows, start=1)]


def asked(rows: Sequence[tuple[str, str]], file: str = "train.jsonl") -> list[Sample]:
    return [
        Sample(Row(file, number, {}), (Turn("user", question), Turn("assistant", answer)))
        for number, (question, answer) in enumerate(rows, start=1)
    ]


def found(train: list[Sample], test: list[Sample], near: Any = 0.8, **held: list[Sample]) -> Leaks:
    return find_leaks(train, {**held, "test": test}, near=near, rows=len(train) + len(test), tick=lambda *_: None)


def similarity(one: str, other: str) -> float:
    """By the definition."""
    sets = [set(shingles_of(words_of(text)) or ()) for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# words and sets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello,  WORLD!\n", ["hello", "world"]),
        ("it's and it\u2019s", ["its", "and", "its"]),
        ("a-b_c 3.14", ["a", "b_c", "3", "14"]),
        ("Stra\u00dfe", ["strasse"]),
        ("\u4f60\u597dabc \u3053", ["\u4f60", "\u597d", "abc", "\u3053"]),
        ("?!", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_a_text_is_its_words_and_pairs_of_words() -> None:
    assert shingles_of(words_of("the cat and the dog ran")) == [
        "the", "cat", "and", "dog", "ran",
        ("the", "cat"), ("cat", "and"), ("and", "the"), ("the", "dog"), ("dog", "ran"),
    ]  # fmt: skip
    assert shingles_of(words_of("go go go and stop now")) is None
    index = NearIndex(0.5)
    index.add(0, words_of("the cat and the dog ran"))
    index.add(1, words_of("go go go and stop now"))
    assert index.matches(words_of("The cat, and the dog, ran.")) == [(0, 1.0)]
    assert index.matches(words_of("go go go and stop now")) == []
    assert MIN_WORDS == 5


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_one_in_a_thousand_at_most(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count >= 2
    assert count * rows <= PERMUTATIONS
    assert (1 - threshold**rows) ** count <= max(MISSED, (1 - threshold) ** PERMUTATIONS)
    if rows < PERMUTATIONS // 2:  # one row more would miss too many
        assert (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) > MISSED


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=12), min_size=2, max_size=12),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_what_is_found_is_what_is_near(rows: list[list[str]], threshold: float) -> None:
    long = [words for words in rows if len({*words}) >= MIN_WORDS]
    sets = [{*words, *itertools.pairwise(words)} for words in long]
    index = NearIndex(threshold)
    for key, words in enumerate(long):
        index.add(key, words)
    for words, shingles in zip(long, sets, strict=True):
        alike = {key: len({*shingles} & {*s}) / len({*shingles} | {*s}) for key, s in enumerate(sets)}
        hits = dict(index.matches(words))
        assert hits.items() <= alike.items()
        assert {key for key, value in alike.items() if value == 1} <= hits.keys()
        assert min(hits.values(), default=1) >= threshold
        assert {key for key, value in alike.items() if value >= threshold + 0.1} <= hits.keys()


# planted duplicates

WORDS = [f"{a}{b}{c}" for a in ("ka", "mo", "ri", "tu", "se") for b in ("lan", "bor", "dim", "vex") for c in "aeiouy"]


def planted(seed: int = 0) -> tuple[list[str], list[str], set[int], set[int]]:
    """1,100 training rows and 1,100 test rows: 50 are equal, 50 nearly, 1,000 of each have nothing in common."""
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(16, 40))).capitalize() + "."

    train, test = [[sentence() for _ in range(1_100)] for _ in range(2)]
    exact = rng.sample(range(1_100), 100)
    for number, row in enumerate(exact):
        text = train[row]
        words = text.rstrip(".").split()
        if number >= 50:
            match number % 4:
                case 0:  # a word changed
                    words[rng.randrange(len(words))] = "another"
                case 1:  # case
                    words = [word.upper() for word in words]
                case 2:  # punctuation
                    words = [f"{word}," if i % 3 == 0 else word for i, word in enumerate(words)]
                case 3:  # two halves in another order
                    words = words[len(words) // 2 :] + words[: len(words) // 2]
            text = " ".join(words) + "!"
        test[row] = text
    return train, test, set(exact[:50]), set(exact[50:])


@pytest.mark.parametrize("seed", range(3))
def test_all_planted_duplicates_are_found_and_nothing_else(seed: int) -> None:
    train, test, exact, near = planted(seed)
    leaks = found(texts(train), texts(test, "test.csv"), "auto")
    assert leaks.threshold == 0.8
    assert leaks.found == {("train", "test"): (1_100, 50, 50)}
    assert set(leaks.train.tolist()) == exact | near  # recall 1, precision 1
    assert {pair.row.number - 1 for pair in leaks.pairs if pair.similarity is None} == exact
    for pair in leaks.pairs:
        assert pair.row.number == pair.other.number
        if pair.similarity is not None:
            assert pair.similarity == pytest.approx(similarity(train[pair.row.number - 1], test[pair.other.number - 1]))


def test_recall_at_the_threshold_itself() -> None:
    """Pairs of similarity 0.80 to 0.85, where MinHash is weakest: all of 400 are found, or one is missed at most."""
    rng = random.Random(5)
    train, test = [], []
    while len(train) < 400:
        words = [rng.choice(WORDS) for _ in range(rng.randint(14, 40))]
        other = list(words)
        for _ in range(rng.randint(1, 2)):
            other[rng.randrange(len(other))] = "another"
        if 0.8 <= similarity(" ".join(words), " ".join(other)) < 0.85:
            train.append(" ".join(words))
            test.append(" ".join(other))
    assert len(found(texts(train), texts(test)).train) >= 399


def test_results_repeat_in_another_process() -> None:
    """The hashes of Python's own strings differ from process to process; what is found must not."""
    program = (
        "import random\nfrom ftune.data.near import NearIndex\n"
        "rng = random.Random(0)\nindex = NearIndex(0.3)\n"
        "rows = [[f'w{rng.randrange(14)}' for _ in range(20)] for _ in range(150)]\n"
        "[index.add(key, row) for key, row in enumerate(rows)]\n"
        "print([index.matches(row) for row in rows])\n"
    )
    root = str(Path(__file__).parents[2])
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0].count("(") > 200


# what is compared


def test_the_same_question_with_another_answer_is_a_leak() -> None:
    question = "How many eggs do five hens lay in a week"
    leaks = found(asked([(question, "thirty five")]), asked([(question + "?", "about thirty")], "test.jsonl"))
    assert [str(pair) for pair in leaks.pairs] == ["train.jsonl:1 ~ test.jsonl:1 (1.00)"]


def test_another_question_with_the_same_long_answer_is_a_leak() -> None:
    answer = "Water boils at a lower temperature on high mountains, because there is less air above that presses on it "
    answer += "and the molecules of the liquid need less energy to get away from each other and rise as steam."
    train, test = asked([("Why so soon up there?", answer)]), asked([("Why at 90 degrees?", answer)], "test.jsonl")
    (pair,) = found(train, test).pairs
    assert pair.similarity == pytest.approx(similarity("Why so soon up there " + answer, "Why at 90 degrees " + answer))


def test_short_rows_are_compared_word_for_word_only() -> None:
    short = ["ok", "Go.", "Yes, of course!", "thank you very much"]
    other = ["OK", "Go!", "yes of course", "Thank you very much."]
    assert found(texts(short), texts(other, "test.csv")).pairs == ()
    leaks = found(texts(short), texts([*short, "ok"], "test.csv"))
    assert leaks.found == {("train", "test"): (5, 5, 0)}
    assert len(leaks.train) == 4
    assert found(asked([("Go.", "Where to?")]), asked([("Go.", "Where?")])).pairs == ()


def test_a_template_around_short_texts_does_not_flood() -> None:
    start = "Read the review of a film below and say whether its writer liked it or not. Review:"
    rng = random.Random(0)
    rows = [f"{start} {' '.join(rng.sample(WORDS, 6))}" for _ in range(400)]
    assert similarity(rows[0], rows[200]) > 0.5
    leaks = found(texts(rows[:300]), texts(rows[300:], "test.csv"), 0.5)
    assert leaks.pairs == ()
    leaks = found(texts(rows[:300]), texts([*rows[301:], rows[7] + "!"], "test.csv"), 0.5)
    assert [str(pair) for pair in leaks.pairs] == ["train.csv:8 ~ test.csv:100 (1.00)"]
    bare = [f"{start} {word}" for word in WORDS]
    assert found(texts(bare[:60]), texts(bare[60:], "test.csv"), 0.5).pairs == ()


def test_a_run_of_words_is_a_template_from_a_share_of_the_texts_on() -> None:
    rows = [["a", "b", "c", "d", "e", "f", str(i)] for i in range(10)]
    others = [[f"{i}-{j}" for j in range(7)] for i in range(200)]
    assert templates_in(rows[:4]) == frozenset()
    assert templates_in([*rows, *others]) == frozenset()  # under a twentieth
    assert templates_in([*rows, *others[:100]]) == {("a", "b", "c", "d", "e", "f")}
    assert without_templates(["x", *rows[0], "y"], templates_in(rows)) == ["x", "0", "y"]


def test_texts_of_rows() -> None:
    turns = (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
    row = Row("f", 1, {})
    assert texts_of(Sample(row, turns)) == ("q", "a r b")
    assert texts_of(Sample(row, text="t", text_pair="p", label="l")) == ("t p", "")
    assert texts_of(Sample(row, words=("w", "x"), label=("O", "O"))) == ("w x", "")
    shown = Sample(
        row, turns[1:3], fields={"prompt": "q", "context": "c", "id": 3, "no": None}, shown=("context", "no")
    )
    assert texts_of(shown) == ("c", "a")


def test_without_near_duplicates_equal_rows_are_still_found() -> None:
    train, test, exact, _ = planted()
    leaks = found(texts(train), texts(test, "test.csv"), None)
    assert set(leaks.train.tolist()) == exact
    assert (leaks.exact, leaks.near, leaks.remark) == (50, 0, "")
    assert leaks.notes()[0] == "leakage: 50 of 1100 rows of test are also in train: 50 word for word."
    assert found(texts(["a"]), texts(["a"], "test.csv", label="y"), None).pairs == ()  # another label is another row


def test_auto_looks_at_so_many_rows_and_says_when_it_does_not() -> None:
    train, test = texts(["one two three four five six"]), texts(["One two three four five six!"], "test.csv")

    def look(near: Any, rows: int) -> Leaks:
        return find_leaks(train, {"test": test}, near=near, rows=rows, tick=lambda *_: None)

    assert look("auto", AUTO_ROWS).near == 1
    assert look(0.8, AUTO_ROWS + 1).near == 1
    assert look("auto", AUTO_ROWS + 1).near == 0
    assert look("auto", AUTO_ROWS + 1).notes() == [
        "leakage: near duplicates were not looked for among 100001 rows (auto does up to 100000). "
        "Set data.near_duplicates to 0.8 to look."
    ]


# what is said


def test_every_split_is_compared_with_those_before() -> None:
    same, near = "one two three four five six seven eight", "One two three four five six seven, eight."
    held = texts([same, "alpha beta gamma delta epsilon"], "eval.csv")
    leaks = found(texts([near, "nothing else"]), texts(["x", near], "test.csv"), eval=held)
    assert leaks.found == {("train", "eval"): (2, 0, 1), ("train", "test"): (2, 1, 0), ("eval", "test"): (2, 0, 1)}
    assert leaks.train.tolist() == [0]
    assert leaks.notes() == [
        "leakage: 1 of 2 rows of eval are also in train: 0 word for word, 1 nearly (similarity >= 0.8).",
        "leakage: 1 of 2 rows of test are also in train: 1 word for word, 0 nearly (similarity >= 0.8).",
        "leakage: 1 of 2 rows of test are also in eval: 0 word for word, 1 nearly (similarity >= 0.8).",
        "leakage: train.csv:1 ~ test.csv:2 (word for word)",
        "leakage: eval.csv:1 ~ test.csv:2 (1.00)",
    ]
    with pytest.raises(DataError) as caught:
        leaks.refuse()
    assert str(caught.value).splitlines() == [
        "rows that are scored are also trained on, or are in eval and test (data.leakage: error). Remove them, or set "
        "data.leakage to drop or warn.",
        "train.csv:1: of train is also in test, word for word: test.csv:2.",
        "eval.csv:1: of eval is also in test, nearly, with similarity 1.00: test.csv:2.",
    ]


def test_pairs_are_counted_beyond_the_first() -> None:
    rows = [f"row number {i} of all the many rows" for i in range(9)]
    leaks = found(texts(rows), texts(rows, "test.csv"), 1.0)
    assert len(leaks.notes()) == 1 + 5 + 1
    assert leaks.notes()[-1] == "leakage: and 4 more pairs"


def test_nothing_shared_is_nothing_said() -> None:
    leaks = found(texts(["one two three four five six"]), texts(["seven eight nine ten eleven"], "test.csv"))
    assert (leaks.notes(), leaks.found, len(leaks.train)) == ([], {}, 0)
    leaks.refuse()
    assert found([], []).notes() == []


# real sets


def banking(name: str) -> list[Sample]:
    with (REAL / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Sample(Row(f"{name}.csv", number, {}), text=row["text"], label=row["category"])
            for number, row in enumerate(csv.DictReader(file), start=2)
        ]


@needs_real
def test_banking77_has_no_equal_rows_and_151_of_3080_near_ones() -> None:
    leaks = found(banking("train"), banking("test"))
    assert leaks.found == {("train", "test"): (3_080, 0, 151)}


@needs_real
def test_scitldr_has_two_titles_in_train_and_test() -> None:
    def papers(name: str) -> list[Sample]:
        lines = (REAL / "scitldr_a" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [Sample(Row(name, i, {}), text=json.loads(line)["title"]) for i, line in enumerate(lines, start=1)]

    train, test = papers("train_first1200"), papers("test")
    assert (len(train), len(test)) == (1_200, 618)
    leaks = found(train, test)
    assert (leaks.exact, leaks.near) == (2, 0)


@needs_real
def test_sms_spam_has_403_equal_rows() -> None:
    (path,) = (REAL / "sms_spam").glob("SMSSpamCollection*")
    rows = [line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    content = digests(
        Sample(Row("sms", i, {}), text=text, label=label).content for i, (label, _, text) in enumerate(rows)
    )
    assert (len(rows), int(duplicates(content).sum())) == (5_574, 403)
