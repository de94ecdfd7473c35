"""The example of docs/add_a_method.md, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from laws import ROWS, logits, recipe, start_model, train

from ftune.merging import merge
from ftune.target import open_target

PAGE = Path(__file__).parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's file, where Python finds it."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    assert code[1].count("\n") < 60, "adding a method is one short file"
    folder = tmp_path / "code" / "my_methods"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "scale.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield "my_methods.scale"
    for name in [name for name in sys.modules if name.startswith("my_methods")]:
        del sys.modules[name]


def test_the_example_trains_resumes_opens_and_merges(tmp_path: Path, method: str) -> None:
    import torch

    block = {"name": method, "target_modules": ["q_proj", "o_proj"]}
    sections = {"method": block, "data": {"eval": "rows.jsonl"}, "eval": {"every": 5}}
    loaded = recipe(tmp_path / "a", rows=ROWS, train={"learning_rate": 5e-2}, **sections)
    report = train(loaded)
    assert report["trainable_parameters"] == 2 * (64 + 64)
    assert report["metrics"]["eval"]["loss"]["value"] < report["baseline"]["loss"] - 0.01
    run = tmp_path / "a" / "run"
    opened = logits(open_target(run).model)
    assert torch.equal(opened, logits(open_target(run / "checkpoints" / "step_000005").model))
    assert not torch.equal(opened, logits(start_model(loaded)))
    assert merge(run, None, dtype="fp32", tick=lambda what: None).max_difference <= 1e-5


def test_a_missing_weight_is_fatal(tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file, save_file

    from ftune import methods
    from ftune.errors import ArtifactError

    scale = methods.load(method)()
    model = scale.attach(start_model(recipe(tmp_path)), None)
    scale.save(model, tmp_path)
    tensors = load_file(tmp_path / "scale.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, tmp_path / "scale.safetensors")
    with pytest.raises(ArtifactError, match="Missing"):
        scale.load(start_model(recipe(tmp_path)), tmp_path)
