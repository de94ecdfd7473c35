"""The pages say what the code does: generated ones are fresh, every block is valid, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer.main

from ftune import methods, objectives
from ftune.cli import app
from ftune.errors import FtuneError, exit_code_of
from ftune.load import load_recipe
from ftune.recipe import Recipe
from ftune.yaml_file import parse_yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("README.md"), *DOCS.glob("*.md")])
HAND_WRITTEN = [page for page in PAGES if page.name not in ("cli.md", "recipe_keys.md")]
EXPECTED = {"index", "concepts", "methods", "data", "runs", "numerics", "decisions", "results", "cli", "recipe_keys"}
BASE = "model: builtin:tiny-llama\nmethod: {name: lora}\ndata: {train: rows.jsonl, eval: 5%}\n"
"""What the fragments of recipes in the pages are laid over."""


class Block(NamedTuple):
    """A fenced block and where it begins."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = language = None
    for number, line in enumerate(lines, start=1):
        fence = re.fullmatch(r"```(\w*)", line.strip())
        if fence and start is None:
            start, language = number, fence[1]
        elif fence and start is not None:
            yield Block(page, start, str(language), "\n".join(lines[start : number - 1]) + "\n")
            start = None
    assert start is None, f"{page.name}:{start}: a block is not closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
YAML = [block for block in BLOCKS if block.language == "yaml"]


def anchors_of(text: str) -> set[str]:
    """What GitHub makes of the headings outside fenced blocks."""
    bare = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", bare, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words after `ftune` of every command in a shell block, also behind a pipe."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if command[:1] == ["ftune"]:
                    yield command[1:]
                command = []
            else:
                command.append(word)


def parse_command(words: list[str]) -> str:
    """What is wrong with a command line, or nothing. Nothing is run."""
    command: Any = typer.main.get_command(app)
    name, rest = "ftune", list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"{name} has no command {rest[0]!r}"
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    try:
        command.make_context(name, rest)
    except Exception as error:  # of click or of typer's own copy of it, which differ between versions
        if type(error).__name__ == "Exit":  # --help and --version
            return ""
        return f"{name}: {getattr(error, 'message', None) or error!r}"
    return ""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """`docs/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_pages_are_there() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} >= EXPECTED


def test_generated_pages_are_fresh(generator: ModuleType) -> None:
    assert generator.stale_pages() == [], "run: python docs/generate.py"


def test_check_names_stale_pages(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generator, "FOLDER", tmp_path)
    assert generator.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "docs/cli.md is stale. Run: python docs/generate.py",
        "docs/recipe_keys.md is stale. Run: python docs/generate.py",
    ]
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0
    (tmp_path / "cli.md").write_text("old", encoding="utf-8")
    assert generator.main(["--check"]) == 1
    assert capsys.readouterr().err.count("is stale") == 1
    assert generator.main(["--chek"]) == 2


def test_generating_imports_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"runpy.run_path({str(DOCS / 'generate.py')!r})['pages']()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[]"


def test_every_key_is_on_the_page_with_a_meaning() -> None:
    text = (DOCS / "recipe_keys.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", text, flags=re.MULTILINE))
    assert all(rows.values()), [key for key, meaning in rows.items() if not meaning]
    documented = {key.rsplit(".", 1)[-1] for key in rows}
    kinds = [methods.load(name) for name in methods.names()] + [objectives.load(name) for name in objectives.names()]
    for kind in (Recipe, *kinds):
        schema = kind.model_json_schema()
        properties = [block.get("properties", {}) for block in (schema, *schema.get("$defs", {}).values())]
        assert {key for block in properties for key in block} <= documented
    for block in ("### method: ", "### objective: "):
        package = methods if "method" in block else objectives
        assert [name for name in package.names() if block + name not in text] == []


def test_every_command_option_and_exit_code_is_on_the_page() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = {s.partition("\n")[0]: s for s in text.split("\n## ")}

    def visit(command: Any, name: str) -> None:
        for key, inner in command.commands.items():
            if hasattr(inner, "commands"):
                visit(inner, f"{name} {key}")
                continue
            section = sections.pop(f"{name} {key}")
            for parameter in inner.params:
                flags = [o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("-")]
                for shown in flags or [parameter.metavar]:
                    assert f"`{shown}`" in section, (name, key, shown)

    visit(typer.main.get_command(app), "ftune")
    assert [title for title in sections if title.startswith("ftune ")] == []
    for kind in FtuneError.__subclasses__():
        if kind.__name__ != "Interrupted":
            assert re.search(rf"^\| {kind.exit_code} \| `{kind.__name__}` \|", text, flags=re.MULTILINE), kind
    assert f"| {exit_code_of(FtuneError())} | `FtuneError` |" in text
    assert "| 130 or 143 | `Interrupted` |" in text


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_blocks_are_valid(block: Block, tmp_path: Path) -> None:
    """Whole recipes as they are; fragments of recipes over a small one; anything else must be YAML at least."""
    keys = set(parse_yaml(block.text, str(block)).plain())
    for other in blocks_of(block.page):
        if other.language == "python" and (name := re.match(r"# (\w+\.py)", other.text)):
            (tmp_path / name[1]).write_text(other.text, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    if "model" in keys:
        recipe.write_text(block.text, encoding="utf-8")
    elif keys <= set(Recipe.model_fields) | {"extends"}:
        text = re.sub(r"^extends:.*$", "", block.text, flags=re.MULTILINE)
        (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
        recipe.write_text(f"extends: base.yaml\n{text}", encoding="utf-8")
    else:
        return
    loaded = load_recipe(recipe)
    assert not loaded.notes, loaded.notes


def test_there_are_recipes_among_the_blocks() -> None:
    assert sum("model:" in block.text for block in YAML) >= 2


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands_exist(block: Block) -> None:
    wrong = [problem for words in commands_of(block) if (problem := parse_command(words))]
    assert not wrong, wrong


def test_commands_stand_in_bash_blocks() -> None:
    others = [block for block in BLOCKS if block.language != "bash"]
    assert [str(b) for b in others if re.search(r"^(\$ )?ftune [a-z]", b.text, flags=re.MULTILINE)] == []


def test_commands_named_in_sentences_exist() -> None:
    root: Any = typer.main.get_command(app)
    for page in PAGES:
        for verb in re.findall(r"`ftune ([a-z][a-z-]*)", page.read_text(encoding="utf-8")):
            assert verb in root.commands, f"{page.name}: ftune {verb}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ftune train r.yaml --set seed=1 --output-dir x # why", ""),
        ("echo hi | ftune generate runs/x --raw && ftune eval runs/x", ""),
        ("ftune recipes copy quickstart", ""),
        ("ftune --version", ""),
        ("ftune train --help", ""),
        ("python -m pip install .", ""),
        ("ftune tran r.yaml", "no command 'tran'"),
        ("ftune recipes list", "no command 'list'"),
        ("ftune train r.yaml --stes 3", "--stes"),
        ("ftune train", "ftune train"),
        ("ftune train r.yaml extra", "extra"),
        ("ftune train r.yaml --devices two", "ftune train"),
    ],
)
def test_wrong_commands_would_be_found(line: str, problem: str) -> None:
    found = [text for words in commands_of(Block(ROOT, 1, "bash", line)) if (text := parse_command(words))]
    assert len(found) == bool(problem)
    assert problem in "".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(other.read_text(encoding="utf-8")), f"{page.name}: {target}#{anchor}"


def test_recipes_and_methods_are_mentioned() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in HAND_WRITTEN)
    recipes = [path.stem for path in (ROOT / "recipes").glob("*.yaml")]
    assert recipes
    assert [name for name in [*recipes, *methods.names(), *objectives.names()] if f"`{name}`" not in text] == []
    headings = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [name for name in methods.names() if f"\n## {name}\n" not in headings] == []


def test_nothing_is_left_to_be_measured() -> None:
    marked = [f"{page.name}: {page.read_text(encoding='utf-8').count('TODO-MEASURED')}" for page in PAGES]
    assert [entry for entry in marked if not entry.endswith(": 0")] == []
