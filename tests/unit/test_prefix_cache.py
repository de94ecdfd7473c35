"""What rows share is computed once: the same numbers, fewer tokens; other models are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import recipe, start_model

from ftune.data.encode import Example
from ftune.data.pack import Cut
from ftune.device import build_accelerator
from ftune.evaluation import row_losses
from ftune.loop import training_module
from ftune.objectives.causal_lm import CausalLM
from ftune.plan import Runtime
from ftune.prefix_cache import PrefixCache, common_length

PAD = 256
RUNTIME = Runtime("cpu", "fp32", 1, 1, True)


def example(*parts: str, targets: str) -> Example:
    """The bytes of some texts, of which the last are to be predicted."""
    front, answer = "".join(parts).encode(), targets.encode()
    ids = np.frombuffer(front + answer, dtype=np.uint8).astype(np.int32)
    return Example(ids, np.arange(len(ids)) >= len(front), len(answer), "rows.jsonl", 1)


def questions(demonstrations: str) -> tuple[list[Example], list[int]]:
    """Five questions of uneven length with three options each, one of which begins another."""
    asked = ["2 + 2 =", "12 + 13 + 14 =", "?", "a much longer question, that is longer than the others =", "x y"]
    options = (" four", " fourteen", " a")
    found = [example(demonstrations, q, targets=o) for q in asked for o in options]
    return found, [number for number in range(len(asked)) for _ in options]


def plain(model: Any, examples: list[Example]) -> np.ndarray:
    """Every row whole, one at a time."""
    accelerator = build_accelerator(RUNTIME)
    module = accelerator.prepare_model(training_module(model, CausalLM(), None), evaluation_mode=True)
    found = row_losses(
        module, examples, objective=CausalLM(), accelerator=accelerator, pad_id=PAD, cut=Cut(1), draw=None,
        tick=lambda *_: None,
    )  # fmt: skip
    return found.nats


def cached(model: Any, examples: list[Example], groups: list[int], batch_size: int = 2) -> np.ndarray | None:
    cache = PrefixCache(model.eval(), build_accelerator(RUNTIME).autocast, PAD, batch_size)
    return cache.nats(examples, groups, lambda done: None)


def counted(model: Any) -> list[int]:
    """Grows by the number of tokens, pads among them, that each forward of `model` reads."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    return seen


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_equal_to_computing_each_row_whole(tmp_path: Path, family: str, batch_size: int) -> None:
    model = start_model(recipe(tmp_path, model=f"builtin:tiny-{family}"))
    examples, groups = questions("1 + 1 = two\n\n3 + 3 = six\n\n")
    expected = plain(model, examples)
    found = cached(model, examples, groups, batch_size)
    assert found is not None and np.ptp(expected) > 1
    assert np.abs(found - expected).max() < 1e-5
    alone = cached(model, examples, list(range(len(examples))), batch_size)
    assert alone is not None and np.abs(alone - expected).max() < 1e-5


def test_targets_in_several_places(tmp_path: Path) -> None:
    """Answers of a chat: what stands between them is read, and not scored."""
    model = start_model(recipe(tmp_path))
    rows = [example("shared ", text, targets=" yes and no") for text in ("a", "bcd")]
    for row in rows:
        row.is_target[-6:-3] = False
    found = cached(model, rows, [0, 1])
    assert found is not None and np.abs(found - plain(model, rows)).max() < 1e-5


def test_fewer_tokens_are_read(tmp_path: Path) -> None:
    model = start_model(recipe(tmp_path))
    shots = "question = answer\n\n" * 20
    examples, groups = questions(shots)
    seen = counted(model)
    plain(model, examples)
    whole = sum(seen)
    assert whole == sum(len(one.ids) for one in examples)
    seen.clear()
    cached(model, examples, groups)
    assert seen[0] >= len(shots), "the demonstrations, once"
    assert sum(seen) < whole / 8
    by_hand = len(shots) + 3 * 60 * 5
    assert sum(seen) < by_hand


def test_options_share_the_question(tmp_path: Path) -> None:
    model = start_model(recipe(tmp_path))
    question = "a long question about this and that, which all options share " * 4
    shared = [example("now: ", str(row), question, targets=option) for row in (1, 2) for option in ("a", "b", "c", "d")]
    seen = counted(model)
    assert cached(model, shared, [0, 0, 0, 0, 1, 1, 1, 1], 4) is not None
    grouped = sum(seen)
    seen.clear()
    assert cached(model, shared, list(range(8)), 4) is not None
    assert grouped < sum(seen) / 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_questions_that_share_nothing_share_with_their_options(tmp_path: Path, family: str) -> None:
    """Nearest demonstrations are others for each row."""
    model = start_model(recipe(tmp_path, model=f"builtin:tiny-{family}"))
    questions = ("a first question", "the second, longer question", "x question")
    examples = [example(question, targets=option) for question in questions for option in (" yes", " no", " yesterday")]
    groups = [row for row in range(3) for _ in range(3)]
    found = cached(model, examples, groups)
    assert found is not None and np.abs(found - plain(model, examples)).max() < 1e-5
    assert cached(model, examples, list(range(9))) is None, "nothing is shared"


def test_the_prefix_is_kept_between_calls(tmp_path: Path) -> None:
    model = start_model(recipe(tmp_path))
    examples, groups = questions("shown before " * 10)
    cache = PrefixCache(model.eval(), build_accelerator(RUNTIME).autocast, PAD, 4)
    first = cache.nats(examples, groups, lambda done: None)
    seen = counted(model)
    again = cache.nats(examples, groups, lambda done: None)
    assert first is not None and again is not None and (first == again).all()
    assert max(seen) < 500 and sum(seen) < 1000


def test_models_whose_cache_forgets_are_left_alone(tmp_path: Path) -> None:
    """gemma3's window of 32 slides over the demonstrations."""
    examples, groups = questions("1 + 1 = two\n\n" * 8)
    assert cached(start_model(recipe(tmp_path, model="builtin:tiny-gemma3")), examples, groups) is None


def test_soft_prompts_are_left_alone(tmp_path: Path) -> None:
    import torch

    from ftune import virtual

    model = start_model(recipe(tmp_path))
    virtual.add_soft_prompt(model, torch.ones(3, 64))
    examples, groups = questions("1 + 1 = two\n\n")
    assert cached(model, examples, groups) is None


def test_rows_that_share_nothing() -> None:
    assert common_length([[1, 2, 3], [2, 2, 3]]) == 0
    assert common_length([[1, 2, 3], [1, 2, 3]]) == 2, "each keeps a token of its own"
    assert common_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 1
    assert common_length([]) == 0
