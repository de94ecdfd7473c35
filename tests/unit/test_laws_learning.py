"""Laws 4 and 5: exactly what should move moves, and it learns what it is shown, to the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from bases import noisy, pretrained
from bench import bench
from laws import BLOCKS, CELLS, FAMILIES, Cell, Shared, plain_cells, recipe, train, trained


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_4_all_that_learns_moved_and_nothing_else(shared: Shared, cell: Cell) -> None:
    import torch

    run = trained(shared, cell)
    still = {name for name in run.before if torch.equal(run.before[name], run.after[name])}
    assert still == run.before.keys() - run.learning


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_4_an_evaluation_between_two_steps_leaves_gradients_bit_equal(
    tmp_path: Path, shared: Shared, method: str, family: str
) -> None:
    import torch

    found = []
    for evaluates in (False, True):
        loaded = noisy(tmp_path / str(evaluates), shared, method, family)
        work = bench(loaded)
        steps = work.steps()
        first = next(steps)
        if evaluates:
            losses = work.row_losses()
            assert abs(float(losses.nats.sum() / losses.targets.sum())) > 0
        second = next(steps)
        found.append((first.loss, second.loss, work.gradients()))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(found[0][2][name], gradient) for name, gradient in found[1][2].items())
    block = {"name": method, **BLOCKS.get(method, {})}
    quiet = bench(recipe(tmp_path / "quiet", model=f"builtin:tiny-{family}", method=block)).steps()
    next(quiet)  # LoRA's B is zero, so that dropout shows only after the first step
    assert next(quiet).loss != found[0][1], "dropout was not on, so the test could not fail"


FACTS = [
    {"prompt": f"What does {name} like?", "completion": answer}
    for name, answer in {
        "Ann": "tea", "Bob": "the sea", "Cid": "chess and long walks", "Dee": "7 + 8 = 15", "Eve": "Nothing.",
        "Fay": "birds", "Gus": "bread", "Hal": "old maps of cold places",
    }.items()
]  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(
    tmp_path: Path, shared: Shared, method: str, family: str
) -> None:
    """With dropout on, whose masks must be the same the second time."""
    found = []
    for on in (False, True):
        section = {"activation_checkpointing": on}
        work = bench(noisy(tmp_path / str(on), shared, method, family, train=section))
        assert work.plan.activation_checkpointing is on
        steps = work.steps()
        next(steps), next(steps)
        found.append(work.gradients())
    assert found[0].keys() == found[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert (found[1][name] - gradient).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize("cell", plain_cells(), ids=str)
def test_law_5_eight_rows_are_fitted_and_answers_end_by_themselves(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    import torch

    from ftune.prepare import prepare
    from ftune.scoring import evaluate
    from ftune.target import open_target

    rate, steps = {"full": (3e-3, 40)}.get(cell.method, (2e-2, 60))
    loaded = recipe(
        tmp_path,
        rows=FACTS,
        model=str(pretrained(shared, cell.family)),
        method=dict(cell.block),
        data={"template": None},
        train={"duration": f"{steps} steps", "batch_size": 8, "micro_batch_size": 8, "learning_rate": rate,
               "schedule": "cosine"},
        checkpoint={"every": steps},
    )  # fmt: skip
    train(loaded)
    target = open_target(tmp_path / "run")
    examples = prepare(loaded, lambda what, done, total: None).dataset.train.examples
    assert len(examples) == 8
    for example in examples:
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            best = target.model(input_ids=ids[None]).logits[0].argmax(dim=-1)
        wanted = torch.from_numpy(example.is_target)[1:]
        assert torch.equal(best[:-1][wanted], ids[1:][wanted]), example.place

    result = evaluate(
        tmp_path / "run", split="train", data_file=None, metrics=["exact_match"], max_rows=None, batch_size=3,
        overrides=(), tick=lambda what, done, total: None,
    )  # fmt: skip
    assert {p.prompt: p.received for p in result.predictions} == {p.prompt: p.expected for p in result.predictions}
    assert result.metrics["exact_match"].value == 1.0
    for row in result.predictions:
        ids = torch.tensor([target.renderer.prompt_ids(row.prompt)])
        eos = list(target.renderer.stop_ids)
        made = target.model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=eos, pad_token_id=0)
        answer = made[0, ids.shape[1] :].tolist()
        assert len(answer) < 64 and answer[-1] in eos and not set(answer[:-1]) & set(eos)
    assert eos == [258, 262], "EOS and the template's end of a turn"
    if loaded.recipe.method.standalone:
        assert target.model.generation_config.eos_token_id == eos
