"""Spoilt recipes by the thousand: each is loaded, or refused with every fault at its place, in no time, without torch.

Random trees by hypothesis, shipped recipes spoilt by a grammar that knows what must be said, and damaged bytes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from full_recipe import FULL, blocks_of, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Spoilt, damaged, dumped, places, spoil

from ftune.errors import Problem, RecipeError
from ftune.load import load_recipe, parse_recipe
from ftune.overlay import SHORT_FORMS
from ftune.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
CRASH = pytest.mark.crash
SEED = 28
CPU_SECONDS = 1.0
ADVICE = re.compile(
    r"[Ee]xpected |Did you mean |Known: |It works with: |is required|no (method|objective) is named|cannot be imported|"
    r"Remove|Write |Use |Keep |Choose |Give |Lower |Raise |Set |Add |Name |Take |describe |are enough|"
    r"to be a full 40-hex commit|is not valid YAML: .|is not UTF-8|holds a character that YAML does not allow|"
    r"an escape that is no character|half of a surrogate pair|nested deeper than|no such file: |goes round in a circle"
)
"""What was expected or is to be done; where YAML itself is broken, why it is."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, in which an import of torch fails."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    return tmp_path


def loads_or_is_refused(content: bytes, *overrides: str) -> tuple[Problem, ...]:
    """With a recipe, or with problems of which each has a place and says what to do, and in little time."""
    Path("r.yaml").write_bytes(content)
    started = time.process_time()
    try:
        loaded = load_recipe(Path("r.yaml"), overrides)
        found: tuple[Problem, ...] = ()
    except RecipeError as error:
        found = error.problems
        assert found
        for problem in found:
            assert re.match(r"r\.yaml:\d+:\d+$|--set$", problem.where), problem
            assert ADVICE.search(problem.message) and problem.message.rstrip().endswith((".", "?")), problem
            str(problem).encode()
    assert time.process_time() - started < CPU_SECONDS
    if not found:
        assert parse_recipe(json.loads(loaded.recipe.model_dump_json())) == (loaded.recipe, [])
    return found


# Random trees

KEYS = {name for _, kind in blocks_of(Recipe) for name in kind.model_fields} | {"extends", "lr", "str", "int", "a.b"}
WORDS = st.sampled_from(sorted(KEYS))
TEXTS = [
    "auto",
    "lora",
    "full",
    "causal_lm",
    "m",
    "5%",
    "3 epochs",
    "1 steps",
    "train[:4]",
    "text",
    "bf16",
    "r.yaml",
    "",
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-2, 3), st.floats(), st.sampled_from(TEXTS),
    st.text(max_size=8),
)  # fmt: skip
TREES = st.dictionaries(
    WORDS | st.text(max_size=4),
    st.recursive(
        VALUES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4),
        max_leaves=10,
    ),
    max_size=8,
)
PIECES = st.binary(max_size=3) | st.sampled_from([b":", b"\n", b"\t", b"  "])
DAMAGES = st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 6), PIECES), min_size=1, max_size=4)
OVERRIDES = st.tuples(st.one_of(WORDS, st.builds("{}.{}".format, WORDS, WORDS), st.text()), st.text() | VALUES.map(str))


def tree_alone(tree: dict[str, Any]) -> None:
    loads_or_is_refused(yaml.safe_dump(tree, allow_unicode=True).encode())


def tree_over_a_valid_recipe(tree: dict[str, Any]) -> None:
    full = tree_of(FULL)
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(full.get(key), dict):
            full[key].update(value)
        else:
            full[key] = value
    loads_or_is_refused(json.dumps(full).encode())


def bytes_damaged(damages: list[tuple[int, int, bytes]]) -> None:
    content = FULL.encode()
    for start, length, replacement in damages:
        content = content[:start] + replacement + content[start + length :]
    loads_or_is_refused(content)


def override(pair: tuple[str, str]) -> None:
    loads_or_is_refused(FULL.encode(), "=".join(pair))


FUZZED = {
    "trees": (TREES, tree_alone, 100, 2500), "over a recipe": (TREES, tree_over_a_valid_recipe, 60, 2500),
    "bytes": (DAMAGES, bytes_damaged, 100, 2000), "overrides": (OVERRIDES, override, 50, 1000),
}  # fmt: skip
COUNTS = [(name, few) for name, (_, _, few, _) in FUZZED.items()] + [
    pytest.param(name, many, marks=CRASH) for name, (_, _, _, many) in FUZZED.items()
]


@pytest.mark.parametrize(("name", "count"), COUNTS)
def test_random_input(here: Path, name: str, count: int) -> None:
    """Derandomised, so that a failure is repeated by running the test again."""
    strategy, body, _, _ = FUZZED[name]
    ran = 0

    def once(value: Any) -> None:
        nonlocal ran
        ran += 1
        body(value)

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)(
        given(strategy)(once)
    )()
    assert ran >= count


# Shipped recipes, spoilt


def plain(path: Path) -> dict[str, Any]:
    """The tree of a shipped recipe, its short forms written out."""
    tree: dict[str, Any] = tree_of(path.read_text(encoding="utf-8"))
    return {key: {SHORT_FORMS[key]: value} if key in SHORT_FORMS and isinstance(value, str) else value
            for key, value in tree.items()}  # fmt: skip


def unrelated(found: Iterable[Problem], spoilt: Spoilt) -> Iterator[str]:
    """Problems above, at or below no key that was spoilt. What is missing since it stands elsewhere may be said."""
    keys = [key for key, _, _ in spoilt.expected]
    for problem in found:
        near = any(f"{a}.".startswith(f"{b}.") for key in keys for a, b in ((key, problem.path), (problem.path, key)))
        if not near and not problem.message.startswith("is missing"):
            yield str(problem)


@pytest.mark.parametrize("count", [200, pytest.param(8000, marks=CRASH)])
def test_every_fault_is_reported_at_its_place(here: Path, count: int) -> None:
    """Up to four faults of a recipe come in one answer, each with key, line, column, and what was expected or meant."""
    trees, done, hints = [plain(path) for path in RECIPES] + [tree_of(FULL)], Counter[str](), Counter[bool]()
    for number in range(count):
        random = Random(f"{SEED} {number}")
        spoilt, kinds = spoil(random.choice(trees), random)
        done.update(kinds)
        text = dumped(spoilt.tree, random)
        found, where = loads_or_is_refused(text.encode()), places(text)
        about = f"recipe {number} of seed {SEED}: {kinds}\n" + "\n".join(map(str, found)) + "\n" + text
        for key, place, words in spoilt.expected:
            inside = [problem for problem in found if f"{problem.path}.".startswith(f"{key}.")]
            assert inside, f"nothing said of {key}, {about}"
            assert any(re.match(words, problem.message) for problem in inside), f"{key}: {words}, {about}"
            line, column = where[place]
            exact = [problem for problem in inside if problem.path == key]
            assert all(problem.where == f"r.yaml:{line}:{column}" for problem in exact), f"{key}, {about}"
        assert max(Counter(problem.path for problem in found).values()) == 1, f"a key twice, {about}"
        assert not (noise := [*unrelated(found, spoilt)]), f"{noise} follows from another fault, {about}"
        hints.update("Did you mean" in problem.message for problem in found if "unknown key" in problem.message)
    assert min(done[kind] for kind in ("typo", "type", "range", "swapped", "missing")) > count / 20, done
    assert hints[True] / hints.total() > 0.8, hints
    print(f"{count} recipes, {done.total()} faults: {dict(done)}; hints for unknown keys: {dict(hints)}")


@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=CRASH)])
def test_damaged_bytes_of_shipped_recipes(here: Path, count: int) -> None:
    refused = 0
    for number in range(count):
        random = Random(f"{SEED} bytes {number}")
        content = damaged(random.choice(RECIPES).read_text(encoding="utf-8"), random)
        try:
            refused += bool(loads_or_is_refused(content))
        except BaseException:
            print(f"recipe {number} of seed {SEED}: {content!r}")
            raise
    assert count / 4 < refused < count
    print(f"{count} recipes, {refused} refused")
