"""Which keys may change while a run is under way: every key is decided, in this table, and the program does the same.

A changed key that shapes the weights is refused with key, line, old and new value. Changed content is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from full_recipe import parts_of
from mutations import places
from pydantic import BaseModel

from ftune import methods, objectives
from ftune.drift import BY_CONTENT, is_free, refuse_drift
from ftune.errors import ArtifactError, RecipeError
from ftune.load import Loaded, load_recipe
from ftune.recipe import Recipe, Section, Source

CRASH = pytest.mark.crash
SEED = 9
REFUSED = {
    "model.dtype", "model.trust_remote_code", "model.init", "method.name", "objective.name", "data.seed",
    "data.group_by", "data.stratify", "data.format", "data.columns", "data.roles", "data.template", "data.train_on",
    "data.system", "data.max_length", "data.overlong", "data.on_bad_row", "train.batch_size", "train.learning_rate",
    "train.optimizer", "train.schedule", "train.warmup", "train.weight_decay", "train.max_grad_norm", "train.precision",
    "train.deterministic", "eval.max_rows", "seed",
}  # fmt: skip
"""And every key of every method and objective."""
ACCEPTED = {
    "train.duration", "train.max_minutes", "train.micro_batch_size", "train.activation_checkpointing", "train.compile",
    "train.max_skipped_steps", "train.early_stopping.patience", "train.early_stopping.min_delta",
    "train.early_stopping.max_forgetting", "data.packing", "data.max_dropped", "eval.every", "eval.metrics",
    "eval.generate_every", "eval.max_new_tokens", "eval.shots", "eval.guard", "checkpoint.every", "checkpoint.keep",
    "checkpoint.best", "distributed.devices", "tracking", "output_dir",
}  # fmt: skip
COMPARED = {
    "model.name",
    "model.revision",
    "data.train",
    "data.eval",
    "data.test",
    "data.near_duplicates",
    "data.leakage",
}
"""By what is in the files, not by how the recipe names them."""
CONTEXT: dict[str, dict[str, Any]] = {
    "model.trust_remote_code": {"model.name": "org/m", "model.revision": "0" * 40},
    "model.init": {"model.name": "org/m"},
    "model.revision": {"model.name": "org/m"},
    "data.stratify": {"objective.name": "sequence_classification"},
    "data.roles": {"data.format": "chat"},
    "eval.generate_every": {"eval.metrics": ["exact_match"]},
    "eval.max_new_tokens": {"eval.metrics": ["exact_match"]},
    "train.early_stopping.max_forgetting": {"eval.guard": ["guard.jsonl"]},
    "method.prefix.init_text": {"method.init": "text", "method.init_text": "a b"},
    "method.prompt.init_text": {"method.init": "text", "method.init_text": "a b"},
    "method.full.head_learning_rate_ratio": {"objective.name": "sequence_classification"},
    "method.feature_based.hidden": {"method.head": "mlp"},
    "method.feature_based.dropout": {"method.head": "mlp"},
}
"""What must be there too, for a key to have an effect."""
VALUES: tuple[Any, ...] = (
    True, False, 3, 7, 0.5, 0.25, 2.5, "7%", "9 steps", "auto", ["loss"], ["guard.jsonl"], ["tensorboard"], [0], ["a"],
    [1], {"q": 2}, {"client": "user"}, {"prompt": "q"}, "some words", {"name": "lora"}, {"a": 2.0}, "balanced", None,
)  # fmt: skip


def keys() -> Iterator[str]:
    """Every key that a recipe may hold, those of each method and objective as `method.NAME.key`."""
    yield from _keys(Recipe, "")
    for package, section in ((methods, "method"), (objectives, "objective")):
        for name in package.names():
            yield from (f"{section}.{name}.{key}" for key in package.load(name).model_fields if key != "name")


def _keys(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in kind.model_fields.items():
        inside = [part for part in parts_of(info.annotation) if isinstance(part, type) and issubclass(part, Section)]
        if name in ("method", "objective"):
            yield f"{name}.name"
        elif inside and inside[0] is not Source:
            yield from _keys(inside[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = list(keys())
OWN = [key for key in KEYS if key.count(".") == 2 and key.partition(".")[0] in ("method", "objective")]
"""Keys of methods and objectives, with their names."""


def test_every_key_is_decided() -> None:
    """A new key fails here until somebody says whether a run may go on with another value of it."""
    decided = REFUSED | ACCEPTED | COMPARED
    assert {key for key in KEYS if key not in OWN} == decided
    assert len(decided) == len(REFUSED) + len(ACCEPTED) + len(COMPARED)
    assert len(OWN) > 40
    assert {key for key in decided if is_free(key)} == ACCEPTED
    assert set(BY_CONTENT) == COMPARED
    assert not any(is_free(".".join([key.split(".")[0], key.split(".")[2]])) for key in OWN)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value


def words_of(kind: type[BaseModel], key: str) -> Iterator[Any]:
    """The words that a key may be, where it is one of a few."""
    for part in parts_of(kind.model_fields[key].annotation):
        yield from getattr(part, "__args__", ()) if str(part).startswith("typing.Literal") else ()


def recipes(key: str) -> tuple[Path, Loaded, Loaded]:
    """The file, and a recipe before and after `key` was changed to whatever else it can be."""
    section, _, rest = key.partition(".")
    tree: dict[str, Any] = {"model": {"name": "builtin:tiny-llama"}, "method": {"name": "lora"},
                            "data": {"train": "rows.jsonl", "eval": "20%"}}  # fmt: skip
    kind: type[BaseModel] = Recipe
    context = CONTEXT.get(key, {})
    if key in OWN:
        name, _, rest = rest.partition(".")
        key, kind = f"{section}.{rest}", (methods if section == "method" else objectives).load(name)
        tree[section] = {"name": name}
        tree |= {"objective": {"name": min(kind.objectives)}} if section == "method" else {"method": {"name": "full"}}
        if section == "objective":
            fitting = [m for m in ("lora", *methods.names()) if name in methods.load(m).objectives]
            tree["method"] = {"name": fitting[0]}
    else:
        for part in key.split(".")[:-1]:
            inner = [p for p in parts_of(kind.model_fields[part].annotation) if isinstance(p, type)]
            kind = next(p for p in inner if issubclass(p, BaseModel))
    for other, value in context.items():
        put(tree, other, value)
    before = written(tree)
    known = [] if rest == "name" and section in ("method", "objective") else list(words_of(kind, key.split(".")[-1]))
    named = {"method.name": "full", "objective.name": "seq2seq_lm", "model.name": "builtin:tiny-gpt2"}.get(key)
    for value in [named] if named else [*known, *VALUES, "other.jsonl"]:
        changed = json.loads(json.dumps(tree))
        put(changed, key, value)
        try:
            after = written(changed)
        except RecipeError:
            continue
        if at(after, key) != at(before, key):
            return Path("r.yaml"), before, after
    raise AssertionError(f"no other value of {key} was found")


def written(tree: dict[str, Any]) -> Loaded:
    Path("r.yaml").write_text(json.dumps(tree, indent=1), encoding="utf-8")
    return load_recipe(Path("r.yaml"))


def at(loaded: Loaded, key: str) -> Any:
    value: Any = loaded.recipe.model_dump(mode="json")
    for part in key.split("."):
        value = None if value is None else value[part]
    return value


def stored(loaded: Loaded, fingerprints: dict[str, str]) -> Path:
    """What drift reads of a run folder."""
    folder = Path("run")
    folder.mkdir()
    (folder / "resolved.json").write_text(json.dumps({"recipe": loaded.recipe.model_dump(mode="json")}))
    (folder / "run.json").write_text(json.dumps({"fingerprints": fingerprints}))
    return folder


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key(tmp_path: Path, key: str) -> None:
    path, before, after = recipes(key)
    folder, same = stored(before, {"data.train": "a"}), {"data.train": "a"}
    refuse_drift(folder, before, same)
    if key in ACCEPTED or key in COMPARED:
        refuse_drift(folder, after, same)
        return
    with pytest.raises(ArtifactError) as caught:
        refuse_drift(folder, after, same)
    parts = key.split(".")
    dotted = f"{parts[0]}.{parts[2]}" if key in OWN else key
    line, _ = places(path.read_text(encoding="utf-8"))[tuple(dotted.split("."))]
    lines = [text.strip() for text in str(caught.value).splitlines() if text.startswith(f"  {dotted}")]
    assert lines, caught.value
    old, new = at(before, dotted), at(after, dotted)
    if isinstance(old, dict) or isinstance(new, dict):
        assert all("the run has " in text for text in lines)
    else:
        assert lines[0].startswith(f"{dotted} (r.yaml:{line}:"), (lines, line)
        assert lines[0].endswith(f"): the run has {old!r}, the recipe now says {new!r}.")
    assert caught.value.exit_code == 4


def test_a_key_that_was_taken_out_is_a_change(tmp_path: Path) -> None:
    tree = {"model": "m", "method": {"name": "lora", "rank": 4}, "data": {"train": "rows.jsonl"}}
    folder = stored(written(tree), {})
    with pytest.raises(ArtifactError, match=r"method\.rank \(default\): the run has 4, the recipe now says 16\."):
        refuse_drift(folder, written({**tree, "method": "lora"}), {})
