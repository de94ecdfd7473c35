"""The laws on every legal cell of method x objective x family; one model each here, all in `make e2e`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import matrix
import pytest
from bench import bench
from cuts import interrupt
from laws import Shared, events, parameters, train
from matrix import HEAD, LEARNING, Cell

from ftune import methods
from ftune.errors import RecipeError
from ftune.manifest import sha256_of
from ftune.merging import merge
from ftune.target import open_target

ALL = matrix.cells()
FAST = {str(cell) for cell in matrix.fast_cells()}
EXACT = {"qlora": 1e-3}
"""Largest difference of merged logits, relative to the largest; 1e-5 for the others."""

every_cell = pytest.mark.parametrize(
    "cell", [pytest.param(c, marks=() if str(c) in FAST else pytest.mark.e2e, id=str(c)) for c in ALL]
)


def learner(cell: Cell) -> Any:
    return methods.load(cell.method)(**cell.block()).learner


def trained(shared: Shared, cell: Cell) -> Path:
    """Five steps; what the model was before and after, and what it said in memory."""
    from ftune import run as runs

    def fill(folder: Path) -> None:
        from safetensors.torch import save_file

        train_part = runs._train

        def record(run: Any) -> None:
            save_file(parameters(run.model), folder / "before.safetensors")
            learning = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
            (folder / "learning.json").write_text(json.dumps(learning))
            train_part(run)
            save_file(parameters(run.model), folder / "after.safetensors")
            save_file({"outputs": matrix.outputs(run.model, cell).contiguous()}, folder / "outputs.safetensors")

        with mock.patch("ftune.run._train", record):
            train(cell.recipe(folder))

    return shared.make(f"matrix-{cell}", fill)


def test_the_matrix_is_as_large_as_it_is_said_to_be(record_property: Any) -> None:
    """Every combination is a cell or has a reason; the count is printed, and grows only on purpose."""
    reasons = matrix.illegal_cells()
    assert all(why.strip() for *_, why in reasons)
    counts = {name: sum(cell.method == name for cell in ALL) for name in methods.names()}
    print(f"{len(ALL)} cells, {len(FAST)} of them in make test; {len(reasons)} combinations are refused: {counts}")
    assert all(counts.values())
    assert len(FAST) < len(ALL)


@every_cell
def test_law_2_what_learns(shared: Shared, cell: Cell) -> None:
    from safetensors.torch import load_file

    folder = trained(shared, cell)
    learning = set(json.loads((folder / "learning.json").read_text()))
    before = load_file(folder / "before.safetensors")
    heads = {name for name in before if re.fullmatch(HEAD, name)}
    fresh = cell.objective in ("sequence_classification", "token_classification")
    assert matrix.without_head(learning), "something besides the head learns" if cell.method != "feature_based" else ""
    pattern = re.compile(LEARNING[cell.method])
    assert all(pattern.fullmatch(name) or name in heads for name in learning), sorted(learning)[:5]
    if fresh and cell.method != "feature_based":
        assert learning & heads, "a fresh head learns"
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert plan["trainable_parameters"]["value"] == sum(before[name].numel() for name in learning)
    if not fresh and (shapes_count := _closed_form(cell)) is not None:
        assert plan["trainable_parameters"]["value"] == shapes_count


def _closed_form(cell: Cell) -> int | None:
    import torch

    from ftune import builtin, objectives
    from ftune.model import auto_class

    config = builtin.config(cell.model)
    head = objectives.load(cell.objective)().head((), 256)
    method = learner(cell)
    with torch.device("meta"):
        model = auto_class(head, config).from_config(config)
    shapes = method.target_shapes(model)
    return method.trainable_parameters(shapes) if shapes else None


@every_cell
def test_law_4_what_learns_moved_and_nothing_else(shared: Shared, cell: Cell) -> None:
    import torch
    from safetensors.torch import load_file

    folder = trained(shared, cell)
    before, after = (load_file(folder / f"{name}.safetensors") for name in ("before", "after"))
    learning = set(json.loads((folder / "learning.json").read_text()))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= learning
    still = learning - moved
    assert all(STILL.search(name) for name in still), sorted(still)
    assert len(moved) >= 1


STILL = re.compile(r"(k_proj|key|k)\.bias|position_embeddings|embed_positions|wpe|token_type|pooler|relative_attention")
"""Weights that no loss depends on (a bias of keys, poolers that no head reads) or whose rows the short texts do not
reach far enough to be told from rounding."""


@every_cell
def test_law_4_an_evaluation_leaves_gradients_as_they_were(tmp_path: Path, cell: Cell) -> None:
    import torch

    work = bench(cell.recipe(tmp_path))
    next(work.steps())
    before = work.gradients()
    next(work.steps())
    work.row_losses()
    after = work.gradients()
    fresh = bench(cell.recipe(tmp_path / "again"))
    next(fresh.steps())
    fresh.row_losses()
    next(fresh.steps())
    again = fresh.gradients()
    assert [name for name in after if not torch.equal(after[name], again[name])] == []
    assert before.keys() == after.keys()


@every_cell
def test_law_6_run_and_checkpoint_open_as_what_was_trained(shared: Shared, cell: Cell) -> None:
    import torch
    from safetensors.torch import load_file

    folder = trained(shared, cell)
    expected = load_file(folder / "outputs.safetensors")["outputs"]
    for path in (folder / "run", folder / "run" / "checkpoints" / "step_000005"):
        found = matrix.outputs(open_target(path).model, cell)
        assert torch.equal(found, expected), (path.name, float((found - expected).abs().max()))


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(c, marks=() if str(c) in FAST else pytest.mark.e2e, id=str(c)) for c in ALL
        if learner(c).mergeable
    ],
)  # fmt: skip
def test_law_7_merging_keeps_the_function_and_is_repeatable(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    run = trained(shared, cell) / "run"
    once = merge(run, tmp_path / "once", dtype="fp32", tick=lambda what: None)
    twice = merge(run, tmp_path / "twice", dtype="fp32", tick=lambda what: None)
    assert once.sha256 == twice.sha256 and once.token_agreement == 1.0
    from safetensors.torch import load_file

    expected = load_file(run.parent / "outputs.safetensors")["outputs"]
    from transformers import AutoConfig

    from ftune.model import auto_class
    from ftune.start import SIDECAR, read_record

    record = read_record(run / "model" / SIDECAR)
    head = record.recipe.objective.head(record.labels, 256)
    plain, report = auto_class(head, AutoConfig.from_pretrained(tmp_path / "once")).from_pretrained(
        tmp_path / "once", output_loading_info=True
    )
    assert not any(report.values()), report
    found = matrix.outputs(plain, cell)
    limit = EXACT.get(cell.method, 1e-5) * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= limit


def final_weights(run: Path) -> list[str]:
    folder = run / "checkpoints" / "step_000005"
    return [sha256_of(folder / name) for name in ("weights.safetensors", "optimizer.safetensors")]


@every_cell
def test_law_8_cut_and_resumed_equals_uninterrupted(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    whole = trained(shared, cell) / "run"
    loaded = cell.recipe(tmp_path)
    for step in (1, 3):
        interrupt(loaded, step)
    train(loaded)
    assert final_weights(tmp_path / "run") == final_weights(whole)
    losses = [[event["loss"] for event in events(run, "step")] for run in (tmp_path / "run", whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


@every_cell
def test_law_9_and_12_batches_change_neither_gradients_nor_scores(tmp_path: Path, cell: Cell) -> None:
    """Decoders may be padded on either side; encoders' heads look at the first token, so pads stand on the right."""
    import numpy as np

    found = {}
    for micro in (1, 2, 4):
        work = bench(cell.recipe(tmp_path / str(micro), train={"micro_batch_size": micro}))
        next(work.steps())
        found[micro] = work.gradients()
        if micro == 1:
            single = work.row_losses(batch_size=1).nats
            sides = (False, True) if matrix.MODELS[cell.model] == "decoder" else (False,)
            for batch_size, pad_left in [(3, False), (11, False), *((4, side) for side in sides)]:
                nats = work.row_losses(batch_size=batch_size, pad_left=pad_left).nats
                assert np.allclose(nats, single, rtol=2e-5, atol=2e-5), (batch_size, pad_left)
    largest = max(float(gradient.abs().max()) for gradient in found[1].values())
    assert largest > 0
    for micro in (2, 4):
        worst = max(float((found[micro][name] - found[1][name]).abs().max()) for name in found[1])
        assert worst <= 2e-6 * max(largest, 1.0), (micro, worst, largest)


@every_cell
def test_law_11_cadences_never_change_the_weights(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    train(cell.recipe(tmp_path, eval={"every": 2}, checkpoint={"every": 1, "keep": 9, "best": None}))
    assert final_weights(tmp_path / "run") == final_weights(trained(shared, cell) / "run")


@pytest.mark.parametrize(
    ("method", "objective", "model", "why"), matrix.illegal_cells(), ids=lambda value: str(value)[:30]
)
def test_law_14_an_illegal_cell_is_one_clear_error(
    tmp_path: Path, method: str, objective: str, model: str, why: str
) -> None:
    from ftune.prepare import prepare

    with pytest.raises(RecipeError) as caught:
        prepare(Cell(method, objective, model).recipe(tmp_path), lambda *_: None)
    assert len(caught.value.problems) == 1, caught.value
    text = str(caught.value)
    assert "works with" in text or "These do" in text or "transformers has no" in text or "Expected one of" in text


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(c, marks=() if str(c) in FAST else pytest.mark.e2e, id=str(c)) for c in ALL
        if c.objective in ("causal_lm", "seq2seq_lm")
    ],
)  # fmt: skip
def test_generation_in_batches_equals_one_by_one(shared: Shared, cell: Cell) -> None:
    from ftune.generation import generate

    target = open_target(trained(shared, cell) / "run")
    prompts = ["a", "one two three", "12 + 30 =", "x" * 40]
    answers = {
        size: generate(
            target.model, prompts, target.renderer, pad_id=target.pad_id, max_new_tokens=8, batch_size=size,
            tick=lambda done, total: None,
        )
        for size in (1, 4)
    }  # fmt: skip
    assert answers[1] == answers[4]
    assert len(answers[1]) == 4 and any(answers[1])


def test_law_7_qlora_on_the_original_base(tmp_path: Path, shared: Shared) -> None:
    """Another function than the trained one, by what quantising took away; said, and exact in itself."""
    from ftune.errors import RecipeError

    run = trained(shared, Cell("qlora", "causal_lm", "llama")) / "run"
    usual = merge(run, tmp_path / "a", dtype="fp32", tick=lambda what: None)
    assert usual.base_weights == "dequantized" and usual.drift == usual.max_difference <= 1e-4
    other = merge(run, tmp_path / "b", dtype="fp32", base="original", tick=lambda what: None)
    assert other.base_weights == "original" and other.max_difference <= 1e-4 < 1e-2 < other.drift
    plain = trained(shared, Cell("lora", "causal_lm", "llama")) / "run"
    with pytest.raises(RecipeError, match="is not quantised"):
        merge(plain, tmp_path / "c", dtype=None, base="original", tick=lambda what: None)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_eva_looks_at_the_rows_of_the_run_and_is_resumed_exactly(tmp_path: Path, model: str) -> None:
    """A starts where inputs vary: not where `default` starts, the same each time, and cut runs go on with it."""
    import torch

    objective = "causal_lm" if model == "llama" else "sequence_classification"
    cell = Cell("lora", objective, model)

    def weights(folder: Path, init: str, stops: tuple[int, ...] = ()) -> dict[str, Any]:
        from safetensors.torch import load_file

        loaded = cell.recipe(folder, fields={"init": init})
        for step in stops:
            interrupt(loaded, step)
        train(loaded)
        return load_file(folder / "run" / "checkpoints" / "step_000005" / "weights.safetensors")

    eva, again = weights(tmp_path / "a", "eva"), weights(tmp_path / "b", "eva", (1, 3))
    assert all(torch.equal(eva[name], again[name]) for name in eva)
    plain = weights(tmp_path / "c", "default")
    assert plain.keys() == eva.keys()
    largest = max(float((plain[name] - eva[name]).abs().max()) for name in eva if "lora_A" in name)
    assert largest > 0.05


TWO = ["full-seq2seq_lm-t5", "lora-sequence_classification-bert", "qlora-causal_lm-llama", "adapter-masked_lm-bert",
       "prefix-causal_lm-qwen3", "prompt-causal_lm-gpt2", "task-token_classification-bert",
       "feature_based-sequence_classification-llama", "ia3-causal_lm-llama", "domain-causal_lm-gemma3"]  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize("cell", [cell for cell in ALL if str(cell) in TWO], ids=str)
def test_law_9_two_processes_learn_what_one_does(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    """Through the command line: the same losses, gradient norms and scores, step by step."""
    from laws import ftune

    loaded = cell.recipe(tmp_path)
    done = ftune("train", loaded.path, "--devices", 2, "--quiet", seconds=240)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = trained(shared, cell) / "run"
    for kind, keys in (("step", ("loss", "grad_norm")), ("eval", ("loss",))):
        ours, theirs = (events(run, kind) for run in (tmp_path / "run", whole))
        assert len(ours) == len(theirs) > 0
        for key in keys:
            assert [e[key] for e in ours] == pytest.approx([e[key] for e in theirs], rel=1e-4), (kind, key)
    reports = [json.loads((run / "report.json").read_text()) for run in (tmp_path / "run", whole)]
    assert reports[0]["metrics"]["eval"].keys() == reports[1]["metrics"]["eval"].keys()


def test_a_run_that_does_not_merge_is_no_start(tmp_path: Path, shared: Shared) -> None:
    from ftune.errors import NotMergeable
    from ftune.prepare import prepare

    run = trained(shared, Cell("adapter", "causal_lm", "llama")) / "run"
    loaded = Cell("lora", "causal_lm", "llama").recipe(tmp_path, model=str(run))
    with pytest.raises(NotMergeable, match="method adapter cannot be merged into its base"):
        prepare(loaded, lambda *_: None)


def test_a_classifier_is_not_asked_to_write(shared: Shared) -> None:
    from ftune.answering import answer

    run = trained(shared, Cell("lora", "sequence_classification", "llama")) / "run"
    with pytest.raises(RecipeError, match="sequence_classification labels or guesses, it writes no answers"):
        answer(run, ["a"], max_new_tokens=2, sampling=None, seed=0, raw=False, overrides=(), tick=lambda *_: None)
