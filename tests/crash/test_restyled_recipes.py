"""No good recipe is refused: what is written in another style means the same, and goes on in the same run folder."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from full_recipe import FULL, MINIMAL, tree_of
from restyled import restyled

from ftune.drift import differences
from ftune.load import Loaded, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES} | {"full": FULL, "minimal": MINIMAL}
SEED = 29


def identity(loaded: Loaded) -> tuple[str, str, set[str]]:
    """What a run folder keeps of a recipe, what was written of it, and which keys have an origin."""
    recipe = loaded.recipe
    whole, written = (
        json.dumps(recipe.model_dump(mode="json", exclude_unset=some), sort_keys=True) for some in (False, True)
    )
    return whole, written, set(loaded.origins)


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.crash)])
@pytest.mark.parametrize("name", TEXTS)
def test_another_style_is_the_same_recipe(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "r.yaml").write_text(TEXTS[name], encoding="utf-8")
    original = load_recipe(Path("r.yaml"))
    stored = original.recipe.model_dump(mode="json")
    for number in range(count):
        content = restyled(tree_of(TEXTS[name]), Random(f"{SEED} {name} {number}"))
        (tmp_path / "r.yaml").write_bytes(content)
        try:
            loaded = load_recipe(Path("r.yaml"))
            assert identity(loaded) == identity(original)
        except BaseException:
            print(f"style {number} of {name}, seed {SEED}:\n{content.decode()}")
            raise
        assert [*differences(stored, loaded.recipe.model_dump(mode="json"))] == []


def test_styles_differ() -> None:
    """Else nothing is tried."""
    seen = [
        restyled(tree_of(TEXTS[name]), Random(number)) for number in range(25) for name in ("full", "full_instruct")
    ]
    assert len(set(seen)) == 50
    for mark in (b"\r\n", b"\xef\xbb\xbf", b"# ", b"'", b'"', b"0x", b"{", b"\n  - ", b" |"):
        assert sum(mark in content for content in seen) >= 2, mark
