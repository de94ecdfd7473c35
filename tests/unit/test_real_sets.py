"""Every reference set trains straight from its original files: by format and columns, or by a loader of 15 lines."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from ftune.cli import app
from ftune.data.read import read_source
from ftune.errors import RowProblem
from ftune.load import load_recipe
from ftune.recipe import sources

REAL = Path(__file__).parents[3] / "shared" / "data"
LOADERS = Path(__file__).parents[1] / "loaders.py"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the reference sets are not beside this checkout")
CLASSIFY = {"model": "builtin:tiny-bert", "objective": "sequence_classification"}
SEQ2SEQ = {"model": "builtin:tiny-t5", "objective": "seq2seq_lm"}


class Case(NamedTuple):
    """A recipe without the keys that all have, and the rows that INDEX.md gives for train and test."""

    sections: dict[str, Any]
    train: int
    test: int | None = None


def polarity(sign: str, label: str) -> dict[str, Any]:
    return {"path": f"rt_polarity/rt-polarity.{sign}", "file_format": "lines", "values": {"label": label}}


CASES = {
    "banking77": Case(
        {**CLASSIFY, "data": {"train": "banking77/train.csv", "test": "banking77/test.csv",
                              "columns": {"label": "category"}}}, 10_003, 3_080),
    "sms_spam": Case(
        {**CLASSIFY, "data": {"train": {"path": "sms_spam/SMSSpamCollection.tsv", "header": ["label", "text"]}}},
        5_574),
    "rt_polarity": Case(
        {**CLASSIFY, "data": {"train": [polarity("pos", "positive"), polarity("neg", "negative")]}}, 10_662),
    "self_instruct": Case(
        {"data": {"train": "self_instruct/seed_tasks.jsonl", "test": "self_instruct/user_oriented_instructions.jsonl",
                  "format": "instruction",
                  "columns": {"input": "instances.0.input", "output": "instances.0.output"}}}, 175, 252),
    "gsm8k": Case(
        {"data": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl",
                  "columns": {"prompt": "question", "completion": "answer"}}}, 7_473, 1_319),
    "oasst_sample": Case(
        {"data": {"train": {"path": "oasst_sample/en_100_tree.jsonl", "loader": "loaders:oasst_paths"}}}, 626),
    "glaive_toolcall": Case({"data": {"train": "glaive_toolcall/glaive_toolcall_en_demo.json"}}, 300),
    "pubmedqa": Case(
        {**CLASSIFY, "data": {"train": {"path": "pubmedqa", "loader": "loaders:pubmedqa_train"},
                              "test": {"path": "pubmedqa", "loader": "loaders:pubmedqa_test"}}}, 500, 500),
    "pubmedqa without a loader": Case(
        {"data": {"train": "pubmedqa/ori_pqal.json", "format": "prompt_completion",
                  "columns": {"prompt": "QUESTION", "completion": "final_decision"}, "overlong": "truncate_prompt",
                  "template": "{% for text in CONTEXTS %}{{ text }}\n{% endfor %}{{ QUESTION }}\n"}}, 1_000),
    "tiny_shakespeare": Case({"data": {"train": "tiny_shakespeare/input.txt"}}, 1),
    "tiny_shakespeare by line": Case(
        {"data": {"train": {"path": "tiny_shakespeare/input.txt", "file_format": "lines"}}}, 32_777),
    "legal_site_policy": Case({"data": {"train": "legal_site_policy/*.md"}}, 57),
    "scitldr_a": Case(
        {**SEQ2SEQ, "data": {"train": {"path": "scitldr_a/train_first1200.jsonl", "loader": "loaders:scitldr"},
                             "test": {"path": "scitldr_a/test.jsonl", "loader": "loaders:scitldr"}}}, 1_200, 618),
    "tatoeba_eng_swe": Case(
        {**SEQ2SEQ, "data": {"train": {"path": "tatoeba_eng_swe/eng_swe_every2nd.tsv",
                                       "header": ["source", "target", "attribution"]}}}, 12_643),
    "wnut17": Case(
        {"model": "builtin:tiny-bert", "objective": "token_classification",
         "data": {"train": "wnut17/train.conll", "test": "wnut17/test.conll"}}, 3_394, 1_287),
    "dpo_en_demo": Case(
        {"data": {"train": {"path": "dpo_en_demo/dpo_en_demo.json", "loader": "loaders:dpo_chosen"}}}, 300),
    "mmlu_subset": Case(
        {"data": {"train": "mmlu_subset/dev/*.csv", "test": "mmlu_subset/test/*.csv",
                  "columns": {"answer_index": "answer"}, "overlong": "truncate_prompt"}}, 45, 2_472),
    "piqa_valid": Case({"data": {"train": {"path": "piqa_valid", "loader": "loaders:piqa"},
                                 "overlong": "truncate_prompt"}}, 1_838),
}  # fmt: skip
FAST = ("mmlu_subset", "oasst_sample", "rt_polarity")
"""Cases that are also trained within `make test`, on part of their rows."""


def there(value: Any) -> Any:
    """A source with its path in the folder of the reference sets."""
    if isinstance(value, list):
        return [there(item) for item in value]
    return {**value, "path": str(REAL / value["path"])} if isinstance(value, dict) else str(REAL / value)


def written(folder: Path, case: Case, rows: str | None = None) -> Path:
    """The recipe of a case, with the loaders beside it; `rows` is a range of its training rows."""
    data = dict(case.sections["data"])
    parts = {name: there(data[name]) for name in ("train", "test") if name in data}
    if rows is not None:
        listed = parts["train"] if isinstance(parts["train"], list) else [parts["train"]]
        blocks = [item if isinstance(item, dict) else {"path": item} for item in listed]
        parts = {"train": [{**block, "split": rows} for block in blocks]}
        data.pop("test", None)
    shutil.copy(LOADERS, folder)
    recipe = {
        "model": "builtin:tiny-llama",
        "train": {"duration": "2 steps", "batch_size": 4},
        **case.sections,
        "data": {"max_length": 512, "overlong": "truncate", "max_dropped": "50%", **data, **parts},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def test_every_set_of_the_index_is_here() -> None:
    index = (REAL / "INDEX.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (\w+) \| [^|]+ \| ", index, flags=re.MULTILINE)
    assert set(named) - {"set", "name"} <= {name.partition(" ")[0] for name in CASES}
    assert {path.name for path in REAL.iterdir() if path.is_dir()} == {name.partition(" ")[0] for name in CASES}


def test_loaders_are_short() -> None:
    tree = ast.parse(LOADERS.read_text(encoding="utf-8"))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert len(lengths) == 7 and max(lengths.values()) <= 15, lengths


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_index(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = load_recipe(written(tmp_path, case)).recipe
    for part, expected in ((recipe.data.train, case.train), (recipe.data.test, case.test)):
        items = [item for source in sources(part) for item in read_source(source, tmp_path)]
        assert [item for item in items if isinstance(item, RowProblem)] == []
        assert len(items) == (expected or 0)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.e2e) for n in CASES])
def test_two_steps_from_the_original_files(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = written(tmp_path, case, rows="[:40]" if name in FAST else None)
    result = CliRunner().invoke(app, ["train", str(recipe), "--offline", "--quiet", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["steps"] == 2
    for split, expected in (("train", case.train), ("test", case.test)):
        if name not in FAST and expected is not None:
            assert report["data"][split]["rows"] == expected
