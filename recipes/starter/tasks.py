"""What the chats ask: each task draws an item from a pool and gives a question and its answer; `TASKS` weighs them.

question, answer = TASKS["reverse"][0](pool, random.Random(0))
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chats import Pool

Pair = tuple[str, str]


def _ask(rng: random.Random, item: str, *ways: str) -> str:
    return rng.choice(ways).replace("{}", item)


def _some(pool: Pool, rng: random.Random, low: int = 2, high: int = 5) -> list[str]:
    return rng.sample(pool.words, rng.randint(low, high))


def repeat(pool: Pool, rng: random.Random) -> Pair:
    """Say it again."""
    item = rng.choice([" ".join(_some(pool, rng, 1, 5)), rng.choice(pool.sentences)])
    return _ask(rng, item, "Repeat: {}", "Say this again: {}", "Copy this text: {}", "Repeat after me: {}"), item


def reverse(pool: Pool, rng: random.Random) -> Pair:
    """Words in reverse order."""
    words = _some(pool, rng)
    ways = ("Reverse the order of these words: {}", "Write these words backwards: {}", "Reverse: {}")
    return _ask(rng, " ".join(words), *ways), " ".join(reversed(words))


def pick(pool: Pool, rng: random.Random) -> Pair:
    """The first or last word."""
    words = _some(pool, rng, 3, 6)
    which, answer = rng.choice((("first", words[0]), ("last", words[-1])))
    ways = (f"What is the {which} word? {{}}", f"Give the {which} word of: {{}}", f"Which word is {which} here? {{}}")
    return _ask(rng, " ".join(words), *ways), answer


def count_words(pool: Pool, rng: random.Random) -> Pair:
    """How many words."""
    words = _some(pool, rng, 1, 7)
    ways = ("How many words are there? {}", "Count the words: {}", "How many words is this? {}")
    return _ask(rng, " ".join(words), *ways), str(len(words))


def count_letters(pool: Pool, rng: random.Random) -> Pair:
    """How many letters, spelled out first: a tokenizer hides them."""
    word = rng.choice(pool.words)
    answer = f"{'-'.join(word)}: {len(word)} letters."
    return _ask(rng, word, "How many letters are in {}?", "Count the letters of the word {}."), answer


def spell(pool: Pool, rng: random.Random) -> Pair:
    """Letter by letter."""
    word = rng.choice(pool.words)
    ways = ("Spell the word {}.", "Spell {} letter by letter.", "How do you spell {}?")
    return _ask(rng, word, *ways), "-".join(word)


def first_letter(pool: Pool, rng: random.Random) -> Pair:
    """The letter a word begins or ends with."""
    word = rng.choice(pool.words)
    which, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    ways = (f"What is the {which} letter of {{}}?", f"Give the {which} letter of the word {{}}.")
    return _ask(rng, word, *ways), letter


def upper(pool: Pool, rng: random.Random) -> Pair:
    """Capitals."""
    item = rng.choice([" ".join(_some(pool, rng, 1, 3)), rng.choice(pool.sentences)])
    ways = ("Write in capital letters: {}", "Make this upper case: {}", "Put this in capitals: {}")
    return _ask(rng, item, *ways), item.upper()


def lower(pool: Pool, rng: random.Random) -> Pair:
    """Small letters."""
    item = rng.choice([" ".join(_some(pool, rng, 1, 3)), rng.choice(pool.sentences)])
    return _ask(rng, item.upper(), "Write in small letters: {}", "Make this lower case: {}"), item.lower()


def order(pool: Pool, rng: random.Random) -> Pair:
    """Alphabetical order."""
    words = _some(pool, rng, 2, 4)
    ways = ("Sort these words by the alphabet: {}", "Put in alphabetical order: {}")
    return _ask(rng, ", ".join(words), *ways), ", ".join(sorted(words))


def odd_one(pool: Pool, rng: random.Random) -> Pair:
    """Whether a word is among others."""
    words = _some(pool, rng, 4, 6)
    asked = rng.choice(words)
    shown = words if rng.random() < 0.5 else [word for word in words if word != asked]
    return f"Is the word {asked} in this list? {', '.join(shown)}", "Yes." if asked in shown else "No."


def _numbers(pool: Pool, rng: random.Random, sign: str, largest: int) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, largest), rng.randint(0, largest)
        if pool.takes(f"{min(a, b)}{sign}{max(a, b)}"):  # 2 + 3 and 3 + 2 are one item
            return a, b


def plus(pool: Pool, rng: random.Random) -> Pair:
    """Sums to 198."""
    a, b = _numbers(pool, rng, "+", rng.choice((10, 20, 99)))
    return _ask(rng, f"{a} + {b}", "What is {}?", "Calculate {}.", "{} =", f"Add {a} and {b}."), str(a + b)


def minus(pool: Pool, rng: random.Random) -> Pair:
    """Differences that are not negative."""
    a, b = sorted(_numbers(pool, rng, "-", rng.choice((10, 20, 99))), reverse=True)
    return _ask(rng, f"{a} - {b}", "What is {}?", "Calculate {}.", "{} =", f"Subtract {b} from {a}."), str(a - b)


def times(pool: Pool, rng: random.Random) -> Pair:
    """The tables to twelve."""
    a, b = _numbers(pool, rng, "*", 12)
    return _ask(rng, f"{a} * {b}", "What is {}?", "Calculate {}.", f"Multiply {a} by {b}."), str(a * b)


def compare(pool: Pool, rng: random.Random) -> Pair:
    """The larger or smaller of two numbers."""
    a, b = _numbers(pool, rng, "<>", 999)
    which, answer = rng.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    return f"Which number is {which}, {a} or {b}?", str(answer)


def next_number(pool: Pool, rng: random.Random) -> Pair:
    """Go on counting by one, two, five or ten."""
    start, step = _numbers(pool, rng, "..", 90)[0], rng.choice((1, 1, 2, 5, 10))
    while not pool.takes(f"{start}..{step}"):
        start = rng.randint(0, 900)
    shown = ", ".join(str(start + step * i) for i in range(4))
    ways = ("What number comes next? {}", "Go on counting: {}", "Continue: {}")
    return _ask(rng, shown, *ways), str(start + step * 4)


def define(pool: Pool, rng: random.Random) -> Pair:
    """The meaning in which a word is used most."""
    word, part, gloss = rng.choice(pool.meanings)
    ways = ("What does {} mean?", "Define {}.", "What is the meaning of the word {}?", "Explain the word {}.")
    return _ask(rng, word, *ways, f"Define the {part} {word}."), f"{gloss[0].upper()}{gloss[1:]}."


def which_word(pool: Pool, rng: random.Random) -> Pair:
    """The word for a meaning."""
    word, part, gloss = rng.choice(pool.meanings)
    return f"Which {part} with the first letter {word[0]} means this? {gloss}", word


def example(pool: Pool, rng: random.Random) -> Pair:
    """A sentence with a word."""
    word, sentence = rng.choice(pool.examples)
    ways = ("Use {} in a sentence.", "Give an example sentence with the word {}.", "Write a sentence with {}.")
    return _ask(rng, word, *ways), sentence


def part_of_speech(pool: Pool, rng: random.Random) -> Pair:
    """Noun, verb, adjective or adverb, in the meaning in which it is used most."""
    word, part, _ = rng.choice(pool.meanings)
    return _ask(rng, word, "What part of speech is {}?", "Is {} a noun, a verb, an adjective or an adverb?"), part


def kind(pool: Pool, rng: random.Random) -> Pair:
    """The wider word."""
    word, wider = rng.choice(pool.kinds)
    ways = ("What kind of thing is this: {}?", "Name a wider word for {}.")
    return _ask(rng, word, *ways), wider


def is_kind(pool: Pool, rng: random.Random) -> Pair:
    """Whether a word is of a kind."""
    word, wider = rng.choice(pool.kinds)
    asked = wider if rng.random() < 0.5 else rng.choice(pool.kinds)[1]
    return f"Is {word} a kind of {asked}?", "Yes." if asked == wider else f"No, {word} is a kind of {wider}."


def opposite(pool: Pool, rng: random.Random) -> Pair:
    """The antonym."""
    word, other = rng.choice(pool.opposites)
    ways = ("What is the opposite of {}?", "Give the opposite of {}.", "Name an antonym of {}.")
    return _ask(rng, word, *ways), other


def complete(pool: Pool, rng: random.Random) -> Pair:
    """The rest of a sentence."""
    start, sentence = rng.choice(pool.starts)
    return _ask(rng, start, "Complete the sentence: {} ...", "Finish this sentence: {} ..."), sentence


def correct(pool: Pool, rng: random.Random) -> Pair:
    """Capitals and the full stop."""
    sentence = rng.choice(pool.sentences)
    broken = sentence.rstrip(".?!").lower()
    ways = ("Correct the capitals and the end of this sentence: {}", "Write this as a proper sentence: {}")
    return _ask(rng, broken, *ways), sentence


def question(pool: Pool, rng: random.Random) -> Pair:
    """Whether a sentence asks."""
    sentence = rng.choice(pool.sentences)
    answer = "a question" if sentence.endswith("?") else "a statement"
    return f"Is this a question or a statement? {sentence.rstrip('.?!')}", answer


def go_on(pool: Pool, rng: random.Random) -> Pair:
    """The next sentence of a book."""
    first, rest = rng.choice([(first, rest) for _, first, rest in pool.passages if rest])
    return _ask(rng, first, "Continue the text: {}", "Write the next sentence: {}", "What comes next? {}"), rest


def style(pool: Pool, rng: random.Random) -> Pair:
    """What a text is from."""
    name, first, _ = rng.choice(pool.passages)
    return _ask(rng, first, "What kind of text is this from? {}", "Where may this be from? {}"), f"From {name}."


def problem(pool: Pool, rng: random.Random) -> Pair:
    """A word problem with its working."""
    return rng.choice(pool.problems)


def capital(pool: Pool, rng: random.Random) -> Pair:
    """A capital, or the country of one."""
    name, city, _ = rng.choice(pool.countries)
    if rng.random() < 0.3:
        return f"{city} is the capital of which country?", name
    return _ask(rng, name, "What is the capital of {}?", "Name the capital of {}."), city


def where(pool: Pool, rng: random.Random) -> Pair:
    """Where a country is."""
    name, _, place = rng.choice(pool.countries)
    return _ask(rng, name, "Where is {}?", "Where in the world is {}?"), f"{place[0].upper()}{place[1:].rstrip('.')}."


def hello(pool: Pool, rng: random.Random) -> Pair:
    """A greeting with a name, and a name that is asked for."""
    name = rng.choice(pool.names)
    hi = rng.choice(("Hello", "Hi", "Good morning", "Good evening", "Good day"))
    end = rng.choice((".", "!"))
    ways = (
        f"{hi}, I am {{}}{end}",
        f"{hi}! My name is {{}}{end}",
        f"{hi}, my name is {{}}{end}",
        f"{hi}, {{}} here{end}",
    )
    if rng.random() < 0.3:
        return f"My name is {name}. What is my name?", f"Your name is {name}."
    return _ask(rng, name, *ways), f"{hi}, {name}! How can I help you?"


def manners(pool: Pool, rng: random.Random) -> Pair:
    """What is said between other things; the few that there are come again in many chats."""
    return rng.choice(
        (
            ("Thank you.", "You are welcome."),
            ("Thanks!", "You are welcome."),
            ("Who are you?", "I am a small language model, trained by ftune."),
            ("What are you?", "I am a small language model, trained by ftune."),
            ("What can you do?", "I can copy, spell, count, define words and finish sentences."),
            ("How are you?", "I am well, thank you. How can I help you?"),
            ("Can you help me?", "Yes. What do you need?"),
            ("Hello!", "Hello! How can I help you?"),
            ("Hi", "Hello! How can I help you?"),
            ("Goodbye.", "Goodbye!"),
        )
    )


TASKS: dict[str, tuple[Callable[[Pool, random.Random], Pair], int]] = {
    "repeat": (repeat, 6),
    "reverse": (reverse, 4),
    "pick": (pick, 4),
    "count_words": (count_words, 3),
    "count_letters": (count_letters, 3),
    "spell": (spell, 4),
    "first_letter": (first_letter, 3),
    "upper": (upper, 3),
    "lower": (lower, 3),
    "order": (order, 3),
    "odd_one": (odd_one, 3),
    "plus": (plus, 6),
    "minus": (minus, 4),
    "times": (times, 2),
    "compare": (compare, 3),
    "next_number": (next_number, 3),
    "define": (define, 8),
    "which_word": (which_word, 3),
    "example": (example, 6),
    "part_of_speech": (part_of_speech, 3),
    "kind": (kind, 4),
    "is_kind": (is_kind, 4),
    "opposite": (opposite, 3),
    "complete": (complete, 6),
    "correct": (correct, 4),
    "question": (question, 2),
    "go_on": (go_on, 6),
    "style": (style, 3),
    "problem": (problem, 4),
    "capital": (capital, 1),
    "where": (where, 1),
    "hello": (hello, 2),
    "manners": (manners, 4),
}
