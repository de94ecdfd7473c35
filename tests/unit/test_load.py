"""Loading: defaults, strictness, every problem in one pass with its place, `extends`, `--set`, plug-ins, cold start."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from full_recipe import FULL, MINIMAL, blocks_of, parts_of, tree_of
from pydantic import BaseModel, ValidationError

from ftune import methods, objectives
from ftune.errors import Problem, RecipeError
from ftune.load import CAUSES, MAX_BASES, Loaded, load_recipe, parse_recipe
from ftune.methods.full import Full
from ftune.methods.lora import Lora
from ftune.objectives.causal_lm import CausalLM
from ftune.recipe import EarlyStopping, Model, Recipe, Source, sources

REPOSITORY = Path(__file__).parents[2]
BAD_RECIPES = sorted((REPOSITORY / "tests" / "data" / "bad_recipes").glob("*.yaml"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, in which an import of torch fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    return tmp_path


def load(text: str, *overrides: str, name: str = "r.yaml") -> Loaded:
    """Load `text` as the file `name` of the current directory."""
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(Path(name), overrides)


def refused(text: str, *overrides: str) -> list[str]:
    """The problems of `text`, those of the file without its name."""
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return [str(problem).removeprefix("r.yaml:") for problem in caught.value.problems]


def at(recipe: BaseModel, key: str) -> Any:
    """The value at dotted `key`."""
    value: Any = recipe
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def with_value(key: str, value: Any) -> str:
    """A recipe that is valid but for `key`, which is `value`."""
    tree = tree_of(MINIMAL)
    tree["model"] = {"name": "m"}
    tree["data"]["eval"] = "5%"
    if key.startswith("eval."):
        tree["eval"] = {"metrics": ["exact_match"]}
    if key.startswith("method."):
        tree["method"] = {"name": "lora"}
    block, parts = tree, key.split(".")
    for part in parts[:-1]:
        block = block.setdefault(part, {})
    block[parts[-1]] = value
    return json.dumps(tree)


# What a recipe is


def test_a_minimal_recipe_takes_every_default(here: Path) -> None:
    loaded = load(MINIMAL)
    assert loaded.recipe == Recipe(model=Model(name="m"), data=loaded.recipe.data)
    assert loaded.recipe.method == Full()
    assert loaded.recipe.objective == CausalLM()
    assert loaded.recipe.model_dump(mode="json") == {
        "model": {
            "name": "m", "revision": None, "dtype": "auto", "trust_remote_code": False, "init": "pretrained",
        },
        "objective": {"name": "causal_lm"},
        "method": {"name": "full", "head_learning_rate_ratio": 10.0},
        "data": {
            "train": "d.jsonl", "eval": None, "test": None, "format": "auto", "columns": {}, "roles": {},
            "template": None, "train_on": "completion", "system": "template", "max_length": "auto", "overlong": None,
            "seed": None,
            "group_by": None, "stratify": False, "near_duplicates": "auto", "leakage": "warn", "on_bad_row": "error",
            "max_dropped": "1%", "packing": "auto",
        },
        "train": {
            "duration": "3 epochs", "max_minutes": None, "batch_size": 32, "micro_batch_size": "auto",
            "learning_rate": "auto", "optimizer": "adamw", "schedule": "cosine", "warmup": "3%", "weight_decay": 0.0,
            "max_grad_norm": 1.0, "precision": "auto", "activation_checkpointing": "auto", "deterministic": False,
            "compile": False, "max_skipped_steps": 0, "early_stopping": None,
        },
        "eval": {"every": "10%", "max_rows": 500, "metrics": "auto", "generate_every": None, "max_new_tokens": 256,
                 "shots": [], "guard": []},
        "checkpoint": {"every": "10%", "keep": 2, "best": "eval_loss"},
        "distributed": {"devices": 1},
        "tracking": [],
        "output_dir": "runs/{recipe}",
        "seed": 0,
    }  # fmt: skip
    assert loaded.notes == ()
    assert loaded.text == MINIMAL
    assert loaded.folder == Path()


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("model: org/x", "model: {name: org/x}"),
        ("model: m\nmethod: lora", "model: m\nmethod: {name: lora}"),
        ("model: m\nmethod: full", "model: m"),
        ("model: m\nobjective: causal_lm", "model: m\nobjective: {name: causal_lm}"),
        ("model: 'm'\nmethod: \"lora\"", "model: m\nmethod: lora"),
    ],
)
def test_short_forms(here: Path, short: str, long: str) -> None:
    data = "\ndata: {train: d.jsonl}\n"
    assert load(short + data).recipe == load(long + data).recipe


def test_the_defaults_of_lora(here: Path) -> None:
    method = load(MINIMAL + "method: lora\n").recipe.method
    assert method.model_dump() == {
        "name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all_linear", "rank_pattern": {},
        "alpha_pattern": {}, "rslora": False, "dora": False, "init": "default", "learning_rate_ratio": None,
        "new_tokens": [], "trainable_tokens": [],
    }  # fmt: skip


def test_a_full_recipe(here: Path) -> None:
    recipe = load(FULL).recipe
    assert isinstance(recipe.method, Lora)
    assert recipe.method.rank_pattern == {"layers.0.q_proj": 4}
    assert recipe.method.learning_rate_ratio == 16
    assert [source.path for source in sources(recipe.data.train)] == ["a.jsonl", "org/b"]
    assert sources(recipe.data.train)[1].columns == {"output": "answer"}
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.early_stopping == EarlyStopping(patience=5, min_delta=0.01, max_forgetting="5%")
    assert recipe.checkpoint.best is None


def test_the_full_recipe_writes_every_key() -> None:
    """So that whatever is parametrised over it covers a key that is added."""
    tree = tree_of(FULL)
    tree["data"]["train"] = tree["data"]["train"][1]
    tree["data"]["eval"] = tree["data"]["test"]
    for prefix, kind in blocks_of(Recipe):
        block = tree
        for part in prefix.split(".")[:-1]:
            block = block[part]
        block = block[0] if isinstance(block, list) else block
        assert set(block) == set(kind.model_fields), prefix


# Strictness


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.batch_size", "3", "a whole number, received '3'"),
        ("train.batch_size", 2.5, "a whole number, received 2.5"),
        ("train.batch_size", 3.0, "a whole number, received 3.0"),
        ("train.batch_size", True, "a whole number, received true"),
        ("train.batch_size", None, "a whole number, received null"),
        ("train.batch_size", [3], "a whole number, received [3]"),
        ("train.weight_decay", "0.1", "a number, received '0.1'"),
        ("train.weight_decay", True, "a number, received true"),
        ("train.learning_rate", "1e-4", "'auto' or a number, received '1e-4'"),
        ("train.learning_rate", False, "'auto' or a number, received false"),
        ("train.deterministic", 1, "true or false, received 1"),
        ("train.deterministic", 0, "true or false, received 0"),
        ("train.deterministic", "yes", "true or false, received 'yes'"),
        ("train.activation_checkpointing", 1, "'auto' or true or false, received 1"),
        ("train.compile", 1, "'auto' or true or false, received 1"),
        ("train.activation_checkpointing", None, "'auto' or true or false, received null"),
        ("train.micro_batch_size", 1.0, "'auto' or a whole number, received 1.0"),
        ("train.micro_batch_size", "8", "'auto' or a whole number, received '8'"),
        (
            "train.optimizer",
            "AdamW",
            "'adamw', 'muon', 'adafactor', 'sgd', 'adamw_8bit' or 'paged_adamw_8bit' (did you mean 'adamw'?), "
            "received 'AdamW'",
        ),
        ("train.optimizer", 1, "'adamw', 'muon', 'adafactor', 'sgd', 'adamw_8bit' or 'paged_adamw_8bit', received 1"),
        ("train.warmup", "3", "a whole number or a share such as '5%', received '3'"),
        ("train.warmup", "101%", "a whole number or a share such as '5%', received '101%'"),
        ("train.early_stopping", 3, "a block of keys, received 3"),
        ("train.duration", "3", "'3 epochs', '500 steps' or '2_000_000 tokens', received '3'"),
        ("train.duration", "-1 steps", "'3 epochs', '500 steps' or '2_000_000 tokens', received '-1 steps'"),
        ("train.duration", "9" * 400 + " steps", "at most 1e+15, received '" + "9" * 56 + "..."),
        ("method.rank", "16", "a whole number, received '16'"),
        ("method.rslora", 1, "true or false, received 1"),
        ("method.target_modules", "q_proj", "'all_linear' or a list, received 'q_proj'"),
        ("method.target_modules", [], "'all_linear' or at least one entry, received []"),
        ("method.rank_pattern", ["q"], "a block of keys, received ['q']"),
        ("data.columns", {"prompt": 1}, "text, received 1"),
        ("data.train", {"path": "x", "split": "train[5]"}, None),
        ("data.template", "", "some text, received ''"),
        ("data.max_length", "512", "'auto' or a whole number, received '512'"),
        ("eval.metrics", "loss", "'auto' or a list, received 'loss'"),
        ("tracking", "wandb", "a list, received 'wandb'"),
        ("seed", 1.0, "a whole number, received 1.0"),
        ("seed", True, "a whole number, received true"),
        ("output_dir", "", "some text, received ''"),
        ("model.name", "", "some text, received ''"),
        ("model.revision", 123, "text, received 123"),
    ],
)
def test_nothing_is_converted(here: Path, key: str, value: Any, expected: str | None) -> None:
    path = {"data.columns": "data.columns.prompt", "data.train": "data.train.split"}.get(key, key)
    expected = expected or "'train', 'train[:400]' or '[10%:20%]', received 'train[5]'"
    [line] = refused(with_value(key, value))
    assert re.fullmatch(rf"\d+:\d+ {re.escape(f'{path}: expected {expected}.')}", line), line


@pytest.mark.parametrize("key", ["train.weight_decay", "train.learning_rate", "train.max_minutes", "method.alpha"])
def test_a_whole_number_is_a_number(here: Path, key: str) -> None:
    assert at(load(with_value(key, 2)).recipe, key) == 2


@pytest.mark.parametrize(
    ("key", "zero"),
    [
        ("seed", 0),
        ("train.warmup", 0),
        ("train.weight_decay", 0),
        ("train.weight_decay", 0.0),
        ("train.learning_rate", 0),
        ("train.learning_rate", 0.0),
        ("train.early_stopping.min_delta", 0),
        ("method.dropout", 0),
    ],
)
def test_zero_is_a_value(here: Path, key: str, zero: float) -> None:
    """Not "unset": it survives loading, `--set` and the way through JSON, and its source is the file."""
    loaded = load(with_value(key, zero))
    assert at(loaded.recipe, key) == 0
    assert loaded.source(key).startswith("r.yaml:1:")
    one = 1 if key in ("seed", "train.warmup") else 0.5
    overridden = load(with_value(key, one), f"{key}={zero}")
    assert at(overridden.recipe, key) == 0
    again, problems = parse_recipe(json.loads(loaded.recipe.model_dump_json()))
    assert again is not None, problems
    assert at(again, key) == 0


OUT_OF_RANGE: dict[str, list[Any]] = {
    "data.max_length": [1, 0, -1],
    "data.near_duplicates": [0, -0.1, 1.1],
    "data.seed": [-1, 2**63],
    "train.max_minutes": [0, -1],
    "train.batch_size": [0, -1],
    "train.micro_batch_size": [0, -1],
    "train.learning_rate": [-1e-9, -1],
    "train.warmup": [-1],
    "train.weight_decay": [-0.1],
    "train.max_grad_norm": [0, -1.0],
    "train.max_skipped_steps": [-1],
    "train.early_stopping.patience": [0, -1],
    "train.early_stopping.min_delta": [-0.1],
    "eval.every": [0, -1],
    "eval.max_rows": [0, -1],
    "eval.generate_every": [0, -1],
    "eval.max_new_tokens": [0, -1],
    "eval.shots": [[-1]],
    "checkpoint.every": [0, -1],
    "checkpoint.keep": [0, -1],
    "distributed.devices": [0, -1],
    "seed": [-1, 2**63, 10**99],
    "method.rank": [0, -1, 4097],
    "method.alpha": [0, -0.5],
    "method.dropout": [-0.1, 1, 1.5],
    "method.rank_pattern": [{"q": 0}, {"layers.0.q": -1}],
    "method.alpha_pattern": [{"q": 0}],
    "method.learning_rate_ratio": [0, 0.99, -1],
}


def test_every_number_with_a_range_is_below() -> None:
    bounded = {
        f"{prefix}{name}"
        for prefix, kind in blocks_of(Recipe)
        for name, info in kind.model_fields.items()
        if any(isinstance(part, Ge | Gt | Le | Lt) for part in (*parts_of(info.annotation), *parts_of(info)))
    }
    weights = {f"{place}.weight" for place in ("data.train", "data.eval", "data.test", "eval.guard")}
    assert set(OUT_OF_RANGE) == bounded - weights and weights <= bounded


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_a_weight_out_of_range_is_one_problem(here: Path, weight: float) -> None:
    [line] = refused(MINIMAL.replace("d.jsonl", f"{{path: d.jsonl, weight: {weight}}}"))
    assert "data.train.weight: expected a number" in line


def test_a_weight_is_for_training_rows(here: Path) -> None:
    [line] = refused(MINIMAL.replace("d.jsonl}", "d.jsonl, test: {path: e.jsonl, weight: 2}}"))
    assert "data.test: a weight is for training rows" in line


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_a_number_out_of_range_is_one_problem(here: Path, key: str, value: Any) -> None:
    [line] = refused(with_value(key, value))
    inside = dict(enumerate(value)) if isinstance(value, list) else value
    inner = f".{next(iter(inside))}" if isinstance(inside, dict) else ""
    received = next(iter(inside.values())) if isinstance(inside, dict) else inside
    shown = f"{received!r}"[:57] + ("..." if len(f"{received!r}") > 60 else "")
    pattern = (
        rf"1:\d+ {re.escape(key + inner)}: expected ('auto' or )?a number (at least|above|at most|below) [0-9.]+, "
    )
    assert re.fullmatch(pattern + re.escape(f"received {shown}."), line), line


def test_the_ratio_of_a_head(here: Path) -> None:
    block = "method: {name: full, head_learning_rate_ratio: 3}\n"
    [line] = refused(MINIMAL + block)
    assert line.startswith("3:") and "has no effect: causal_lm puts no new head on the model" in line
    labels = "objective: sequence_classification\n"
    assert load(MINIMAL + labels + block).recipe.method == Full(head_learning_rate_ratio=3)
    [line] = refused(MINIMAL + labels + block.replace("3", "0"))
    assert "method.head_learning_rate_ratio: expected a number above 0, received 0." in line


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize("key", ["train.learning_rate", "train.weight_decay", "train.max_grad_norm", "method.alpha"])
def test_infinity_and_nan_are_refused(here: Path, key: str, value: str) -> None:
    [line] = refused(MINIMAL + "method: lora\n", f"{key}={value}")
    assert re.fullmatch(rf"--set {key}: expected ('auto' or )?a finite number, received -?(inf|nan)\.", line), line


def test_ranges_are_shown_as_they_are(here: Path) -> None:
    assert refused(MINIMAL + f"seed: {2**63}\n") == [
        "3:1 seed: expected a number below 9223372036854775808, received 9223372036854775808."
    ]
    assert load(MINIMAL + f"seed: {2**63 - 1}\n").recipe.seed == 2**63 - 1


@pytest.mark.parametrize("prefix", [prefix for prefix in dict(blocks_of(Recipe)) if prefix])
def test_everything_is_frozen(prefix: str) -> None:
    recipe, problems = parse_recipe(tree_of(FULL))
    assert recipe is not None, problems
    block = sources(recipe.data.train)[1] if ".train." in prefix or ".eval." in prefix else at(recipe, prefix[:-1])
    block = block[0] if isinstance(block, list) else block
    for owner, name in [(block, next(iter(type(block).model_fields))), (recipe, "seed")]:
        with pytest.raises(ValidationError) as caught:
            setattr(owner, name, getattr(owner, name))
        assert caught.value.errors()[0]["type"] == "frozen_instance"


# Unknown keys


@pytest.mark.parametrize(
    ("block", "key", "hint"),
    [
        ("", "sede", "Did you mean 'seed'?"),
        ("model", "dtpye", "Did you mean 'dtype'?"),
        ("objective", "nmae", "Did you mean 'name'?"),
        ("method", "rnak", "Did you mean 'rank'?"),
        ("method", "target_module", "Did you mean 'target_modules'?"),
        ("data", "trian_on", "Did you mean 'train_on'?"),
        ("data.test", "splti", "Did you mean 'split'?"),
        ("train", "lerning_rate", "Did you mean 'learning_rate'?"),
        ("train.early_stopping", "patiense", "Did you mean 'patience'?"),
        ("eval", "max_row", "Did you mean 'max_rows'?"),
        ("checkpoint", "kep", "Did you mean 'keep'?"),
        ("distributed", "device", "Did you mean 'devices'?"),
        ("distributed", "zzz", "Known: devices."),
        ("train.early_stopping", "zzz", "Known: max_forgetting, min_delta, patience."),
        ("data.test", "zzz", f"Known: {', '.join(sorted(Source.model_fields))}."),
    ],
)
def test_an_unknown_key_of_any_block_names_the_nearest(here: Path, block: str, key: str, hint: str) -> None:
    tree = tree_of(FULL)
    inner = tree
    for part in block.split(".") if block else []:
        inner = inner[part]
    inner[key] = 1
    [line] = refused(json.dumps(tree))
    path = f"{block}.{key}" if block else key
    assert re.fullmatch(rf"1:\d+ {re.escape(f'{path}: unknown key. {hint}')}", line), line


def test_an_unknown_key_of_the_default_method(here: Path) -> None:
    assert refused(MINIMAL + "method: {name: full, zzz: 8}\n") == [
        "3:22 method.zzz: unknown key. Known: head_learning_rate_ratio, name."
    ]


@pytest.mark.parametrize(
    ("block", "key", "meant"),
    [
        ("train", "lr", "learning_rate"),
        ("train", "epochs", "duration"),
        ("train", "num_train_epochs", "duration"),
        ("train", "max_steps", "duration"),
        ("train", "warmup_steps", "warmup"),
        ("train", "warmup_ratio", "warmup"),
        ("train", "lr_scheduler", "schedule"),
        ("train", "gradient_accumulation_steps", "micro_batch_size"),
        ("train", "bf16", "precision"),
        ("method", "r", "rank"),
        ("method", "lora_r", "rank"),
        ("method", "lora_alpha", "alpha"),
        ("method", "lora_dropout", "dropout"),
        ("data", "max_seq_len", "max_length"),
        # in the wrong block
        ("", "lr", "train.learning_rate"),
        ("", "epochs", "train.duration"),
        ("", "lora_r", "method.rank"),
        ("train", "lora_r", "method.rank"),
        ("data", "lr", "train.learning_rate"),
        ("model", "max_seq_len", "data.max_length"),
        ("checkpoint", "bf16", "train.precision"),
        # right names in the wrong block, also misspelt
        ("", "learning_rate", "train.learning_rate"),
        ("", "lerning_rate", "train.learning_rate"),
        ("train", "target_modules", "method.target_modules"),
        ("train", "target_module", "method.target_modules"),
        ("train", "max_length", "data.max_length"),
        ("method", "learning_rate", "train.learning_rate"),
        ("eval", "keep", "checkpoint.keep"),
        ("data", "metrics", "eval.metrics"),
        ("model", "early_stoping", "train.early_stopping"),
    ],
)
def test_names_of_other_tools_and_places(here: Path, block: str, key: str, meant: str) -> None:
    tree = tree_of(FULL)
    (tree[block] if block else tree)[key] = 1
    [line] = refused(json.dumps(tree))
    path = f"{block}.{key}" if block else key
    assert line.partition(" ")[2] == f"{path}: unknown key. Did you mean '{meant}'?"


def test_a_key_of_the_top_level_in_a_block(here: Path) -> None:
    assert refused(MINIMAL + "train: {seed: 1, output_dir: x}\n") == [
        "3:9 train.seed: unknown key. Did you mean 'seed' at the top level?",
        "3:18 train.output_dir: unknown key. Did you mean 'output_dir' at the top level?",
    ]


@pytest.mark.parametrize(
    "key", ["int", "str", "float", "bool", "Source", "Section", "a(b", "a[b", "list[str]", "", "a.b"]
)
@pytest.mark.parametrize("block", ["", "train", "data.test", "method"])
def test_a_key_may_look_like_anything(here: Path, block: str, key: str) -> None:
    """The name of a branch of a union, as pydantic reports them, is a key like any other."""
    tree = tree_of(FULL)
    inner = tree
    for part in block.split(".") if block else []:
        inner = inner[part]
    inner[key] = 1
    [line] = refused(json.dumps(tree))
    assert line.partition(" ")[2].startswith(
        f"{f'{block}.' if block else ''}{key}{': ' if block or key else ''}unknown key."
    )


def test_a_dotted_key_is_explained_and_found(here: Path) -> None:
    text = MINIMAL + "train: {batch_size: 4}\ntrain.batch_size: 8\n"
    assert refused(text) == ["4:1 train.batch_size: unknown key. Write it as 'batch_size' in the block 'train'."]


def misspellings(word: str, random_source: random.Random) -> set[str]:
    """A letter left out, doubled, replaced, added, and two swapped."""
    at_ = random_source.randrange(len(word) - 1)
    return {
        word[:at_] + word[at_ + 1 :],
        word[:at_] + word[at_] + word[at_:],
        word[:at_] + "x" + word[at_ + 1 :],
        word + "s",
        word[:at_] + word[at_ + 1] + word[at_] + word[at_ + 2 :],
    } - {word}


def every_block(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks of FULL whose keys are ours."""
    yield "", tree
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{name}.", value
    yield "data.train.1.", tree["data"]["train"][1]
    yield "data.test.", tree["data"]["test"]
    yield "train.early_stopping.", tree["train"]["early_stopping"]


def test_misspelt_keys_are_caught_and_nearly_always_understood(here: Path) -> None:
    random_source = random.Random(0)
    caught, understood, missed = 0, 0, []
    for prefix, _ in list(every_block(tree_of(FULL))):
        block = dict(every_block(tree_of(FULL)))[prefix]
        for key in block:
            for wrong in misspellings(key, random_source) - set(block):
                tree = tree_of(FULL)
                inner = dict(every_block(tree))[prefix]
                inner[wrong] = inner.pop(key)
                recipe, problems = parse_recipe(tree)
                messages = [problem.message for problem in problems if problem.path == f"{prefix}{wrong}"]
                named_otherwise = wrong == "naem" or key == "name" and prefix in ("method.", "objective.")
                assert recipe is None
                assert named_otherwise or len(messages) == 1, (prefix, wrong, problems)
                if not named_otherwise:
                    caught += 1
                    right = messages[0] == f"unknown key. Did you mean '{key}'?"
                    understood += right
                    missed += [] if right else [f"{prefix}{wrong}: {messages[0]}"]
    assert caught > 300
    assert understood / caught >= 0.95, missed


def test_a_misspelt_name_leaves_nothing_to_look_keys_up_in(here: Path) -> None:
    known = ", ".join(methods.names())
    assert refused(MINIMAL + "method: {nmae: lora, rank: 8}\n") == [
        f"3:1 method.name: no method is named. Known: {known}."
    ]


# All problems at once


@pytest.mark.parametrize("path", BAD_RECIPES, ids=lambda path: path.stem)
def test_bad_recipes(path: Path) -> None:
    """Each names, in its own comments, every line of its error."""
    expected = re.findall(r"^# expect: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]
    assert [line.replace(f"{path.parent}/", "") for line in lines] == expected
    count = "1 problem" if len(expected) == 1 else f"{len(expected)} problems"
    assert str(caught.value).splitlines()[-1] == f"{count}. Nothing was run."
    assert caught.value.exit_code == 2


def test_there_are_bad_recipes() -> None:
    assert len(BAD_RECIPES) >= 20
    assert len({path.stem[:2] for path in BAD_RECIPES}) == len(BAD_RECIPES)


def test_weights_that_are_random_already_cannot_be_drawn_anew() -> None:
    text = "model: {name: builtin:tiny-llama, init: random}\nmethod: lora\ndata: {train: d.jsonl}\n"
    expected = "1:35 model.init: has no effect on builtin:tiny-llama, whose weights are random already. Remove it."
    assert refused(text) == [expected]


def test_faults_of_the_file_and_of_the_command_line_come_together_in_order(here: Path) -> None:
    text = (
        "model: {name: ./folder, revision: main}\n"
        "method: {name: lora, dora: true, init: pissa}\n"
        "data:\n"
        "  train: d.jsonl\n"
        "  frmat: text\n"
        "train:\n"
        "  batch_size: 2.5\n"
        "  early_stopping: {patience: 0}\n"
        "seed: -1\n"
    )
    assert refused(text, "eval.every=5", "oops", "train.optimizer=adm", "checkpoint.keep=[1") == [
        "--set expected section.key=value, received 'oops'.",
        "--set checkpoint.keep: is not valid YAML: expected ',' or ']', but got '<stream end>'.",
        "--set train.optimizer: expected 'adamw', 'muon', 'adafactor', 'sgd', 'adamw_8bit' or 'paged_adamw_8bit' "
        "(did you mean 'adamw'?), received 'adm'.",
        "--set eval.every: has no effect without data.eval. Give data.eval a path or a share such as '5%'.",
        "1:25 model.revision: has no effect on ./folder, which is not a hub id. Remove it.",
        "2:22 method.dora: cannot be combined with init: pissa, both redefine W0. Choose one.",
        "5:3 data.frmat: unknown key. Did you mean 'format'?",
        "7:3 train.batch_size: expected a whole number, received 2.5.",
        "8:20 train.early_stopping.patience: expected a number at least 1, received 0.",
        "9:1 seed: expected a number at least 0, received -1.",
    ]


@pytest.mark.parametrize(
    ("broken", "dead"),
    [
        ("model: {name: m, dtype: bf16}\nmethod: lroa\ndata: {train: d}\n", "model.dtype"),
        ("model: {name: m, dtype: bf16}\nmethod: 3\ndata: {train: d}\n", "model.dtype"),
        ("model: m\ndata: {train: d, eval: 7}\neval: {every: 5}\n", "eval.every"),
        ("model: m\ndata: {train: d, eval: {path: 7}}\ncheckpoint: {best: eval_loss}\n", "checkpoint.best"),
        ("model: m\ndata: {train: d, evla: 5%}\ntrain: {early_stopping: {}}\n", "train.early_stopping"),
        ("model: m\ndata: 7\neval: {max_rows: 5}\n", "eval.max_rows"),
        ("model: m\neval: {max_rows: 5}\n", "eval.max_rows"),
        ("model: m\ndata: {train: d, eval: 5%}\neval: {metrics: [7], max_new_tokens: 5}\n", "eval.max_new_tokens"),
        ("model: m\ndata: {train: d}\ntrain: {bach_size: 64, micro_batch_size: 64}\n", "train.micro_batch_size"),
        ("model: m\ndata: {train: d}\ntrain: {batch_size: 0}\ndistributed: {devices: 64}\n", "distributed.devices"),
        ("model: m\ndata: {train: d}\ntrain: 7\ndistributed: {devices: 64}\n", "distributed.devices"),
        ("model: {name: m, revision: 7, trust_remote_code: true}\ndata: {train: d}\n", "model.trust_remote_code"),
        ("model: m\ndata: {train: d, eval: 5%}\nobjective: zzz\neval: {metrics: [zzz]}\n", "eval.metrics"),
        ("model: m\ndata: {train: d, eval: {path: 7}}\neval: {shots: [0]}\n", "eval.shots"),
        ("model: m\ndata: {train: d, evla: 5%, seed: 1}\n", "data.seed"),
        ("model: m\ndata: {train: d, eval: [7], near_duplicates: null}\n", "data.near_duplicates"),
        ("model: m\ndata: {train: d, tset: t, leakage: drop}\n", "data.leakage"),
        ("model: m\ndata: {train: d, evval: 5%, group_by: c}\n", "data.group_by"),
        (
            "model: m\nmethod: lroa\ndata: {train: d, eval: 5%}\nobjective: seq2seq_lm\neval: {max_new_tokens: 5}\n",
            "eval.max_new_tokens",
        ),
        ("model: m\nmethod: feature_based\ndata: {train: d, objective: sequence_classification}\n", "method.name"),
        ("model: {name: m, dtype: bf16}\ndata: {train: d}\ntrain: {method: lora}\n", "model.dtype"),
    ],
)
def test_what_follows_from_another_fault_is_not_said(here: Path, broken: str, dead: str) -> None:
    """The fault itself is one problem; that the default in its place contradicts something is none."""
    [line] = refused(broken)
    assert f" {dead}: " not in line
    assert dead in CAUSES


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ("{name: prompt, init: txet, init_text: a b}", "method.init: expected 'vocabulary', 'text' or 'random'"),
        ("{name: prompt, init: text, init_txt: a b}", "method.init_txt: unknown key. Did you mean 'init_text'?"),
    ],
)
def test_what_follows_from_another_fault_of_a_method_is_not_said(here: Path, block: str, line: str) -> None:
    [found] = refused(MINIMAL + f"method: {block}\n")
    assert line in found


def test_contradictions_are_found_though_required_keys_are_missing(here: Path) -> None:
    assert refused("train: {batch_size: 4, micro_batch_size: 8}\n") == [
        "1:1 model: is required.",
        "1:1 data: is required.",
        "1:24 train.micro_batch_size: 8 exceeds batch_size 4. Lower it.",
    ]
    assert refused("model: {dtype: bf16}\ndata: {train: [{}]}\nmethod: full\n") == [
        "1:1 model.name: is required.",
        "1:9 model.dtype: has no effect: method full freezes nothing, and what learns is fp32. Remove it.",
        "2:16 data.train.0.path: is required.",
    ]


def test_values_are_cut_to_one_line(here: Path) -> None:
    [line] = refused(MINIMAL + f"seed: [{', '.join(['1'] * 1000)}]\n")
    assert len(line) < 120
    assert line == f"3:1 seed: expected a whole number, received [{'1, ' * 18}1,...."
    assert refused(MINIMAL + f"seed: {'x' * 58}\n") == [f"3:1 seed: expected a whole number, received '{'x' * 58}'."]
    assert refused(MINIMAL + f"seed: {'x' * 59}\n") == [f"3:1 seed: expected a whole number, received '{'x' * 56}...."]


def test_a_recipe_in_any_order_and_clothing_is_the_same(here: Path) -> None:
    recipe = load(FULL).recipe

    def shuffled(value: Any, random_source: random.Random) -> Any:
        if not isinstance(value, dict):
            return value
        keys = random_source.sample(sorted(value), len(value))
        return {key: shuffled(value[key], random_source) for key in keys}

    for seed in range(20):
        tree = shuffled(tree_of(FULL), random.Random(seed))
        text = json.dumps(tree, indent=seed % 3) if seed % 2 else yaml.safe_dump(tree, sort_keys=False)
        assert load(f"# {seed}\n\n" + text).recipe == recipe


# extends


def test_a_recipe_is_laid_over_its_base_key_by_key(here: Path) -> None:
    Path("base.yaml").write_text(
        "model: {name: m, dtype: bf16}\nmethod: {name: lora, rank: 4, target_modules: [a, b]}\n"
        "data: {train: base.jsonl, eval: 5%, columns: {prompt: q}}\n"
        "train: {batch_size: 8, weight_decay: 0.1}\nseed: 1\n",
        encoding="utf-8",
    )
    loaded = load(
        "extends: base.yaml\nmethod: {rank: 8, target_modules: [c]}\n"
        "data: {train: own.jsonl, columns: {completion: a}}\ntrain: {weight_decay: 0}\n"
    )
    recipe = loaded.recipe
    assert isinstance(recipe.method, Lora)
    assert (recipe.method.rank, recipe.method.target_modules) == (8, ["c"])
    assert (recipe.data.train, recipe.data.eval) == ("own.jsonl", "5%")
    assert recipe.data.columns == {"prompt": "q", "completion": "a"}
    assert (recipe.train.batch_size, recipe.train.weight_decay, recipe.seed) == (8, 0, 1)
    assert loaded.text.startswith("extends: base.yaml\n")
    assert loaded.source("method.rank") == "r.yaml:2:16"
    assert loaded.source("method.name") == "base.yaml:2:16"
    assert loaded.source("seed") == "base.yaml:5:7"
    assert loaded.source("checkpoint.keep") == "default"
    assert "extends" not in loaded.origins


def test_a_chain_of_bases_each_relative_to_the_file_that_names_it(here: Path) -> None:
    (here / "deep" / "er").mkdir(parents=True)
    Path("deep/er/root.yaml").write_text(
        MINIMAL + "seed: 1\ntrain: {batch_size: 1}\ntracking: [wandb]\n", encoding="utf-8"
    )
    Path("deep/middle.yaml").write_text("extends: er/root.yaml\nseed: 2\ntrain: {weight_decay: 2}\n", encoding="utf-8")
    recipe = load("extends: ./deep/middle.yaml\nseed: 3\n").recipe
    assert (recipe.seed, recipe.train.batch_size, recipe.train.weight_decay) == (3, 1, 2)
    assert recipe.tracking == ["wandb"]
    absolute = load(f"extends: {here}/deep/er/../middle.yaml\n").recipe
    assert absolute.seed == 2


@pytest.mark.parametrize(
    ("base", "over", "method"),
    [
        ("{name: lora, rank: 4}", "{rank: 8}", Lora(rank=8)),
        ("{name: lora, rank: 4}", "lora", Lora(rank=4)),
        ("{name: lora, rank: 4}", "{name: lora, alpha: 8}", Lora(rank=4, alpha=8)),
        ("{name: lora, rank: 4}", "full", Full()),
        ("{name: lora, rank: 4}", "{name: full}", Full()),
        ("lora", "{rank: 8}", Lora(rank=8)),
        ("full", "lora", Lora()),
        ("full", "{name: lora, rank: 8}", Lora(rank=8)),
    ],
)
def test_naming_another_method_drops_the_keys_of_the_old_one(
    here: Path, base: str, over: str, method: methods.Method
) -> None:
    Path("base.yaml").write_text(MINIMAL + f"method: {base}\n", encoding="utf-8")
    assert load(f"extends: base.yaml\nmethod: {over}\n").recipe.method == method


def test_naming_another_model_drops_the_revision_of_the_old_one(here: Path) -> None:
    Path("base.yaml").write_text("model: {name: a, revision: x}\ndata: {train: d}\n", encoding="utf-8")
    assert load("extends: base.yaml\nmodel: b\n").recipe.model == Model(name="b")
    assert load("extends: base.yaml\nmodel: a\n").recipe.model == Model(name="a", revision="x")
    assert load("extends: base.yaml\nmodel: {init: random}\n").recipe.model == Model(
        name="a", revision="x", init="random"
    )


def test_a_block_over_a_word_replaces_it(here: Path) -> None:
    """Only `model`, `method` and `objective` have a short form; a path is no name."""
    Path("base.yaml").write_text("model: m\ndata: {train: a.jsonl, eval: 5%}\n", encoding="utf-8")
    data = load("extends: base.yaml\ndata: {train: {path: b.jsonl, split: '[:4]'}, eval: {path: c}}\n").recipe.data
    assert data.train == Source(path="b.jsonl", split="[:4]")
    assert data.eval == Source(path="c")


@pytest.mark.parametrize(
    ("extends", "line"),
    [
        ("missing.yaml", "1:10 extends: no such file: missing.yaml."),
        ("folder", "1:10 extends: no such file: folder."),
        ("''", "1:10 extends: no such file: .."),
        ("a" * 300, f"1:10 extends: no such file: {'a' * 300}."),
        ("[base.yaml]", "1:10 extends: expected the path of another recipe."),
        ("null", "1:10 extends: expected the path of another recipe."),
        ("3", "1:10 extends: expected the path of another recipe."),
        ("r.yaml", "1:10 extends: goes round in a circle."),
        ("./folder/../r.yaml", "1:10 extends: goes round in a circle."),
        ("loop.yaml", "1:10 extends: no such file: loop.yaml."),
    ],
)
def test_bases_that_cannot_be_had(here: Path, extends: str, line: str) -> None:
    Path("folder").mkdir()
    Path("loop.yaml").symlink_to("loop.yaml")
    assert refused(f"extends: {extends}\n{MINIMAL}") == [line]


def test_a_circle_of_bases_alone_is_found(here: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n", encoding="utf-8")
    Path("b.yaml").write_text("extends: a.yaml\n", encoding="utf-8")
    assert refused("extends: a.yaml\n") == ["b.yaml:1:10 extends: goes round in a circle."]


def test_a_circle_of_three_is_reported_where_it_closes(here: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n", encoding="utf-8")
    Path("b.yaml").write_text("seed: 1\nextends: r.yaml\n", encoding="utf-8")
    assert refused("extends: a.yaml\n") == ["b.yaml:2:10 extends: goes round in a circle."]


def test_two_recipes_may_share_a_base_and_a_chain_has_an_end(here: Path) -> None:
    Path("0.yaml").write_text(MINIMAL, encoding="utf-8")
    for number in range(1, MAX_BASES + 1):
        Path(f"{number}.yaml").write_text(f"extends: {number - 1}.yaml\nseed: {number}\n", encoding="utf-8")
    assert load(f"extends: {MAX_BASES - 1}.yaml\n").recipe.seed == MAX_BASES - 1
    assert refused(f"extends: {MAX_BASES}.yaml\n") == [
        f"1.yaml:1:10 extends: a chain of more than {MAX_BASES} recipes."
    ]


def test_a_fault_in_a_base_is_reported_there(here: Path) -> None:
    Path("base.yaml").write_text(MINIMAL + "train: {lr: 1}\n", encoding="utf-8")
    assert refused("extends: base.yaml\nseed: x\n") == [
        "base.yaml:3:9 train.lr: unknown key. Did you mean 'learning_rate'?",
        "2:1 seed: expected a whole number, received 'x'.",
    ]
    Path("base.yaml").write_text("a: [\n", encoding="utf-8")
    assert refused("extends: base.yaml\n") == [
        "base.yaml:2:1 is not valid YAML: expected the node content, but found '<stream end>'."
    ]


def test_an_inherited_dead_key_is_a_note_and_a_written_one_an_error(here: Path) -> None:
    message = "has no effect without data.eval. Give data.eval a path or a share such as '5%'."
    Path("base.yaml").write_text(
        "model: m\ndata: {train: d, eval: 5%}\neval: {every: 5}\ntrain: {early_stopping: {patience: 2}}\n",
        encoding="utf-8",
    )
    loaded = load("extends: base.yaml\ndata: {eval: null}\n")
    assert sorted(loaded.notes) == [
        f"eval.every (base.yaml:3:8): {message}",
        f"train.early_stopping (base.yaml:4:9): {message}",
    ]
    assert refused("extends: base.yaml\ndata: {eval: null}\neval: {every: 5}\n") == [f"3:8 eval.every: {message}"]
    assert refused("extends: base.yaml\ndata: {eval: null}\ntrain: {early_stopping: {min_delta: 0}}\n") == [
        f"3:9 train.early_stopping: {message}"
    ]
    assert refused("extends: base.yaml\ndata: {eval: null}\n", "eval.every=5") == [f"--set eval.every: {message}"]


def test_another_kind_of_contradiction_is_an_error_though_inherited(here: Path) -> None:
    Path("base.yaml").write_text(MINIMAL + "train: {micro_batch_size: 16}\n", encoding="utf-8")
    assert refused("extends: base.yaml\ntrain: {batch_size: 8}\n") == [
        "base.yaml:3:9 train.micro_batch_size: 16 exceeds batch_size 8. Lower it."
    ]


@pytest.mark.parametrize("folder", ["with space", "a:b", "a:1:2", "日本", "two\nlines"])
def test_folders_of_any_name(here: Path, folder: str) -> None:
    """A colon in a path is no line number: what is inherited stays inherited, and problems can be sorted."""
    Path(folder).mkdir()
    Path(folder, "base.yaml").write_text("model: m\ndata: {train: d}\neval: {every: 5}\n", encoding="utf-8")
    path = Path(folder, "r.yaml")
    path.write_text("extends: base.yaml\n", encoding="utf-8")
    [note] = load_recipe(path).notes
    assert note.startswith(f"eval.every ({folder}/base.yaml:3:8): has no effect")
    path.write_text("extends: base.yaml\nseed: x\nsede: 1\ncheckpoint: {best: eval_loss}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.where for problem in caught.value.problems] == [
        f"{folder}/r.yaml:{place}" for place in ("2:1", "3:1", "4:14")
    ]


# --set


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=7", "seed", 7),
        (" seed = 7 ", "seed", 7),
        ("train.learning_rate=2e-4", "train.learning_rate", 2e-4),
        ("train.learning_rate=auto", "train.learning_rate", "auto"),
        ("train.learning_rate=0", "train.learning_rate", 0.0),
        ("train.duration=500 steps", "train.duration", "500 steps"),
        ("train.max_grad_norm=null", "train.max_grad_norm", None),
        ("train.max_grad_norm=", "train.max_grad_norm", None),
        ("train.deterministic=true", "train.deterministic", True),
        ("train.early_stopping.patience=9", "train.early_stopping.patience", 9),
        ("data.eval=10%", "data.eval", "10%"),
        ("data.template='{{ a }}=1'", "data.template", "{{ a }}=1"),
        ("data.train=[x.jsonl, {path: y}]", "data.train", ["x.jsonl", Source(path="y")]),
        ("data.train={path: x, split: 'train[:3]'}", "data.train", Source(path="x", split="train[:3]")),
        ("data.columns.prompt=q", "data.columns", {"prompt": "q"}),
        ("tracking=[wandb]", "tracking", ["wandb"]),
        ("checkpoint={keep: 5}", "checkpoint.keep", 5),
        ("output_dir='123'", "output_dir", "123"),
        ("model=other", "model.name", "other"),
        ("model.revision=abc", "model.revision", "abc"),
    ],
)
def test_set(here: Path, override: str, key: str, value: Any) -> None:
    loaded = load(MINIMAL.replace("}", ", eval: 5%}"), override)
    assert at(loaded.recipe, key) == value
    assert type(at(loaded.recipe, key)) is type(value)
    assert loaded.source(key) == "--set"
    assert loaded.source("data.train" if key != "data.train" else "data.eval").startswith("r.yaml:2:")


LORA = MINIMAL + "method: {name: lora, rank: 4, dropout: 0.1}\n"


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["method=full"], Full()),
        (["method=lora"], Lora()),
        (["method.name=full"], Full()),
        (["method={name: full}"], Full()),
        (["method.rank=8"], Lora(rank=8, dropout=0.1)),
        (["method={rank: 8}"], Lora(rank=8, dropout=0.1)),
        (["method=full", "method=lora", "method.alpha=1"], Lora(alpha=1)),
        (["method.rank=8", "method.rank=9"], Lora(rank=9, dropout=0.1)),
    ],
)
def test_set_of_a_method(here: Path, overrides: list[str], method: methods.Method) -> None:
    """A word replaces the whole block, a key only itself, and later ones win."""
    assert load(LORA, *overrides).recipe.method == method


def test_set_goes_over_the_short_form(here: Path) -> None:
    loaded = load(MINIMAL + "method: lora\n", "method.rank=8", "model.init=random")
    assert loaded.recipe.method == Lora(rank=8)
    assert loaded.recipe.model == Model(name="m", init="random")
    assert loaded.source("method.name") == "r.yaml:3:9"
    assert loaded.source("method.rank") == "--set"


def test_set_goes_over_the_base_and_the_recipe(here: Path) -> None:
    Path("base.yaml").write_text(MINIMAL + "seed: 1\ncheckpoint: {keep: 1}\ntrain: {batch_size: 1}\n", encoding="utf-8")
    recipe = load("extends: base.yaml\nseed: 2\ncheckpoint: {keep: 2}\n", "seed=3").recipe
    assert (recipe.seed, recipe.checkpoint.keep, recipe.train.batch_size) == (3, 2, 1)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "expected section.key=value, received 'seed'."),
        ("", "expected section.key=value, received ''."),
        ("=3", "expected section.key=value, received '=3'."),
        ("train.=3", "expected section.key=value, received 'train.=3'."),
        (".seed=3", "expected section.key=value, received '.seed=3'."),
        ("a..b=3", "expected section.key=value, received 'a..b=3'."),
        ("seed=[", "seed: is not valid YAML: expected the node content, but found '<stream end>'."),
        ("seed=a: b: c", "seed: is not valid YAML: mapping values are not allowed here."),
        ("seed=&a 3", "seed: anchors (&) are not supported. Write the value out."),
        ("seed=!!int 3", "seed: tags (!) are not supported. Write the value out."),
        ("seed=\x01", "seed: holds a character that YAML does not allow."),
        ("seed=\udcff", "seed: holds a character that YAML does not allow."),
        ("seed=\t3", "seed: a tab in the indentation. Use spaces."),
        ("train={lr: 1, lr: 2}", "train: is written twice, first at --set. Remove one."),
        ("seed=abc", "seed: expected a whole number, received 'abc'."),
        ("seed=", "seed: expected a whole number, received null."),
        ("train.lerning_rate=1", "train.lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        ("lr=1", "lr: unknown key. Did you mean 'train.learning_rate'?"),
        ("trian.seed=1", "trian: unknown key. Did you mean 'train'?"),
        ("data.train.0.path=x", f"data.train.0: unknown key. Known: {', '.join(sorted(Source.model_fields))}."),
        ("train=3", "train: expected a block of keys, received 3."),
        ("seed.x=3", "seed: expected a whole number, received {'x': 3}."),
        ("method=lroa", "method.name: unknown method 'lroa'. Did you mean 'lora'?"),
        ("eval.every=5", "eval.every: has no effect without data.eval. Give data.eval a path or a share such as '5%'."),
    ],
)
def test_wrong_overrides_are_reported_as_such(here: Path, override: str, line: str) -> None:
    assert f"--set {line}" in refused(MINIMAL, override)


def test_a_wrong_override_is_one_problem(here: Path) -> None:
    assert len(refused(MINIMAL, "seed=[")) == 1
    assert len(refused(MINIMAL, "seed=[", "seed", "lr=1", "seed=x")) == 4


# Origins and the run folder


def test_every_value_has_an_origin(here: Path) -> None:
    loaded = load(FULL, "train.learning_rate=0", "checkpoint.keep=4")
    tree = tree_of(FULL)
    for section, block in tree.items():
        for key in block if isinstance(block, dict) else []:
            expected = (
                r"--set" if f"{section}.{key}" in ("train.learning_rate", "checkpoint.keep") else r"r\.yaml:\d+:\d+"
            )
            assert re.fullmatch(expected, loaded.source(f"{section}.{key}")), (section, key)
    assert loaded.source("seed") == f"r.yaml:{len(FULL.splitlines())}:7"
    assert loaded.source("method.rank_pattern.layers.0.q_proj") == "r.yaml:14:35"
    assert loaded.source("data.train.1.split") == "r.yaml:25:26"
    assert loaded.source("data.nothing") == "default"


@pytest.mark.parametrize(
    ("name", "output_dir", "expected"),
    [
        ("quick.yaml", "runs/{recipe}", "runs/quick"),
        ("folder/quick.v2.yaml", "runs/{recipe}", "runs/quick.v2"),
        ("quick.yml", "{recipe}/{recipe}", "quick/quick"),
        ("quick.yaml", "/tmp/x", "/tmp/x"),
        ("{recipe}.yaml", "{other}/{recipe}", "{other}/{recipe}"),
    ],
)
def test_the_run_folder(here: Path, name: str, output_dir: str, expected: str) -> None:
    Path("folder").mkdir()
    loaded = load(MINIMAL + f"output_dir: '{output_dir}'\n", name=name)
    assert loaded.output_dir == Path(expected)
    assert loaded.folder == Path(name).parent


# Stored recipes


@pytest.mark.parametrize(
    "text", [MINIMAL, FULL, MINIMAL + "method: lora\n", LORA], ids=["minimal", "full", "lora", "block"]
)
@pytest.mark.parametrize("unset", [True, False], ids=["written keys", "all keys"])
def test_a_recipe_comes_back_from_json(here: Path, text: str, unset: bool) -> None:
    recipe = load(text).recipe
    again, problems = parse_recipe(json.loads(recipe.model_dump_json(exclude_unset=unset)))
    assert problems == []
    assert again == recipe
    assert again is not None
    assert again.model_dump_json() == recipe.model_dump_json()
    assert type(again.method) is type(recipe.method)


def test_a_stored_recipe_keeps_inherited_keys_without_effect(here: Path) -> None:
    Path("base.yaml").write_text(MINIMAL + "eval: {every: 5}\n", encoding="utf-8")
    recipe = load("extends: base.yaml\n").recipe
    again, problems = parse_recipe(json.loads(recipe.model_dump_json()))
    assert (again, problems) == (recipe, [])
    assert recipe.eval.every == 5


def test_a_stored_recipe_is_checked() -> None:
    recipe, problems = parse_recipe(
        {"model": "m", "data": {"train": "d"}, "seed": "0", "train": {"micro_batch_size": 64}}
    )
    assert recipe is None
    assert problems == [
        Problem("seed", "expected a whole number, received '0'."),
        Problem("train.micro_batch_size", "64 exceeds batch_size 32. Lower it."),
    ]


def test_parsing_leaves_its_argument_alone() -> None:
    values = tree_of(FULL)
    parse_recipe(values)
    assert values == tree_of(FULL)


# Plug-ins


@pytest.mark.parametrize(
    ("key", "package"), [("method", methods), ("objective", objectives)], ids=["method", "objective"]
)
def test_an_unknown_plugin_lists_those_there_are_or_the_nearest(here: Path, key: str, package: Any) -> None:
    names = package.names()
    assert refused(MINIMAL + f"{key}: zzzzzz\n") == [
        f"3:1 {key}.name: unknown {key} 'zzzzzz'. Known: {', '.join(names)}."
    ]
    for name in names:
        assert refused(MINIMAL + f"{key}: {{name: x{name}}}\n") == [
            f"3:{len(key) + 4} {key}.name: unknown {key} 'x{name}'. Did you mean '{name}'?"
        ]
        fitting = "objective: sequence_classification\n" if name == "feature_based" else ""
        assert at(load(MINIMAL + fitting + f"{key}: {name}\n").recipe, f"{key}.name") == name
    for nothing in ("{}", "{rank: 8}", "{name: null}", "{name: 3}"):
        assert refused(MINIMAL + f"{key}: {nothing}\n")[0].partition(" ")[2] == (
            f"{key}.name: no {key} is named. Known: {', '.join(names)}."
        )
    for nothing in ("null", "3", "[lora]", "true"):
        assert refused(MINIMAL + f"{key}: {nothing}\n") == [f"3:1 {key}: no {key} is named. Known: {', '.join(names)}."]


PLUGIN = """
from typing import ClassVar
from ftune.methods import Method
from pydantic import Field, model_validator

class Mine(Method):
    size: int = Field(3, ge=1)
    learns: ClassVar[str] = "nothing"
    objectives: ClassVar[frozenset[str]] = frozenset({"causal_lm"})
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_evidence: ClassVar[str] = "none"

    @model_validator(mode="after")
    def check(self):
        if self.size == 13:
            raise ValueError("expected another size than 13")
        return self

    def problems(self):
        return [("size", "is even. Make it odd.")] if self.size % 2 == 0 else []

METHOD = Mine
"""
BROKEN = {
    "syntax": ("def:\n", "cannot be imported: SyntaxError: "),
    "imports": ("import no_such_module_at_all\n", "cannot be imported: No module named 'no_such_module_at_all'."),
    "fails": ("{}['key']\n", "cannot be imported: KeyError: 'key'."),
    "divides": ("1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero."),
    "exits": ("raise SystemExit(0)\n", "cannot be imported: SystemExit: 0."),
    "empty": ("", "defines no METHOD that is a subclass of Method."),
    "function": ("def METHOD(): ...\n", "defines no METHOD that is a subclass of Method."),
    "other": ("METHOD = dict\n", "defines no METHOD that is a subclass of Method."),
    "bare": (
        "from ftune.methods import Method\nclass METHOD(Method): ...\n",
        "does not define learning_rate, learning_rate_evidence, learns, objectives.",
    ),
}


@pytest.fixture
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of plug-ins on the path."""
    name = "plugins_of_a_test"
    folder = here / "path" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "mine.py").write_text(PLUGIN, encoding="utf-8")
    for module, (code, _) in BROKEN.items():
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_dotted_name_finds_a_method_elsewhere(package: str) -> None:
    recipe = load(MINIMAL + f"method: {{name: {package}.mine, size: 5}}\n").recipe
    assert type(recipe.method).__name__ == "Mine"
    assert recipe.method.model_dump() == {"name": f"{package}.mine", "size": 5}
    assert load(MINIMAL + f"method: {package}.mine\n").recipe.method.model_dump()["size"] == 3
    again, problems = parse_recipe(json.loads(recipe.model_dump_json()))
    assert (again, problems) == (recipe, [])


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ("size: 0", "method.size: expected a number at least 1, received 0."),
        ("size: 4", "method.size: is even. Make it odd."),
        ("szie: 4", "method.szie: unknown key. Did you mean 'size'?"),
        ("size: 13", "method: expected another size than 13, received {'name': 'plugins_of_a_test.mine', 'size': 13}."),
    ],
)
def test_a_method_elsewhere_is_checked_alike(package: str, block: str, line: str) -> None:
    assert [
        refusal.partition(" ")[2] for refusal in refused(MINIMAL + f"method: {{name: {package}.mine, {block}}}\n")
    ] == [line]


@pytest.mark.parametrize("module", BROKEN)
def test_a_broken_plugin_is_named_with_its_failure(package: str, module: str) -> None:
    lines = refused(MINIMAL + f"method: {package}.{module}\nsede: 1\n")
    assert lines[1:] == ["4:1 sede: unknown key. Did you mean 'seed'?"]
    assert re.match(rf"3:1 method\.name: (method|module) '{package}\.{module}' ", lines[0]), lines
    assert BROKEN[module][1] in lines[0]


@pytest.mark.parametrize(
    "name", [".relative", "..", ".", "a..b", "no_such_package.x", "ftune.methods.lora.x", "os.path", "a. b"]
)
def test_a_dotted_name_that_finds_nothing(here: Path, name: str) -> None:
    [line] = refused(MINIMAL + f"method: '{name}'\n")
    assert re.match(
        rf"3:1 method\.name: (method|module) '{re.escape(name)}' (cannot be imported: .+|defines no METHOD .+)\.$", line
    )


# Nothing heavy

COLD = """
import sys
from pathlib import Path
from ftune.errors import RecipeError
from ftune.load import load_recipe

for path in sys.argv[1:]:
    try:
        load_recipe(Path(path), ["checkpoint.keep=2"])
    except RecipeError as error:
        print(len(error.problems))
    else:
        print("loaded")
heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "safetensors", "numpy", "pyarrow", "typer", "rich"}
print(sorted(heavy & set(sys.modules)))
"""


def test_loading_is_cold(tmp_path: Path) -> None:
    (tmp_path / "full.yaml").write_text(FULL, encoding="utf-8")
    paths = [str(tmp_path / "full.yaml"), *map(str, BAD_RECIPES)]
    command = [sys.executable, "-c", COLD, *paths]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "loaded"
    assert len(lines) == len(paths) + 1
    assert all(int(line) > 0 for line in lines[1:-1])
    assert lines[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: {train: d.jsonl, eval: 150%}", "data.eval: expected a share such as '5%', received '150%'."),
        ("data: {train: d.jsonl, eval: [5%]}", "data.eval: expected a path, received the share 5%."),
        ("data: {train: ''}", "data.train: expected some text, received ''."),
        ("data: {train: d.jsonl, test: []}", "data.test: expected at least one entry, received []."),
        ("data: {train: d.jsonl}\ntrain: {duration: 3}", "train.duration: expected '3 epochs', '500 steps'"),
        (
            "data: {train: d.jsonl}\nmethod: {name: lora, target_modules: ['']}",
            "method.target_modules.0: expected some text",
        ),
    ],
)
def test_values_that_would_mean_nothing(here: Path, text: str, line: str) -> None:
    assert any(line in found for found in refused(f"model: m\n{text}\n"))


def test_metrics_of_test_rows_need_no_eval_rows(here: Path) -> None:
    text = "model: m\ndata: {train: d.jsonl, test: t.jsonl}\neval: {metrics: [exact_match], max_new_tokens: 8}\n"
    assert load(text).recipe.eval.metrics == ["exact_match"]
    alone = "model: m\ndata: {train: d.jsonl}\neval: {metrics: [exact_match]}\n"
    assert refused(alone) == [
        "3:8 eval.metrics: has no effect without data.eval. Give data.eval a path or a share such as '5%'."
    ]


def test_a_key_is_taken_out(here: Path) -> None:
    """As if it had not been written, so its default and its source come back."""
    text = MINIMAL + "train: {batch_size: 4, learning_rate: 1e-3}\n"
    loaded = load(text, "~train.batch_size", "train.learning_rate=2e-3", "~train.learning_rate")
    assert loaded.recipe == load(MINIMAL + "train: {}\n").recipe
    assert loaded.source("train.batch_size") == "default"
    assert load(MINIMAL + "train: {batch_size: 4}\n", "~train").recipe == load(MINIMAL).recipe
    assert refused(text, "~train.bach_size", "~seed.of", "~model") == [
        "--set train.bach_size: is not written in the recipe, so ~train.bach_size has nothing to take out. "
        "Did you mean 'train.batch_size'?",
        "--set seed.of: is not written in the recipe, so ~seed.of has nothing to take out. Known: data, data.train, "
        "model, model.name, train, train.batch_size, train.learning_rate.",
        "1:1 model: is required.",
    ]
