"""YAML: the traps have the right value or an error at the right place, and nothing hangs or recurses."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftune.errors import RecipeError
from ftune.yaml_file import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, Node, parse_yaml, read_yaml

SCALARS: list[tuple[str, Any]] = [
    # numbers, YAML 1.2
    ("3", 3), ("+3", 3), ("-3", -3), ("0", 0), ("-0", 0), ("00", 0), ("010", 10), ("-010", -10), ("08", 8),
    ("0x10", 16), ("0xfF", 255), ("0o17", 15), ("9223372036854775808", 2**63),
    ("1e-5", 1e-5), ("5e-5", 5e-5), ("2e-4", 2e-4), ("1E3", 1000.0), ("1e+3", 1000.0), ("1e5", 1e5),
    ("-2.5e-3", -0.0025),
    (".5", 0.5), ("-.5", -0.5), ("+.5", 0.5), ("1.", 1.0), ("1.5", 1.5), ("0.0", 0.0), ("1e999", math.inf),
    (".inf", math.inf), ("+.INF", math.inf), ("-.Inf", -math.inf),
    # what only looks like a number
    ("1_000", "1_000"), ("12:30", "12:30"), ("12:30:00", "12:30:00"), ("0b1", "0b1"), ("-0x10", "-0x10"),
    ("0o8", "0o8"), ("1e", "1e"), ("e5", "e5"), (".", "."), ("1.5.2", "1.5.2"), ("2024-01-01", "2024-01-01"),
    ("inf", "inf"), ("nan", "nan"),
    ("- 1", [1]), ("5%", "5%"), ("3 epochs", "3 epochs"), ("1,000", "1,000"), ("\u0663", "\u0663"), ("+", "+"),
    # booleans and null
    ("true", True), ("false", False), ("True", "True"), ("TRUE", "TRUE"), ("False", "False"),
    ("yes", "yes"), ("no", "no"),
    ("Yes", "Yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("n", "n"),
    ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
    ("none", "none"), ("None", "None"),
    # quoted is text
    ("'3'", "3"), ('"2e-4"', "2e-4"), ("'true'", "true"), ('"null"', "null"), ("'~'", "~"), ("''", ""), ('""', ""),
    ("'it''s'", "it's"), (r'"a\tb\n"', "a\tb\n"), (r'"\u00e9"', "é"), (r'"\ud83d\ude00"', "😀"),
    (r'"\U0001F600"', "😀"),
    # plain text
    ("a b", "a b"), ("a#b", "a#b"), ("3 # three", 3), ("http://x:80/y", "http://x:80/y"),
    ("naïve 日本 😀", "naïve 日本 😀"),
    ("train[:400]", "train[:400]"), ("=", "="), ("a\n  b", "a b"), ("'a\n\n  b'", "a\nb"), ("'a\n \tb'", "a b"),
    # blocks of text
    ("|\n  a\n    b\n", "a\n  b\n"), ("|\n  a\n  \tb\n", "a\n\tb\n"), ("|-\n  007\n", "007"), ("|+\n  a\n\n", "a\n\n"),
    (">\n  a\n  b\n", "a b\n"), ("|\n  # no comment\n", "# no comment\n"),
    # collections
    ("[]", []), ("{}", {}), ("[1, '1', 1.0, null]", [1, "1", 1.0, None]), ("{a: 1, 'b': [2]}", {"a": 1, "b": [2]}),
    ("{1: a, true: b, ~: c}", {"1": "a", "true": "b", "~": "c"}), ("{<<: {a: 1}}", {"<<": {"a": 1}}),
]  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal type at every level: `1 == 1.0 == True` in Python."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def refused(text: str, file: str = "r.yaml") -> list[str]:
    """The lines of the error that `text` is answered with."""
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, file)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_values(text: str, value: Any) -> None:
    tree = parse_yaml(f"key: {text}" if not text.startswith("- ") else f"key:\n{text}", "r.yaml")
    assert same(tree.plain(), {"key": value}), tree.plain()


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text: str) -> None:
    assert math.isnan(parse_yaml(text, "r.yaml").value)


def test_minus_zero_keeps_its_sign_as_a_float() -> None:
    assert math.copysign(1, parse_yaml("-0.0", "r.yaml").value) == -1


ERRORS: list[tuple[str, str, list[str]]] = [
    ("duplicate", "seed: 1\nmodel: m\nseed: 2\n", ["3:1 seed: is written twice, first at r.yaml:1:1. Remove one."]),
    ("duplicate of an equal value", "a: 1\na: 1\n", ["2:1 a: is written twice, first at r.yaml:1:1. Remove one."]),
    (
        "nested duplicate",
        "train:\n  lr: 1\n  lr: 2\n",
        ["3:3 train.lr: is written twice, first at r.yaml:2:3. Remove one."],
    ),
    ("flow duplicate", "a: {b: 1, b: 2}\n", ["1:11 a.b: is written twice, first at r.yaml:1:5. Remove one."]),
    ("quoted duplicate", "a: 1\n'a': 2\n", ["2:1 a: is written twice, first at r.yaml:1:1. Remove one."]),
    (
        "duplicate in a list, and three of a kind",
        "a:\n- b: 1\n  b: 2\n  b: 3\n",
        [
            "3:3 a.0.b: is written twice, first at r.yaml:2:3. Remove one.",
            "4:3 a.0.b: is written twice, first at r.yaml:2:3. Remove one.",
        ],
    ),
    ("tab", "train:\n\tlr: 1\n", ["2:1 a tab in the indentation. Use spaces."]),
    ("spaces, then a tab", "train:\n  \tlr: 1\n", ["2:3 a tab in the indentation. Use spaces."]),
    ("tab in a flow block", "train: {\n\tlr: 1}\n", ["2:1 a tab in the indentation. Use spaces."]),
    ("tab before a comment", "a: 1\n\t# b\n", ["2:1 a tab in the indentation. Use spaces."]),
    ("tab at the end", "a: 1\t\n", ["1:5 a tab outside quotes. Use spaces."]),
    ("anchor", "a: &x 1\n", ["1:4 anchors (&) are not supported. Write the value out."]),
    (
        "anchor and alias",
        "a: &x 1\nb: *x\n",
        [
            "1:4 anchors (&) are not supported. Write the value out.",
            "2:4 aliases (*) are not supported. Write the value out.",
        ],
    ),
    ("alias without anchor", "b: *x\n", ["1:4 aliases (*) are not supported. Write the value out."]),
    ("merge key", "a: {<<: *x}\n", ["1:9 aliases (*) are not supported. Write the value out."]),
    ("python tag", "a: !!python/object/apply:os.system [x]", ["1:4 tags (!) are not supported. Write the value out."]),
    ("harmless tag", "a:\n  b: !!int '3'\n", ["2:6 tags (!) are not supported. Write the value out."]),
    ("local tag on a key", "!x a: 1\n", ["1:1 tags (!) are not supported. Write the value out."]),
    ("directive", "%YAML 1.2\n---\na: 1\n", ["1:1 directives (%) are not supported. Write the value out."]),
    ("tag directive", "%TAG ! x\n---\na: 1\n", ["1:1 directives (%) are not supported. Write the value out."]),
    ("two documents", "a: 1\n---\nb: 2\n", ["2:1 a second document. Keep one."]),
    ("two documents with an end", "a: 1\n...\n---\nb: 2\n", ["3:1 a second document. Keep one."]),
    ("unclosed bracket", "a: [1, 2\nb: 3\n", ["2:2 is not valid YAML: expected ',' or ']', but got ':'."]),
    ("unclosed brace", "a: {b: 1\n", ["2:1 is not valid YAML: expected ',' or '}', but got '<stream end>'."]),
    ("unclosed quote", "a: 'b\n", ["2:1 is not valid YAML: found unexpected end of stream."]),
    ("wrong indentation", "a:\n    b: 1\n  c: 2\n",
     ["3:3 is not valid YAML: expected <block end>, but found '<block mapping start>'."]),
    ("colon in text", "a: b: c\n", ["1:5 is not valid YAML: mapping values are not allowed here."]),
    ("reserved character", "a: @b\n", ["1:4 is not valid YAML: found character '@' that cannot start any token."]),
    ("word beside a block", "a: 1\nb\n", ["3:1 is not valid YAML: could not find expected ':'."]),
    ("NUL", "a: 1\nbc\0d: 1\n", ["2:3 holds a character that YAML does not allow."]),
    ("control character", "a: \x07\n", ["1:4 holds a character that YAML does not allow."]),
    ("escaped NUL", 'a:\n  b: "x\\0"\n', ["2:6 a.b: a NUL character. Remove it."]),
    ("escape beyond Unicode", 'a: "x\\UFFFFFFFF"\n', ["1:8 an escape that is no character."]),
    ("next escape beyond Unicode", 'a: "\\U00110000"\n', ["1:7 an escape that is no character."]),
    ("half a surrogate pair", 'a: "\\ud83d x"\n', ["1:4 a: half of a surrogate pair, which is no character."]),
    ("the other half, in a key", '{"\\udE00": 1}\n', ["1:2 half of a surrogate pair, which is no character."]),
    ("long number", f"a: {'9' * 5000}\n", ["1:4 a: a number of 5000 characters; 100 are enough."]),
    ("long hexadecimal", f"a: [0x{'f' * 5000}]\n", ["1:5 a.0: a number of 5002 characters; 100 are enough."]),
    ("long fraction", f"a: 0.{'1' * 5000}\n", ["1:4 a: a number of 5002 characters; 100 are enough."]),
    ("a list as key", "? [a, b]\n: 1\n", ["1:3 expected a plain word as key."]),
    ("a block as key", "a:\n  {b: 1}: 2\n", ["2:3 a: expected a plain word as key."]),
    (
        "two kinds at once",
        "a: 1\na: 2\n[b]: 3\n",
        ["2:1 a: is written twice, first at r.yaml:1:1. Remove one.", "3:1 expected a plain word as key."],
    ),
    ("deep", "[" * 21, ["1:21 nested deeper than 20 levels."]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "lines"), [(text, lines) for _, text, lines in ERRORS], ids=[name for name, _, _ in ERRORS]
)
def test_errors_have_their_place(text: str, lines: list[str]) -> None:
    assert refused(text) == [f"r.yaml:{line}" for line in lines]


@pytest.mark.parametrize("text", [text for _, text, _ in ERRORS], ids=[name for name, _, _ in ERRORS])
def test_errors_of_the_command_line_have_no_line(text: str) -> None:
    assert refused(text, "--set") == [re.sub(r"r\.yaml:\d+:\d+", "--set", line) for line in refused(text)]


def test_every_name_of_an_alias_bomb_is_refused_before_anything_is_built() -> None:
    bomb = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    started = time.perf_counter()
    lines = refused(bomb)
    assert len(lines) == 10 + 9 * 9
    assert lines[0] == "r.yaml:1:5 anchors (&) are not supported. Write the value out."
    assert time.perf_counter() - started < 1


DEEP = {
    "flow lists": "a: " + "[" * 10_000 + "]" * 10_000,
    "unclosed flow lists": "[" * 10_000,
    "flow blocks": "{a: " * 10_000 + "1" + "}" * 10_000,
    "pairs in lists": "[a: " * 10_000,
    "block lists": "- " * 10_000 + "a",
    "keys of keys": "? " * 10_000 + "a",
    "keys of keys in lists": "? - " * 10_000 + "a",
    "blocks": "".join(" " * level + "a:\n" for level in range(10_000)),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=list(DEEP))
def test_ten_thousand_levels_are_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    [line] = refused(text)
    assert line.endswith(f" nested deeper than {MAX_DEPTH} levels.")
    assert time.perf_counter() - started < 2


def test_the_deepest_text_that_is_read() -> None:
    value: Any = parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "r.yaml").plain()
    for _ in range(MAX_DEPTH - 1):
        [value] = value
    assert value == []


@pytest.mark.parametrize("digits", [MAX_DIGITS, MAX_DIGITS + 1])
def test_the_longest_number_that_is_read(digits: int) -> None:
    if digits <= MAX_DIGITS:
        assert parse_yaml("9" * digits, "r.yaml").value == 10**digits - 1
    else:
        assert refused("9" * digits) == ["r.yaml:1:1 a number of 101 characters; 100 are enough."]


def test_long_text_of_digits_is_no_number() -> None:
    assert parse_yaml(f"'{'9' * 5000}'", "r.yaml").value == "9" * 5000


def test_every_value_knows_its_place() -> None:
    tree = parse_yaml("a: 1\nb:\n  c: [x, {d: 2}]\n  e:\n", "r.yaml")
    assert {path: node.where for path, node in tree.walk()} == {
        ("a",): "r.yaml:1:4",
        ("b",): "r.yaml:3:3",
        ("b", "c"): "r.yaml:3:6",
        ("b", "c", 0): "r.yaml:3:7",
        ("b", "c", 1): "r.yaml:3:10",
        ("b", "c", 1, "d"): "r.yaml:3:14",
        ("b", "e"): "r.yaml:4:5",
    }
    assert tree.keys == {"a": "r.yaml:1:1", "b": "r.yaml:2:1"}
    assert tree.value["b"].keys == {"c": "r.yaml:3:3", "e": "r.yaml:4:3"}


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("a", "1:1"),
        ("b", "2:1"),
        ("b.c", "3:3"),
        ("b.c.0", "3:7"),
        ("b.c.1", "3:10"),
        ("b.c.1.d", "3:11"),
        ("b.c.2", "3:3"),
        ("b.c.x", "3:3"),
        ("b.nothing", "2:1"),
        ("a.nothing", "1:1"),
        ("b.layers.0.q", "4:3"),
        ("b.e.f", "5:3"),
        ("b.e", "2:1"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_places_are_found_by_path(path: str, where: str) -> None:
    """The key of a value, an entry of a list, or the nearest block above; keys may hold dots."""
    tree = parse_yaml("a: 1\nb:\n  c: [x, {d: 2}]\n  layers.0.q: 1\n  e.f: 2\n", "r.yaml")
    assert tree.place(path) == (where and f"r.yaml:{where}")


def test_merging_goes_key_by_key_through_blocks_and_replaces_anything_else() -> None:
    under = parse_yaml("a: {b: 1, c: 2}\nlist: [1, 2]\ntext: x\nblock: {y: 1}\nkept: 0\n", "under.yaml")
    over = parse_yaml("new: 1\na: {c: 3, d: {}}\nlist: [3]\ntext: {z: 1}\nblock: ~\n", "over.yaml")
    under.merge(over)
    assert under.plain() == {
        "a": {"b": 1, "c": 3, "d": {}},
        "list": [3],
        "text": {"z": 1},
        "block": None,
        "kept": 0,
        "new": 1,
    }
    assert under.place("a.b") == "under.yaml:1:5"
    assert under.place("a.c") == "over.yaml:2:5"
    assert under.place("kept") == "under.yaml:5:1"
    assert under.place("block") == "over.yaml:5:1"


def read(path: Path, content: bytes) -> tuple[Node, str]:
    path.write_bytes(content)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a: 1\nb: x\n", "a: 1\nb: x\n"),
        (b"\xef\xbb\xbfa: 1\nb: x\n", "a: 1\nb: x\n"),
        (b"a: 1\r\nb: x\r\n", "a: 1\r\nb: x\r\n"),
        (b"a: 1\rb: x\r", "a: 1\rb: x\r"),
        (b"\n# comment\na: 1 # one\n\nb: x", "\n# comment\na: 1 # one\n\nb: x"),
        (b"---\na: 1\nb: x\n...\n", "---\na: 1\nb: x\n...\n"),
        (b'{"a": 1, "b": "x"}', '{"a": 1, "b": "x"}'),
        (b"b: x\na: 1\n  \n", "b: x\na: 1\n  \n"),
    ],
    ids=["plain", "BOM", "CRLF", "CR", "comments", "markers", "JSON", "blanks"],
)
def test_files(tmp_path: Path, content: bytes, text: str) -> None:
    tree, read_text = read(tmp_path / "r.yaml", content)
    assert same(dict(sorted(tree.plain().items())), {"a": 1, "b": "x"})
    assert read_text == text


def test_a_byte_order_mark_and_wide_letters_shift_no_column(tmp_path: Path) -> None:
    tree, _ = read(tmp_path / "r.yaml", "\ufeffa: {日本: 1, b: 2}\r\nc: 3\r\n".encode())
    assert tree.place("a.b").endswith("r.yaml:1:12")
    assert tree.place("c").endswith("r.yaml:2:1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1:1 expected a block of keys (model, method, data, ...), received an empty file."),
        (b"\n# nothing\n", ":1:1 expected a block of keys (model, method, data, ...), received an empty file."),
        (b"- a\n- b\n", ":1:1 expected a block of keys (model, method, data, ...), received a list."),
        (b"\n\nlora\n", ":3:1 expected a block of keys (model, method, data, ...), received a single value."),
        (b"3\n", ":1:1 expected a block of keys (model, method, data, ...), received a single value."),
        (b"a: 1\nb: caf\xe9\n", ":2:7 is not UTF-8 text."),
        ("a: 1\n".encode("utf-16"), ":1:1 is not UTF-8 text."),
        (b"a: 1\nb\x00: 2\n", ":2:2 holds a character that YAML does not allow."),
        (b"a: 1\na: 2\n", ":2:1 a: is written twice, first at {path}:1:1. Remove one."),
        (b"#" * (MAX_BYTES + 1), " is larger than 100,000 bytes; this is no recipe."),
        (b"a: 1\n" * 300_000, " is larger than 100,000 bytes; this is no recipe."),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(RecipeError) as caught:
        read(path, content)
    [problem] = caught.value.problems
    assert str(problem) == f"{path}{message}".replace("{path}", str(path))


def test_the_largest_file_that_is_read(tmp_path: Path) -> None:
    tree, _ = read(tmp_path / "r.yaml", b"a: 1\n" + b"#" * (MAX_BYTES - 5))
    assert tree.plain() == {"a": 1}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.yaml", "No such file or directory"),
        (".", "Is a directory"),
        ("loop.yaml", "Too many levels of symbolic links"),
        ("a" * 300, "File name too long"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(RecipeError) as caught:
        read_yaml(tmp_path / name)
    assert [str(problem) for problem in caught.value.problems] == [f"{tmp_path / name} cannot be read: {reason}."]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(RecipeError, match="is larger than"):
        read_yaml(Path("/dev/zero"))


LETTERS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | LETTERS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            LETTERS.map(lambda text: text[:80]), inner, max_size=4
        )  # YAML's keys end within 1024 characters
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_is_yaml(value: Any) -> None:
    """Also a check of numbers, escapes and surrogate pairs against a parser that is not ours."""
    assert same(parse_yaml(json.dumps(value), "r.yaml").plain(), value)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab01.:-# \n\t{}[],'\"&*!%|>?@\\\0\ufeff\u2028\x85é😀u")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = parse_yaml(text, "r.yaml")
    except RecipeError as error:
        assert error.problems
        assert all(problem.where.startswith("r.yaml:") for problem in error.problems)
    else:
        assert all(node.where.startswith("r.yaml:") for _, node in tree.walk())
