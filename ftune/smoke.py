"""`ftune train RECIPE --smoke`: the recipe's own path on a tiny random model, in seconds.

Same architecture, tokenizer, data, template, method and checkpoints; two steps, a few rows. Proves that a recipe will
not fall over at its first save or at its merge.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftune import builtin
from ftune.answering import answer
from ftune.base import Base, find_base, load_config, load_tokenizer
from ftune.errors import MachineError
from ftune.listener import Listener
from ftune.load import Loaded
from ftune.merging import merge
from ftune.model import auto_class
from ftune.objectives import Head
from ftune.quantities import is_share
from ftune.recipe import Recipe, sources
from ftune.run import train
from ftune.scoring import SplitName, evaluate
from ftune.shrink import shrunken
from ftune.signals import StopFlag

ROWS = "[:32]"
LAYERS = 2
_FAMILY_WORDS = {"gpt2": "gpt2", "qwen": "qwen3", "gemma": "gemma3", "bert": "bert", "minilm": "bert",
                 "roberta": "bert", "modernbert": "bert", "distilbert": "bert", "t5": "t5", "bart": "bart"}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage that passed, what there is to say of it, and how long it took."""

    name: str
    outcome: str
    seconds: float


def smoke(loaded: Loaded, folder: Path, *, listener: Listener, stop: StopFlag) -> list[Stage]:
    """Run every stage of the recipe on a tiny model inside `folder`, which the caller deletes.

    Raises:
        FtuneError: whatever the recipe would have run into.
    """
    stages: list[Stage] = []

    def stage(name: str, work: Callable[[], str]) -> None:
        started = time.monotonic()
        outcome = work()
        stages.append(Stage(name, outcome, time.monotonic() - started))

    def tick(what: str, done: int, total: int) -> None:
        stop.check()
        listener.phase(what, done, total)

    small = tiny_version(loaded, folder)
    run = small.output_dir

    def trained() -> str:
        report = train(small, listener=Listener(), stop=stop)
        return f"{report['steps']} steps on {small.recipe.model.name}, loss finite"

    def resumed() -> str:
        longer = small.recipe.train.model_copy(update={"duration": "3 steps"})
        again = replace(small, recipe=small.recipe.model_copy(update={"train": longer}))
        report = train(again, listener=Listener(), stop=stop)
        return f"went on to step {report['steps']}"

    def evaluated() -> str:
        split: SplitName = "eval" if small.recipe.data.eval is not None else "train"
        result = evaluate(
            run, split=split, data_file=None, metrics=None, max_rows=4, batch_size=2, overrides=(), tick=tick
        )  # fmt: skip
        return ", ".join(f"{name} {score.value:.3f}" for name, score in result.metrics.items())

    def merged() -> str:
        result = merge(run, None, dtype=None, tick=lambda what: tick(what, 0, 0))
        return f"largest logit difference {result.max_difference:.1e}, read back equal"

    def generated() -> str:
        texts = answer(
            run, ["Hello"], max_new_tokens=4, sampling=None, seed=0, raw=False, overrides=(), tick=tick
        )  # fmt: skip
        return f"{len(texts)} answer"

    stage("train", trained)
    stage("resume", resumed)
    stage("eval", evaluated)
    if small.recipe.learner.mergeable:
        stage("merge", merged)
    if small.recipe.objective.generation_metrics:
        stage("generate", generated)
    return stages


def tiny_version(loaded: Loaded, folder: Path) -> Loaded:
    """The same recipe on a tiny random model of the same architecture, a few rows and two steps."""
    recipe = loaded.recipe
    name = _tiny_model(recipe, loaded.folder, folder)
    data = recipe.data
    labelled = recipe.objective.encoding in ("row_labels", "token_labels")
    small_data = data.model_copy(
        update={
            "train": data.train if labelled else _few(data.train),  # a few rows would lack labels of the others
            "eval": data.eval if is_share(data.eval) else _few(data.eval),
            "test": _few(data.test),
            "max_length": "auto",
            "max_dropped": "100%",
            "overlong": "truncate",  # a byte tokenizer makes rows longer, and one window of a text is enough
        }
    )
    batch = min(4, recipe.train.batch_size)
    has_eval = data.eval is not None
    train_section = recipe.train.model_copy(
        update={"duration": "2 steps", "batch_size": batch, "micro_batch_size": 2, "max_minutes": None, "warmup": 0}
    )
    evaluation = recipe.eval.model_copy(
        update={
            "every": 1,
            "max_rows": 4,
            "max_new_tokens": 4,
            "shots": [],
            "guard": [_few(s) for s in recipe.eval.guard],
        }
    )
    small = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"name": name, "revision": None, "init": "pretrained"}),
            "data": small_data,
            "train": train_section,
            "eval": evaluation if has_eval else recipe.eval,
            "checkpoint": recipe.checkpoint.model_copy(update={"every": 1}),
            "distributed": recipe.distributed.model_copy(update={"devices": 1}),
            "tracking": [],
            "output_dir": str(folder / "run"),
        }
    )
    return replace(loaded, recipe=small)


def _few(value: Any) -> Any:
    """The first rows of every source that names no range itself."""
    if value is None:
        return None
    few = [s if "[" in s.split else s.model_copy(update={"split": f"{s.split}{ROWS}"}) for s in sources(value)]
    return few if len(few) > 1 else few[0]


def _tiny_model(recipe: Recipe, recipe_folder: Path, folder: Path) -> str:
    """Name of a builtin model, or of a folder with a shrunken random model and the real tokenizer."""
    if recipe.model.name.startswith("builtin:"):
        return recipe.model.name
    base = find_base(recipe.model, recipe_folder)
    layers = max(LAYERS, recipe.learner.layers_named)
    try:
        config, tokenizer = load_config(base), load_tokenizer(base)
    except MachineError:
        family = _guess_family(base)
        if layers == LAYERS:
            return f"builtin:tiny-{family}"
        config, tokenizer = builtin.config(family), builtin.tokenizer()
    import torch

    config = shrunken(config, layers)
    torch.manual_seed(builtin.SEED)
    head = recipe.objective.head((), 0)
    if recipe.objective.encoding in ("row_labels", "token_labels"):
        head = Head("AutoModel")  # the run draws the head, and knows its labels
    model = auto_class(head, config).from_config(config)
    target = folder / "tiny"
    model.save_pretrained(target)
    tokenizer.save_pretrained(str(target))
    return str(target.absolute())


def _guess_family(base: Base) -> str:
    """A builtin family by words in the name; most others are built like Llama."""
    words = re.split(r"[^a-z0-9]+", base.name.lower())
    return next((family for word, family in _FAMILY_WORDS.items() if any(w.startswith(word) for w in words)), "llama")
