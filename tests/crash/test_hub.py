"""Models of a hub: resolved once, the commit recorded, and every later start of a run at that commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ftune
from hub import REPOSITORY, Hub, hub_of
from laws import Shared, python, recipe

FIRST, SECOND = "a1" * 20, "b2" * 20
FIND = """
import json, sys
from pathlib import Path
from ftune.base import at_commit, find_base
from ftune.errors import FtuneError
from ftune.recipe import Model
for name, revision, fingerprint in json.loads(sys.argv[1]):
    try:
        print(at_commit(find_base(Model(name=name, revision=revision), Path()), fingerprint).revision)
    except FtuneError as error:
        print(type(error).__name__)
assert "torch" not in sys.modules
"""


def found(hub: Hub, home: Path, *asked: tuple[str, str | None, str]) -> list[str]:
    """The commit, or the error, that each (name, revision, recorded fingerprint) leads to, in a process of its own."""
    done = python("-c", FIND, json.dumps(asked), environment={**hub.environment, "HF_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split()


def test_a_branch_is_resolved_to_a_commit_and_a_commit_asks_nobody(tmp_path: Path) -> None:
    for commit in (FIRST, SECOND):
        (tmp_path / commit).mkdir()
        (tmp_path / commit / "config.json").write_text("{}")
    elsewhere = ("acme/../../x", "https://127.0.0.1/x", "a/b/c", "acme//tiny", "acme/tiny?x", "acme/ti\nny", "acme/no")
    branch = [(REPOSITORY, None, ""), (REPOSITORY, "main", f"hub:acme/no@{SECOND}")]
    with hub_of({commit: tmp_path / commit for commit in (FIRST, SECOND)}) as hub:
        recorded = f"hub:{REPOSITORY}@{SECOND}"
        pinned = ((REPOSITORY, SECOND, ""), (REPOSITORY, "main", recorded), (REPOSITORY, None, recorded))
        assert found(hub, tmp_path, *pinned) == [SECOND] * 3
        assert hub.requests == []
        said = found(hub, tmp_path, *branch, *((name, None, "") for name in elsewhere))
        assert said == [FIRST] * 2 + ["MachineError"] * len(elsewhere)
        assert {request.split("/")[1:3] == ["acme", "tiny"] or "acme/no/" in request for request in hub.requests} == {
            True
        }


@pytest.fixture
def hub(shared: Shared) -> Iterator[Hub]:
    """Two commits of one model that differ in their weights."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from ftune import builtin

        for seed, commit in enumerate((FIRST, SECOND)):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(builtin.config("llama")).save_pretrained(folder / commit)
            builtin.tokenizer().save_pretrained(folder / commit)

    folder = shared.make("hub", fill)
    with hub_of({commit: folder / commit for commit in (FIRST, SECOND)}) as hub:
        yield hub


def options(hub: Hub, folder: Path) -> dict[str, str]:
    return {**hub.environment, "HF_HOME": str(folder / "hf"), "FTUNE_CACHE": str(folder / "cache")}


@pytest.mark.crash
def test_a_run_stays_at_the_commit_it_began_with(hub: Hub, tmp_path: Path) -> None:
    recipe(tmp_path, model=REPOSITORY, method="lora", checkpoint={"every": 1})
    run, environment = tmp_path / "run", options(hub, tmp_path)
    ftune("train", "recipe.yaml", "--quiet", cwd=tmp_path, **environment)
    fingerprint = f"hub:{REPOSITORY}@{FIRST}"
    assert json.loads((run / "run.json").read_text())["fingerprints"]["model.name"] == fingerprint
    hub.main = SECOND
    hub.requests.clear()
    longer = ("train", "recipe.yaml", "--set", "train.duration=6 steps", "--quiet")
    ftune(*longer, cwd=tmp_path, **environment)
    assert json.loads((run / "report.json").read_text())["steps"] == 6
    assert json.loads((run / "run.json").read_text())["fingerprints"]["model.name"] == fingerprint
    ftune("eval", run, "--split", "train", "--quiet", cwd=tmp_path, **environment)
    ftune("merge", run, "--quiet", cwd=tmp_path, **environment)
    assert not [request for request in hub.requests if "/main" in request or SECOND in request]
    other = ftune("train", "recipe.yaml", "--set", f"model.revision={SECOND}", cwd=tmp_path, code=4, **environment)
    assert SECOND[:5] in other.stderr
    ftune(*longer, "--overwrite", cwd=tmp_path, **environment)
    assert json.loads((run / "run.json").read_text())["fingerprints"]["model.name"] == f"hub:{REPOSITORY}@{SECOND}"


@pytest.mark.crash
def test_what_a_hub_fails_with_is_one_message(hub: Hub, tmp_path: Path) -> None:
    """And nothing that came in half stays in the cache: the next start is whole."""
    recipe(tmp_path, model=REPOSITORY, method="lora")
    environment = options(hub, tmp_path)
    for status in (401, 404, 429, 503):
        hub.status = status
        said = ftune("plan", "recipe.yaml", "--quiet", cwd=tmp_path, code=10, **environment).stderr.splitlines()
        assert said[-1].startswith(f"model '{REPOSITORY}'") and len(said) <= 15, said  # hub's retries are a line each
    hub.status, hub.cut = 200, True
    ftune("plan", "recipe.yaml", "--quiet", cwd=tmp_path, code=10, **environment)
    hub.cut = False
    ftune("train", "recipe.yaml", "--quiet", cwd=tmp_path, **environment)
    hub.requests.clear()
    ftune("eval", "run", "--split", "train", "--offline", cwd=tmp_path, **environment)
    ftune("plan", "recipe.yaml", "--offline", cwd=tmp_path, **environment)
    assert hub.requests == []
