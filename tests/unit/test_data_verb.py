"""`ftune data`: as text, in colours, as JSON and as a page; hostile rows do nothing; every recipe can be seen."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stand_ins import instead
from typer.testing import CliRunner

from ftune.base import find_base
from ftune.cli import app
from ftune.cli.rows import PAIRS, is_coloured, marks_for, print_rows
from ftune.data.order import window
from ftune.data.spell import visible
from ftune.data.view import Cut, Side, Span, Token, View
from ftune.load import load_recipe
from ftune.prepare import prepare
from ftune.smoke import _guess_family

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
HOSTILE = [
    "<script>alert('x')</script>",
    "</pre></mark></body><img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "&lt;b&gt; &amp; <!-- --> ]]> $x^$ \\",
    "\u202egnp.exe \u2066 \r over \t\x7f",
    "[red]markup[/red] :smile: [/] {{ jinja }} {% raw %}",
    "】not a mark【 ⟪not a remark⟫",
]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def run(*arguments: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["data", *map(str, arguments), "--quiet", "--offline"])
    assert done.exit_code == code, done.output
    return done


def recipe(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": "rows.jsonl", **sections.pop("data", {})}
    values = {"model": "builtin:tiny-llama", "method": "full", "data": data, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder / "recipe.yaml"


def hostile(folder: Path) -> Path:
    return recipe(folder, [{"prompt": text, "completion": text[::-1]} for text in HOSTILE])


def labelled(folder: Path) -> Path:
    rows = [{"text": text, "label": HOSTILE[i % 3]} for i, text in enumerate(HOSTILE)]
    data = {"format": "classification"}
    return recipe(folder, rows, objective="sequence_classification", model="builtin:tiny-bert", data=data)


# as text


def test_plain_text_marks_what_is_learned(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b!"}, {"prompt": "c?", "completion": "d!"}]
    text = run(recipe(tmp_path, rows)).stdout
    assert "Between 【 and 】: what is learned. Between ⟪ and ⟫: remarks" in text
    assert "rows.jsonl:2: 24 tokens, 3 supervised tokens\n" in text
    assert "<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n【d!<|im_end|>】\n" in text
    assert text.count("【") == 3
    assert "train: 6 supervised tokens, 12.5% of 48 tokens" in text
    assert "2 rows in data.train = 2 train; every row is accounted for." in text


def test_packs_of_the_first_step_are_those_that_training_makes(tmp_path: Path) -> None:
    rows = [{"prompt": "?" * (1 + i % 7), "completion": "!" * (1 + i % 5)} for i in range(20)]
    train = {"batch_size": 8, "micro_batch_size": 3}
    path = recipe(tmp_path, rows, train=train, data={"packing": True})
    found = json.loads(run(path, "--json").stdout)["packing"]
    ready = prepare(load_recipe(path), lambda *_: None)
    assert ready.plan.packing
    step = window(
        ready.dataset.train.examples,
        0,
        batch_size=8,
        cut=ready.plan.cut,
        seed=0,
    )
    assert found["capacity"] == ready.plan.micro_batch_tokens
    assert [[(one["row"], one["end"] - one["start"]) for one in pack["examples"]] for pack in found["packs"]] == [
        [(example.number, example.num_tokens) for example in pack] for pack in step.micro_batches
    ]
    for pack in found["packs"]:
        starts, ends = ([one[key] for one in pack["examples"]] for key in ("start", "end"))
        assert (starts[0], starts[1:], ends[-1]) == (0, ends[:-1], pack["tokens"])
        assert pack["tokens"] <= found["capacity"]
    text = run(path).stdout
    assert f"the 8 examples of the first step are laid into {len(step.micro_batches)} packs of at most" in text
    assert f"\npack 1, {found['packs'][0]['tokens']:,} tokens: 0-" in text
    run(path, "--html", tmp_path / "page.html")
    assert "<li>pack 1, " in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_size_of_packs_is_that_of_a_cpu_where_the_plan_chooses(tmp_path: Path) -> None:
    rows = [{"prompt": "?" * (1 + i % 90), "completion": "!" * (1 + i % 50)} for i in range(60)]
    path = recipe(tmp_path, rows, train={"batch_size": 32})
    found = json.loads(run(path, "--json").stdout)["packing"]
    assert "as on a CPU" in found["condition"]
    plan = prepare(load_recipe(path), lambda *_: None).plan
    assert plan.device != "cpu" or found["capacity"] == plan.micro_batch_tokens


@pytest.mark.parametrize(
    ("data", "method", "objective", "why"),
    [
        ({"packing": False}, "full", "causal_lm", "data.packing is false"),
        ({}, {"name": "prompt"}, "causal_lm", "before each row"),
        ({}, "full", "seq2seq_lm", "objective seq2seq_lm reads rows side by side"),
    ],
)
def test_why_there_are_no_packs(tmp_path: Path, data: Any, method: Any, objective: str, why: str) -> None:
    rows = [{"source": "a", "target": "b"}] * 3
    model = f"builtin:tiny-{'t5' if objective == 'seq2seq_lm' else 'llama'}"
    path = recipe(tmp_path, rows, data=data, method=method, objective=objective, model=model)
    assert why in json.loads(run(path, "--json").stdout)["packing"]["refused"]
    assert "\npacking: none: " in run(path).stdout


def test_a_reader_that_leaves_and_a_terminal_of_few_letters(tmp_path: Path) -> None:
    path = recipe(tmp_path, [{"prompt": f"🙂é{i}", "completion": "b" * 99} for i in range(300)])
    command = [sys.executable, "-m", "ftune", "data", str(path), "--quiet", "-n", "300"]
    reading, writing = os.pipe()
    os.close(reading)
    left = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (left.returncode, left.stderr) == (0, "")
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([*command, "--json"], env=latin, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("ascii"))["examples"][0]["text"].count("🙂é0") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_no_bug(tmp_path: Path) -> None:
    path = recipe(tmp_path, [{"prompt": "a", "completion": "b"}])
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ftune", "data", str(path), "--quiet"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("the output cannot be written: No space left on device.")


def test_a_page_is_no_folder(tmp_path: Path) -> None:
    path = recipe(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert "is a folder. Name a file" in run(path, "--html", tmp_path, code=2).stderr


def test_hostile_rows_change_nothing_in_a_terminal(tmp_path: Path) -> None:
    text = run(hostile(tmp_path), "-n", "100", "--tokens").stdout
    assert not CONTROL.search(text)
    assert "Between ⟦ and ⟧: what is learned. Between ❮ and ❯" in text
    for row in HOSTILE:
        assert f"\n{visible(row)}<|im_end|>\n" in text
        assert f"⟦{visible(row[::-1])}<|im_end|>⟧" in text
    text = run(labelled(tmp_path), "-n", "100").stdout
    assert not CONTROL.search(text)
    assert f"label 2: {visible(HOSTILE[0])}" in text


def test_rows_that_hold_every_mark_have_theirs_escaped(tmp_path: Path) -> None:
    every = "".join(opening + closing for opening, closing in PAIRS)
    text = run(recipe(tmp_path, [{"prompt": every, "completion": "x"}])).stdout
    assert "Between 【 and 】: what is learned. Between ⟪ and ⟫" in text
    assert text.count("【") == text.count("】") == 2
    assert "<U+3010><U+3011><U+27EA><U+27EB>⟦⟧" in text


def test_labels_values_words_and_what_is_hidden_are_remarks(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "red sea", "label": "b"}, {"text": "x", "label": "a"}]
    objective = "sequence_classification"
    text = run(recipe(tmp_path, rows, objective=objective, data={"format": "classification"})).stdout
    assert "rows.jsonl:1: 7 tokens\nred sea\n⟪label 1: b⟫\n" in text
    assert "2 labels; the most frequent, a, in 50.0% of rows" in text
    assert "rendered by: no template: text as it is" in text
    rows = [{"text": "red sea", "label": 1.5}, {"text": "x", "label": -2}]
    problem = {"name": objective, "problem": "regression"}
    text = run(recipe(tmp_path, rows, objective=problem, data={"format": "regression"})).stdout
    assert "red sea\n⟪value: 1.5⟫\n" in text
    assert "values from -2 to 1.5" in text
    rows = [{"text": "red sea", "labels": ["b", "a"]}, {"text": "x", "labels": []}]
    problem = {"name": objective, "problem": "multi_label"}
    text = run(recipe(tmp_path, rows, objective=problem, data={"format": "multi_label"})).stdout
    assert "⟪label 0: a; label 1: b⟫" in text
    assert "x\n⟪no label⟫\n" in text
    rows = [{"tokens": ["Red", "Sea"], "tags": ["B-x", "I-x"]}]
    text = run(recipe(tmp_path, rows, objective="token_classification")).stdout
    assert "【R】ed 【S】ea\n" in text
    assert re.search(r"Sea +│ I-x +│ 1 +│ 4 +│ S +│", text)
    rows = [{"text": "the red sea is not red at all, they say"}]
    text = run(recipe(tmp_path, rows, objective="masked_lm", model="builtin:tiny-bert")).stdout
    assert "【<mask>】" in text
    assert "⟪to be guessed, in order: '" in text
    assert "tokens that may be hidden" in text


def test_both_sides_of_pairs(tmp_path: Path) -> None:
    rows = [{"source": "red", "target": "röd"}]
    path = recipe(tmp_path, rows, objective="seq2seq_lm", model="builtin:tiny-t5", data={"template": "{{ source }}"})
    assert "⟪the encoder reads⟫\nred</s>\n⟪the decoder writes⟫\n【röd</s>】\n" in run(path).stdout


def test_windows_and_cuts_are_remarks(tmp_path: Path) -> None:
    rows = [{"text": "abcdefghijklmnop"}]
    text = run(recipe(tmp_path, rows, data={"max_length": 9})).stdout
    assert "rows.jsonl:1, window 1 of 2: 9 tokens, 8 supervised tokens\na【bcdefghi】\n⟪goes on in window 2⟫\n" in text
    assert "⟪window 2 of 2: goes on from the one before⟫\ni【jklmnop</s>】\n" in text
    text = run(recipe(tmp_path, rows, data={"max_length": 9, "overlong": "truncate"})).stdout
    assert "a【bcdefghi】⟪8 tokens cut off here⟫\n" in text
    assert "rows cut short: 1, 100.0% of those kept" in text


def test_a_table_of_tokens(tmp_path: Path) -> None:
    text = run(recipe(tmp_path, [{"text": "a\nü"}]), "--tokens").stdout
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert lines[:5] == [
        ["0", "97", "a", "", ""],
        ["1", "10", "␊", "yes", ""],
        ["2", "195", "ü", "yes", ""],
        ["3", "188", "ü", "yes", ""],
        ["4", "258", "</s>", "yes", "special"],
    ]


def test_colours_on_a_terminal_and_marks_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokens = (Token(1, 0, 3, False, True), Token(2, 3, 4, False, False), Token(3, 4, 5, True, False))
    view = View("f", 1, Side("<s>\x1bb", tokens, (Span(4, 5, "b"),), (Cut(3, 7),)))

    def shown(**options: Any) -> str:
        console = Console(file=io.StringIO(), width=80, **options)
        print_rows(console, [view], "supervised tokens", tokens=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    coloured = shown(force_terminal=True, color_system="standard")
    assert "\x1b[1;32mb\x1b[0m" in coloured
    assert "\x1b[36m<s>\x1b[0m" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert not CONTROL.search(bare)
    assert "【" not in bare
    assert "<s>⟪7 tokens cut off here⟫␛b\n" in bare
    assert "<s>⟪7 tokens cut off here⟫␛【b】\n" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "【b】" in shown(force_terminal=True, color_system="standard")
    assert not is_coloured(Console(file=io.StringIO(), force_terminal=True, color_system="standard"))


def test_marks_of_rows_are_left_alone_when_others_are_free() -> None:
    side = Side("【日本】", (), ())
    assert marks_for([View("f", 1, side)], coloured=False).shown(side.text) == "【日本】"


# as JSON


def test_json_has_the_counts_and_the_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completion": "yes"} for i in range(20)]
    found = json.loads(run(recipe(tmp_path, [*rows, rows[0]], data={"eval": "20%"}), "--json", "-n", "2").stdout)
    assert (found["rows"], found["kept"], found["dropped"], found["truncated"]) == (17, 16, {"duplicate": 1}, 0)
    assert (found["num_examples"], found["targets"], found["unit"]) == (16, 16 * 4, "supervised tokens")
    assert found["accounted"] is True
    assert len(found["examples"]) == 2
    example = found["examples"][0]
    (span,) = example["spans"]
    assert example["text"][span["start"] : span["end"]] == span["target"] == "yes<|im_end|>"
    assert example.keys() == {"row", "file", "window", "windows", "text", "spans", "cuts"}
    assert (found["eval"]["rows"], found["eval"]["kept"], found["eval"]["examples"]) == (4, 4, [])
    assert "test" not in found
    assert sum(found["token_histogram"]["counts"]) == 16
    held = json.loads(run(tmp_path / "recipe.yaml", "--json", "--split", "eval", "--tokens").stdout)
    assert held["examples"] == []
    assert len(held["eval"]["examples"]) == 4
    for example in held["eval"]["examples"]:
        assert "".join(example["text"][t["start"] : t["end"]] for t in example["tokens"]) == example["text"]


def test_json_gives_rows_back_exactly_and_drives_no_terminal(tmp_path: Path) -> None:
    text = run(hostile(tmp_path), "--json", "-n", "100").stdout
    assert not CONTROL.search(text)
    for example, row in zip(json.loads(text)["examples"], HOSTILE, strict=True):
        assert row in example["text"]
        assert example["spans"][0]["target"] == row[::-1] + "<|im_end|>"


def test_the_schema_is_documented(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "look_at_data.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`(\w+)`", page))
    known |= set(re.findall(r'"(\w+)"', page))
    texts = [{"text": "red sea", "label": "b"}]
    tagged = [{"tokens": ["a"], "tags": ["O"]}]
    for rows, objective, more in (
        (HOSTILE_PAIRS, "causal_lm", {"data": {"eval": "rows.jsonl", "test": "rows.jsonl"}}),
        (HOSTILE_PAIRS, "seq2seq_lm", {"model": "builtin:tiny-t5"}),
        (texts, "sequence_classification", {"data": {"format": "classification"}}),
        (tagged, "token_classification", {}),
    ):
        found = json.loads(run(recipe(tmp_path, rows, objective=objective, **more), "--json", "--tokens").stdout)
        assert keys_of(found, {"dropped", "labels"}) <= known


HOSTILE_PAIRS = [{"prompt": text, "completion": text} for text in HOSTILE]


def keys_of(value: Any, named_by_data: set[str]) -> set[str]:
    """All keys, but those that are names in the data."""
    if isinstance(value, list):
        return set().union(*(keys_of(item, named_by_data) for item in value))
    if not isinstance(value, dict):
        return set()
    inner = (item for key, item in value.items() if key not in named_by_data or isinstance(item, list))
    return set(value).union(*(keys_of(item, named_by_data) for item in inner))


# as a page


class Page(HTMLParser):
    """Reads a page as a browser would: elements, attributes, and the text of each `pre`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.pre: list[str] = []
        self.marked: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)
        if tag == "pre":
            self.pre.append("")
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.pre[-1] += data
            if "mark" in self.open:
                self.marked[-1] += data


KNOWN = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "table", "tr", "th", "td",
    "thead", "tbody", "div", "pre", "mark", "i", "b", "figure", "svg", "defs", "g", "path", "use", "text", "rect",
    "clippath",
}  # fmt: skip


@pytest.mark.parametrize("make", [hostile, labelled], ids=["prompts", "labels"])
def test_a_page_holds_rows_as_text_only(tmp_path: Path, make: Any) -> None:
    run(make(tmp_path), "-n", "100", "--tokens", "--html", tmp_path / "out" / "rows.html")
    text = (tmp_path / "out" / "rows.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags <= KNOWN
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "href", "action")}
    assert not CONTROL.search(text)
    assert "<script" not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in html.unescape(text)
    assert len(page.pre) == len(HOSTILE)
    for shown, row in zip(page.pre, HOSTILE, strict=True):
        assert visible(row) in shown
    if make is hostile:
        assert [marked.removesuffix("<|im_end|>") for marked in page.marked[1:]] == [visible(r[::-1]) for r in HOSTILE]


def test_pictures_of_a_page_are_well_formed(tmp_path: Path) -> None:
    run(labelled(tmp_path), "--html", tmp_path / "rows.html")
    text = (tmp_path / "rows.html").read_text(encoding="utf-8")
    svg = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    words = " ".join(ET.fromstring(svg).itertext())
    assert visible(HOSTILE[0])[:24] in words
    assert "tokens in an example" in words


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run(hostile(tmp_path), "--html", tmp_path / "file" / "rows.html", code=5)
    assert "cannot write" in done.stderr


# options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "x"], "expected the number of a row, or FILE:NUMBER as errors name rows, received 'x'"),
        (["--row", "1", "--shuffle"], "one row cannot be shuffled"),
        (["--row", "99"], "train has no row 99"),
        (["--split", "evla"], "unknown split 'evla'. Did you mean 'eval'?"),
        (["--split", "eval"], "the recipe has no eval rows. It has: train."),
        (["--set", "data.max_lenght=3"], "max_length"),
    ],
)
def test_options_that_say_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in run(hostile(tmp_path), *arguments, code=2).stderr


def test_bad_rows_are_named_and_nothing_is_shown(tmp_path: Path) -> None:
    path = recipe(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    done = run(path, code=3)
    assert "rows.jsonl:2 completion: is empty." in done.stderr
    assert done.stdout == ""


def test_virtual_tokens_are_mentioned(tmp_path: Path) -> None:
    path = recipe(tmp_path, [{"prompt": "a", "completion": "b"}], method={"name": "prompt", "length": 7})
    assert "prompt puts 7 learned positions before every row" in run(path).stdout


# recipes and pages


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_can_be_seen(path: Path) -> None:
    """On a tiny model of its family, whose bytes make rows longer."""
    loaded = load_recipe(path)
    small = instead(path)
    if not small and not loaded.recipe.model.name.startswith("builtin:"):
        family = _guess_family(find_base(loaded.recipe.model, loaded.folder))
        small = ["--set", f"model=builtin:tiny-{family}", "--set", "data.overlong=truncate"]
        small += ["--set", "data.max_length=2000"] if family == "llama" else []
    found = json.loads(run(path, *small, "--json", "-n", "1").stdout)
    assert found["accounted"] is True
    assert len(found["examples"]) == 1
    assert found["rows"] == found["kept"] + sum(found["dropped"].values())
    for name in ("eval", "test"):
        assert (name in found) == (getattr(loaded.recipe.data, name) is not None)


def test_the_page_of_the_docs_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "look_at_data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    texts = {language: [body for kind, body in blocks if kind == language] for language in ("json", "yaml", "bash", "")}
    Path("rows.jsonl").write_text(texts["json"][0], encoding="utf-8")
    Path("capitals.yaml").write_text(texts["yaml"][0], encoding="utf-8")
    commands = [shlex.split(line) for line in texts["bash"][1].splitlines()]
    assert [command[0] for command in commands] == ["ftune", "ftune"]
    outputs = [CliRunner().invoke(app, command[1:]).stdout for command in commands]
    for output, shown in zip(outputs, texts[""], strict=True):
        assert shown in output
