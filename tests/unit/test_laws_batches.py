"""Laws 9 and 12: how rows are cut into batches and dealt to processes changes neither gradients nor scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import bench, two_steps
from laws import BLOCKS, DEEP, FAMILIES, ROWS, Shared, events, ftune, python, recipe, train

from ftune.data.order import window
from ftune.load import Loaded

METHODS = DEEP
CUTS = [(1, 8), (2, 4), (3, 3), (8, 1)]
"""(micro-batch, accumulation) of eight rows on one process."""
RANKS = str(Path(__file__).parents[1] / "ranks.py")


def cut(folder: Path, method: str, family: str, rows: int, micro: int, **sections: Any) -> Loaded:
    """Two steps of at most eight rows, of which there are `rows`; SGD, which shows a gradient as it is."""
    return recipe(
        folder,
        rows=ROWS[:rows],
        model=f"builtin:tiny-{family}",
        method={"name": method, **BLOCKS.get(method, {})},
        **{
            "train": {"duration": "2 steps", "batch_size": 8, "micro_batch_size": micro, "optimizer": "sgd",
                      "learning_rate": 1e-2, "max_grad_norm": None},
            "checkpoint": {"every": 1, "keep": 2},
            "data": {"packing": False},
            **sections,
        },
    )  # fmt: skip


def by_hand(folder: Path, method: str, family: str) -> dict[str, Any]:
    """The first gradient and loss of seven rows, one at a time, without padding, ftune's loop and ftune's loss."""
    import torch

    work = bench(cut(folder, method, family, 7, 1))
    examples = work.prepared.dataset.train.examples
    assert len({len(example.ids) for example in examples}) > 3
    targets = sum(int(example.is_target.sum()) for example in examples)
    total = 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids).long()
        logits = work.model(input_ids=ids[None]).logits[0, :-1]
        chosen = logits.log_softmax(dim=-1)[torch.arange(len(ids) - 1), ids[1:]]
        loss = -chosen[torch.from_numpy(example.is_target)[1:]].sum() / targets
        loss.backward()
        total += float(loss.detach())
    return {"losses": torch.tensor([total]), **{f"first/{name}": g for name, g in work.gradients().items()}}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Gradients within 1e-6 of the largest, losses within 1e-6 of themselves."""
    import torch

    for step in ("first/", "second/"):
        names = [name for name in wanted if name.startswith(step)]
        if not names:
            continue
        largest = max(float(wanted[name].abs().max()) for name in names)
        assert largest > 1e-3
        worst = max(float((found[name] - wanted[name]).abs().max()) for name in names)
        assert worst <= 1e-6 * largest, (step, worst, largest)
    count = len(wanted["losses"])
    assert torch.allclose(found["losses"][:count].double(), wanted["losses"].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_law_9_gradients_do_not_depend_on_the_cut(tmp_path: Path, method: str, family: str) -> None:
    for rows in (7, 10):  # of ten, the first step takes eight and the second the two that are left
        cuts = {micro: two_steps(cut(tmp_path / f"{rows}-{micro}", method, family, rows, micro)) for micro, _ in CUTS}
        for micro, accumulation in CUTS:
            assert cuts[micro]["cut"].tolist() == [micro, accumulation, 1]
            assert cuts[micro]["rows"].tolist() == ([7, 7] if rows == 7 else [8, 2])
            assert_same(cuts[micro], cuts[8])
        if rows == 7:
            assert_same(cuts[8], by_hand(tmp_path, method, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_law_9_and_12_of_forwards_that_are_cut_by_tokens(tmp_path: Path, family: str) -> None:
    """Uneven forwards, from one row to many: the gradient and the scores are those of one row at a time."""
    import numpy as np
    import torch

    alone = bench(cut(tmp_path / "alone", "full", family, 10, 1))
    uneven = bench(cut(tmp_path / "uneven", "full", family, 10, 1))
    uneven.plan = uneven.plan.model_copy(update={"micro_batch_tokens": 60, "forward_overhead": 4})
    examples = uneven.prepared.dataset.train.examples
    first = window(examples, 0, batch_size=8, cut=uneven.plan.cut, seed=uneven.plan.seed)
    assert len({len(batch) for batch in first.micro_batches}) > 1
    one, other = next(alone.steps()), next(uneven.steps())
    assert one.rows == other.rows == 8
    wanted, found = alone.gradients(), uneven.gradients()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) <= 1e-6 * largest
    assert abs(one.loss - other.loss) <= 1e-6 * one.loss
    for (name, weight), (_, same) in zip(alone.model.named_parameters(), uneven.model.named_parameters(), strict=True):
        assert torch.allclose(weight, same, rtol=0, atol=1e-6), name
    single, together = alone.row_losses(1).nats, alone.row_losses(cut=uneven.plan.padded_cut).nats
    assert np.allclose(single, together, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_law_9_three_rows_in_batches_of_four_make_one_step_an_epoch(tmp_path: Path, method: str) -> None:
    whole = {"duration": "3 epochs", "batch_size": 4, "optimizer": "sgd", "learning_rate": 1e-2, "max_grad_norm": None}
    weights = []
    for micro in (1, 4):
        loaded = cut(tmp_path, method, "llama", 3, 1, train={**whole, "micro_batch_size": micro})
        work = bench(loaded)
        assert work.plan.steps == 3 and work.plan.steps_per_epoch == 1
        results = list(work.steps())
        assert [result.rows for result in results] == [3, 3, 3]
        weights.append(work.gradients())
    largest = max(float(gradient.abs().max()) for gradient in weights[0].values())
    assert all((weights[0][name] - weights[1][name]).abs().max() <= 2e-6 * largest for name in weights[0])


def in_two_processes(jobs: list[dict[str, str]]) -> None:
    """Let `ranks.py` do the jobs."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"ACCELERATE_USE_CPU": "true"}
    done = python(*torchrun, RANKS, json.dumps(jobs), environment=environment, seconds=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_law_9_and_12_two_processes(tmp_path: Path) -> None:
    """(4, 1, 2) on all methods and families. Two rows that are left make one micro-batch: the second process has none;
    seven rows in threes: the first has two and the second one.
    """
    from safetensors.torch import load_file

    jobs, alone = [], []
    for method in METHODS:
        for family in FAMILIES:
            for rows, micro in ((10, 4), (7, 3)):
                loaded = cut(tmp_path / f"{method}-{family}-{rows}-{micro}", method, family, rows, micro)
                jobs.append({"recipe": str(loaded.path), "out": str(loaded.folder / "out.safetensors")})
                alone.append(two_steps(loaded))
    in_two_processes(jobs)
    for job, wanted in zip(jobs, alone, strict=True):
        found = load_file(job["out"])
        assert found["cut"].tolist() == ([4, 1, 2] if found["rows"].tolist() == [8, 2] else [3, 2, 2])
        assert_same(found, wanted)
        assert (found["nats"] - wanted["nats"]).abs().max() <= 1e-6 * wanted["nats"].abs().max()


def test_processes_agree_on_when_to_save_and_when_to_end(tmp_path: Path) -> None:
    """A signal or a clock that only one of them sees must not leave the other waiting."""
    jobs, runs = [], []
    for what in ("save", "clock"):
        section = {"duration": "4 steps", "batch_size": 8, "micro_batch_size": 3, "max_minutes": 1000.0}
        loaded = cut(tmp_path / what, "lora", "llama", 7, 3, train=section, checkpoint={"every": 4, "keep": 9})
        jobs.append({"recipe": str(loaded.path), "second": what})
        runs.append(loaded.output_dir)
    in_two_processes(jobs)
    saved = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in runs]
    assert saved == [["step_000001", "step_000004"], ["step_000002"]]
    assert [json.loads((run / "report.json").read_text())["finished"] for run in runs] == ["complete", "max_minutes"]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "lora" else pytest.mark.e2e) for name in METHODS]
)
def test_law_9_ftune_train_devices_2(tmp_path: Path, method: str) -> None:
    """The command itself; its run then goes on with one process as if it had been one all the time."""
    from safetensors.torch import load_file

    sections = {"data": {"eval": "rows.jsonl"}, "eval": {"every": 1}}
    loaded = cut(tmp_path / "two", method, "llama", 7, 3, **sections)
    done = ftune("train", loaded.path, "--devices", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = json.loads((tmp_path / "two" / "run" / "plan.json").read_text())
    assert [plan[key]["value"] for key in ("num_processes", "micro_batch_size", "packing")] == [2, 3, True]
    lone = cut(tmp_path / "one", method, "llama", 7, 3, **sections)
    train(lone)
    gradients = [
        {key.removesuffix("/momentum_buffer"): tensor for key, tensor in load_file(path).items()}
        for path in (tmp_path / name / "run/checkpoints/step_000001/optimizer.safetensors" for name in ("two", "one"))
    ]
    largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
    assert max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[1]) <= 1e-6 * largest
    for kind in ("step", "eval"):
        two, one = ([event["loss"] for event in events(tmp_path / name / "run", kind)] for name in ("two", "one"))
        assert two == pytest.approx(one, rel=1e-6, abs=0)

    longer = {"duration": "4 steps", "batch_size": 8, "micro_batch_size": 3, "optimizer": "sgd",
              "learning_rate": 1e-2, "max_grad_norm": None}  # fmt: skip
    final = []
    for name in ("two", "one"):
        train(cut(tmp_path / name, method, "llama", 7, 3, train=longer, **sections))
        final.append(load_file(tmp_path / name / "run/checkpoints/step_000004/weights.safetensors"))
    assert max(float((final[0][name] - final[1][name]).abs().max()) for name in final[1]) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_law_12_scores_do_not_depend_on_batches_or_padding(tmp_path: Path, family: str) -> None:
    import numpy as np
    import torch

    work = bench(cut(tmp_path, "full", family, 11, 4))
    wanted = []
    for example in work.prepared.dataset.train.examples:  # a plain loop, one row at a time
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            logits = work.model.eval()(input_ids=ids[None]).logits[0].double()
        pairs = [(t - 1, int(ids[t])) for t in range(1, len(ids)) if example.is_target[t]]
        wanted.append(sum(float(torch.logsumexp(logits[t], 0) - logits[t, token]) for t, token in pairs))
    for batch_size in (1, 3, 7):
        for pad_left in (False, True):
            found = work.row_losses(batch_size=batch_size, pad_left=pad_left)
            assert np.allclose(found.nats, wanted, rtol=1e-6, atol=0), (batch_size, pad_left)
            counts = [int(example.is_target.sum()) for example in work.prepared.dataset.train.examples]
            assert found.targets.tolist() == counts


@pytest.mark.parametrize("method", METHODS)
def test_law_12_of_trained_runs(tmp_path: Path, shared: Shared, method: str) -> None:
    """The public function, on a trained run: same metrics at batch size 1, 3 and 7."""
    from laws import Cell, trained

    from ftune.scoring import evaluate

    run = trained(shared, Cell(method, "llama", {"name": method, **BLOCKS.get(method, {})})).folder
    values = []
    for batch_size in (1, 3, 7):
        result = evaluate(
            run, split="eval", data_file=None, metrics=None, max_rows=None, batch_size=batch_size, overrides=(),
            tick=lambda what, done, total: None,
        )  # fmt: skip
        values.append([score.value for score in result.metrics.values()])
    report = json.loads((run / "report.json").read_text())
    values.append([score["value"] for score in report["metrics"]["eval"].values()])
    assert values[1] == pytest.approx(values[0], rel=1e-6, abs=0)
    assert values[2] == values[3] or values[2] == pytest.approx(values[3], rel=1e-6, abs=0)
    assert values[0] == pytest.approx(values[3], rel=1e-6, abs=0)
