"""What YAML is known to turn into something else, as a recipe's author meets it: the right value in the right field, or
an error at its line. `tests/unit/test_yaml_file.py` has the same traps one level lower, value by value.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ftune.errors import RecipeError
from ftune.load import load_recipe

HEAD = "model: m\ndata: {train: d.jsonl, eval: 5%}\n"
DATA = "model: m\ndata: {train: d.jsonl, eval: 5%, "
RATE = "'auto' or a number, received"
BOOL = "true or false, received"
TOO_LARGE = " is larger than 100,000 bytes; this is no recipe."
"""Said of the file, which has then been read no further."""
WHOLE = "a whole number, received"
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

VALUES: list[tuple[str, str | bytes, str, Any]] = [
    ("1e-5", HEAD + "train: {learning_rate: 1e-5}", "train.learning_rate", 1e-5),
    ("5e-5", HEAD + "train:\n  learning_rate: 5e-5", "train.learning_rate", 5e-5),
    ("2E-4", HEAD + "train: {learning_rate: 2E-4}", "train.learning_rate", 2e-4),
    (".5", HEAD + "train: {weight_decay: .5}", "train.weight_decay", 0.5),
    ("1.", HEAD + "train: {weight_decay: 1.}", "train.weight_decay", 1.0),
    ("an int for a float", HEAD + "train: {weight_decay: 1}", "train.weight_decay", 1.0),
    ("0 is no null", HEAD + "train: {weight_decay: 0}", "train.weight_decay", 0.0),
    ("010", HEAD + "train: {batch_size: 010}", "train.batch_size", 10),
    ("08", HEAD + "train: {batch_size: 08}", "train.batch_size", 8),
    ("0x10", HEAD + "train: {batch_size: 0x10}", "train.batch_size", 16),
    ("0o17", HEAD + "train: {batch_size: 0o17}", "train.batch_size", 15),
    ("+3", HEAD + "seed: +3", "seed", 3),
    ("12:30", DATA + "columns: {prompt: 12:30}}", "data.columns.prompt", "12:30"),
    ("12:30:00", HEAD + "output_dir: 12:30:00", "output_dir", "12:30:00"),
    ("a date", HEAD + "output_dir: 2026-01-01", "output_dir", "2026-01-01"),
    ("1_000 tokens", HEAD + "train: {duration: 2_000_000 tokens}", "train.duration", "2_000_000 tokens"),
    ("~ is null", HEAD + "train: {max_grad_norm: ~}", "train.max_grad_norm", None),
    ("nothing is null", HEAD + "train:\n  max_grad_norm:\n", "train.max_grad_norm", None),
    ("'~' is text", DATA + "columns: {prompt: '~'}}", "data.columns.prompt", "~"),
    ("no, as a name", DATA + "columns: {prompt: no}}", "data.columns.prompt", "no"),
    ("on, as a name", DATA + "columns: {prompt: on}}", "data.columns.prompt", "on"),
    ("y, as a name", DATA + "columns: {prompt: y}}", "data.columns.prompt", "y"),
    ("NO, as a label", "model: m\ndata: {train: {path: d, values: {label: NO}}}", "data.train.values.label", "NO"),
    ("true", HEAD + "train: {deterministic: true}", "train.deterministic", True),
    ("5%", "model: m\ndata: {train: d.jsonl, eval: 5%}", "data.eval", "5%"),
    ("a # inside a word", DATA + "group_by: a#b}", "data.group_by", "a#b"),
    ("a # after a space", HEAD + "seed: 7 # or 8", "seed", 7),
    ("a Windows path", HEAD + "output_dir: C:\\runs\\new", "output_dir", "C:\\runs\\new"),
    ("braces in quotes", DATA + 'template: "{{ prompt }}: "}', "data.template", "{{ prompt }}: "),
    ("a block of text", "model: m\ndata:\n  train: d.jsonl\n  template: |\n    a: {{ prompt }}\n    # b\n",
     "data.template", "a: {{ prompt }}\n# b\n"),
    ("a folded text", "model: m\ndata:\n  train: d.jsonl\n  template: >-\n    a\n    b\n", "data.template", "a b"),
    ("a hub id that is a number", "model: '123'\ndata: {train: d.jsonl}", "model.name", "123"),
    ("a commit of digits, quoted", "model: {name: m, revision: '0123456'}\ndata: {train: d.jsonl}", "model.revision",
     "0123456"),
    ("BOM", b"\xef\xbb\xbf" + (HEAD + "seed: 7").encode(), "seed", 7),
    ("CRLF", (HEAD + "seed: 7\n").replace("\n", "\r\n").encode(), "seed", 7),
    ("CR alone", (HEAD + "seed: 7\n").replace("\n", "\r").encode(), "seed", 7),
    ("JSON", '{"model": "m", "data": {"train": "d.jsonl"}, "seed": 7}', "seed", 7),
    ("no line end", HEAD + "seed: 7", "seed", 7),
    ("a document with its marks", "---\n" + HEAD + "seed: 7\n...\n", "seed", 7),
    ("a word that is wide", DATA + "columns: {prompt: 問題🙂}}", "data.columns.prompt", "問題🙂"),
]  # fmt: skip

ERRORS: list[tuple[str, str | bytes, str]] = [
    ("1e-5 in quotes", HEAD + "train: {learning_rate: '1e-5'}", f"3:9 train.learning_rate: expected {RATE} '1e-5'."),
    ("1_000", HEAD + "train: {batch_size: 1_000}", f"3:9 train.batch_size: expected {WHOLE} '1_000'."),
    ("1,000", HEAD + "train:\n  batch_size: 1,000", f"4:3 train.batch_size: expected {WHOLE} '1,000'."),
    ("0b1", HEAD + "seed: 0b1", f"3:1 seed: expected {WHOLE} '0b1'."),
    ("8.0", HEAD + "seed: 8.0", f"3:1 seed: expected {WHOLE} 8.0."),
    ("true as 1", HEAD + "seed: true", f"3:1 seed: expected {WHOLE} true."),
    (".inf", HEAD + "train: {weight_decay: .inf}", "3:9 train.weight_decay: expected a finite number, received inf."),
    (".nan", HEAD + "train: {weight_decay: .nan}", "3:9 train.weight_decay: expected a finite number, received nan."),
    ("no", HEAD + "train: {deterministic: no}", f"3:9 train.deterministic: expected {BOOL} 'no'."),
    ("on", HEAD + "train: {deterministic: on}", f"3:9 train.deterministic: expected {BOOL} 'on'."),
    ("yes", HEAD + "train: {deterministic: yes}", f"3:9 train.deterministic: expected {BOOL} 'yes'."),
    ("True", HEAD + "train: {deterministic: True}", f"3:9 train.deterministic: expected {BOOL} 'True'."),
    ("1 as true", HEAD + "train: {deterministic: 1}", f"3:9 train.deterministic: expected {BOOL} 1."),
    ("12:30 as a number", HEAD + "train: {batch_size: 12:30}", f"3:9 train.batch_size: expected {WHOLE} '12:30'."),
    ("a commit of digits", "model: {name: m, revision: 1234567}\ndata: {train: d.jsonl}",
     "1:18 model.revision: expected text, received 1234567."),
    ("~ where text must be", "model: ~\ndata: {train: d.jsonl}", "1:1 model: expected a block of keys, received null."),
    ("a label that is null", "model: m\ndata: {train: {path: d.jsonl, values: {label: ~}}}",
     "2:40 data.train.values.label: expected text or a whole number or a number or true or false, received null."),
    ("a key twice", HEAD + "seed: 1\nseed: 1\n", "4:1 seed: is written twice, first at r.yaml:3:1. Remove one."),
    ("a key twice, in quotes", HEAD + "seed: 1\n'seed': 2\n",
     "4:1 seed: is written twice, first at r.yaml:3:1. Remove one."),
    ("a key twice, in a flow", DATA + "eval: 6%}",
     "2:34 data.eval: is written twice, first at r.yaml:2:24. Remove one."),
    ("a tab", HEAD + "train:\n\tbatch_size: 4\n", "4:1 a tab in the indentation. Use spaces."),
    ("a tab after a key", HEAD + "seed:\t7\n", "3:6 a tab outside quotes. Use spaces."),
    ("an anchor", HEAD + "seed: &s 7\n", "3:7 anchors (&) are not supported. Write the value out."),
    ("a merge key", HEAD + "train: {<<: *base}\n", "3:13 aliases (*) are not supported. Write the value out."),
    ("a bomb of aliases", "a0: &a0 [lol]\n" + BOMB, "1:5 anchors (&) are not supported. Write the value out."),
    ("!!python/object/apply", "model: !!python/object/apply:os.system ['touch hit']\n",
     "1:8 tags (!) are not supported. Write the value out."),
    ("!!python/name", HEAD + "seed: !!python/name:os.system\n", "3:7 tags (!) are not supported. Write the value out."),
    ("!!python/module", "!!python/module:os a: 1\n", "1:1 tags (!) are not supported. Write the value out."),
    ("!!binary", HEAD + "output_dir: !!binary aGk=\n", "3:13 tags (!) are not supported. Write the value out."),
    ("!!float", HEAD + "seed: !!float 7\n", "3:7 tags (!) are not supported. Write the value out."),
    ("%YAML 1.1", "%YAML 1.1\n---\n" + HEAD, "1:1 directives (%) are not supported. Write the value out."),
    ("two documents", HEAD + "---\n" + HEAD, "3:1 a second document. Keep one."),
    ("NUL", HEAD.encode() + b"seed: 7\0\n", "3:8 holds a character that YAML does not allow."),
    ("NUL, escaped", DATA + 'template: "a\\0b"}', "2:44 data.template: a NUL character. Remove it."),
    ("half a surrogate", DATA + 'template: "\\ud83d"}',
     "2:44 data.template: half of a surrogate pair, which is no character."),
    ("an escape beyond Unicode", DATA + 'template: "\\UFFFFFFFF"}', "2:47 an escape that is no character."),
    ("Latin-1", HEAD.encode() + b"output_dir: caf\xe9\n", "3:16 is not UTF-8 text."),
    ("UTF-16", HEAD.encode("utf-16"), "1:1 is not UTF-8 text."),
    ("10 MB", HEAD.encode() + b"# " + b"x" * 10_000_000, TOO_LARGE),
    ("10 MB of keys", HEAD.encode() + b"".join(b"k%d: 1\n" % n for n in range(900_000)), TOO_LARGE),
    ("depth 10,000, in a flow", HEAD + "seed: " + "[" * 10_000 + "]" * 10_000, "3:26 nested deeper than 20 levels."),
    ("depth 400, in blocks", HEAD + "".join(" " * n + "a:\n" for n in range(400)),
     "23:21 nested deeper than 20 levels."),
    ("depth 10,000, in blocks", HEAD + "".join(" " * n + "a:\n" for n in range(10_000)), TOO_LARGE),
    ("a number of 5,000 digits", HEAD + f"seed: {'9' * 5000}",
     "3:7 seed: a number of 5000 characters; 100 are enough."),
    ("a colon without a space", HEAD + "seed:7\n", "4:1 is not valid YAML: could not find expected ':'."),
    ("an unclosed quote", HEAD + "output_dir: 'a\n", "4:1 is not valid YAML: found unexpected end of stream."),
    ("a list as key", HEAD + "? [a]\n: 1\n", "3:3 expected a plain word as key."),
    ("a template that is a block", "model: m\ndata: {train: d, template: {{ prompt }} }\n",
     "2:29 data.template: expected a plain word as key."),
    ("nothing", "", "1:1 expected a block of keys (model, method, data, ...), received an empty file."),
]  # fmt: skip


def load(content: str | bytes) -> Any:
    Path("r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    try:
        return load_recipe(Path("r.yaml"))
    finally:
        assert time.process_time() - started < 1


@pytest.mark.parametrize(("content", "key", "value"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
def test_the_right_value(content: str | bytes, key: str, value: Any) -> None:
    found: Any = load(content).recipe
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(("content", "line"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_an_error_at_its_line(content: str | bytes, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(content)
    assert str(caught.value.problems[0]) == f"r.yaml{'' if line == TOO_LARGE else ':'}{line}"
    assert not Path("hit").exists()


def test_there_are_many() -> None:
    assert len(VALUES) + len(ERRORS) >= 60
    assert len({row[0] for row in [*VALUES, *ERRORS]}) == len(VALUES) + len(ERRORS)
