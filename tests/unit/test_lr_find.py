"""`ftune lr-find`: what it tries, what it suggests, and that nothing is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from laws import recipe
from typer.testing import CliRunner

from ftune import lr_find as module
from ftune.cli import app
from ftune.errors import DivergedError, Interrupted, RecipeError
from ftune.listener import Listener
from ftune.lr_find import Finding, Point, lr_find, rates, suggest
from ftune.methods.lora import Lora
from ftune.model import frozen_fingerprint, trainable_state
from ftune.signals import StopFlag

LORA = {"name": "lora", "rank": 4, "alpha": 8}


def find(folder: Path, **options: Any) -> Finding:
    sections = {"method": LORA, "data": {"eval": "rows.jsonl"}}
    loaded = recipe(folder, **{**sections, **options.pop("sections", {})})
    settings = {"first": 1e-6, "last": 10.0, "steps": 12, "grid": 0, "budget": "3 steps", **options}
    stop = settings.pop("stop", StopFlag())
    return lr_find(loaded, listener=settings.pop("listener", Listener()), stop=stop, **settings)


def points(*losses: float) -> list[Point]:
    return [Point(i, 10.0 ** (i - 6), loss, loss) for i, loss in enumerate(losses, start=1)]


def test_rates_rise_by_equal_factors() -> None:
    assert rates(1e-7, 10.0, 9) == pytest.approx([10.0**k for k in range(-7, 2)])


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_smallest_loss() -> None:
    assert suggest(points(3.0, 2.9, 2.0, 1.5, 4.0)) == 1e-3
    assert suggest(points(1.0, 2.0, 3.0)) is None, "the loss never fell"
    assert suggest([Point(1, 1e-3, 2.0, 2.0), Point(2, 0.0123456, 1.0, 1.0)]) == 0.0012


def test_the_loss_is_smoothed_without_bias(tmp_path: Path) -> None:
    found = find(tmp_path)
    mean = 0.0
    for i, point in enumerate(found.points, start=1):
        mean = 0.9 * mean + 0.1 * point.loss
        assert point.smoothed == pytest.approx(mean / (1 - 0.9**i), rel=1e-9)
        assert point.learning_rate == pytest.approx(1e-6 * 1e7 ** ((i - 1) / 11))
    assert found.points[0].smoothed == pytest.approx(found.points[0].loss)


def test_it_makes_the_first_steps_of_training_on_the_same_rows(tmp_path: Path) -> None:
    """The first loss is that of the untouched model on the first batch, whatever the rate."""
    from bench import bench

    work = bench(recipe(tmp_path / "other", method=LORA, data={"eval": "rows.jsonl"}))
    assert next(work.steps()).loss == find(tmp_path, steps=2).points[0].loss


def test_the_test_ends_where_the_loss_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIVERGED", 1.2)
    found = find(tmp_path, last=1e4, steps=20, sections={"method": "full"})
    assert found.diverged and len(found.points) < 20
    smallest = min(point.smoothed for point in found.points)
    assert found.points[-1].smoothed > 1.2 * smallest >= found.points[-2].smoothed


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.train_steps

    def breaks(*arguments: Any, **options: Any) -> Any:
        for result in real(*arguments, **options):
            if result.step == 4:
                raise DivergedError("not finite")
            yield result

    monkeypatch.setattr(module, "train_steps", breaks)
    found = find(tmp_path, grid=1, budget="6 steps")
    assert found.diverged and len(found.points) == 3
    assert {trial.eval_loss for trial in found.trials} <= {None}
    assert not any(trial.is_best for trial in found.trials)


def test_nothing_is_written_and_frozen_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = module.open_trial

    def opened(*arguments: Any) -> Any:
        run = real(*arguments)
        seen.update(run=run, frozen=frozen_fingerprint(run.model))
        return run

    monkeypatch.setattr(module, "open_trial", opened)
    sections = {"tracking": ["tensorboard"], "train": {"batch_size": 4, "micro_batch_size": 2, "compile": True}}
    find(tmp_path, grid=2, sections=sections | {"distributed": {"devices": 2}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"]
    assert frozen_fingerprint(seen["run"].model) == seen["frozen"]
    assert not seen["run"].plan.compile and seen["run"].plan.num_processes == 1


def test_a_grid_of_short_runs_begins_at_the_same_weights_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, Any]] = []
    real = module.build_optimizer

    def built(plan: Any, method: Any, model: Any) -> Any:
        starts.append({name: tensor.clone() for name, tensor in trainable_state(model).items()})
        return real(plan, method, model)

    monkeypatch.setattr(module, "build_optimizer", built)
    found = find(tmp_path, grid=3, budget="4 steps")
    assert found.suggestion is not None and [trial.steps for trial in found.trials] == [4] * 4
    assert all((starts[0][name] == start[name]).all() for start in starts for name in start)
    ours = [trial.learning_rate for trial in found.trials if not trial.is_default]
    assert ours == pytest.approx([found.suggestion * 10 ** (k / 2) for k in (-1, 0, 1)], rel=0.05)
    (default,) = [trial for trial in found.trials if trial.is_default]
    assert default.learning_rate == found.default == Lora.default_learning_rate(64)
    best = min(found.trials, key=lambda trial: trial.eval_loss or math.inf)
    assert [trial.is_best for trial in found.trials] == [trial is best for trial in found.trials]


def test_a_trial_is_a_run_of_the_recipe_at_that_rate(tmp_path: Path) -> None:
    """Same schedule, warm-up and order as `ftune train` would have."""
    from laws import train

    train_section = {"schedule": "cosine", "warmup": 1, "learning_rate": "auto"}
    found = find(tmp_path, grid=1, budget="5 steps", sections={"train": train_section})
    rate = next(trial.learning_rate for trial in found.trials if not trial.is_default)
    section = {**train_section, "learning_rate": rate, "duration": "5 steps"}
    evaluation = {"every": 5, "metrics": ["loss"]}
    report = train(
        recipe(tmp_path / "run", method=LORA, data={"eval": "rows.jsonl"}, train=section, eval=evaluation,
               checkpoint={"best": None})
    )  # fmt: skip
    trial = next(trial for trial in found.trials if trial.learning_rate == rate)
    assert trial.eval_loss == pytest.approx(report["metrics"]["eval"]["loss"]["value"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 1.0, "last": 0.1}, "--from, --to expected 0 < --from < --to, received 1 and 0.1."),
        ({"first": 0.0}, "--from, --to expected 0 < --from < --to, received 0 and 10."),
        ({"grid": 2, "sections": {"data": {"eval": None}}}, "--grid data.eval: the runs of a grid are compared"),
        ({"budget": "a while"}, "--budget expected '3 epochs', '500 steps' or '2_000_000 tokens', received 'a while'."),
    ],
)
def test_what_cannot_be_tried_is_one_clear_error(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find(tmp_path, **options)
    assert str(caught.value).startswith(message)


def test_a_head_that_is_fitted_at_once_has_no_rate(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(8)]
    sections = {
        "model": "builtin:tiny-bert", "method": {"name": "feature_based", "head": "logistic"},
        "objective": "sequence_classification", "data": {"template": None}, "train": None,
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {key: value for key, value in sections.items() if value is not None}
    (tmp_path / "r.yaml").write_text(json.dumps({**values, "data": {"train": "rows.jsonl"}}))
    told = CliRunner().invoke(app, ["lr-find", str(tmp_path / "r.yaml")])
    assert told.exit_code == 2
    assert "feature_based is fitted to all rows at once by its own solver, and has no learning rate" in told.stderr


def test_an_interruption_ends_it(tmp_path: Path) -> None:
    stop = StopFlag()

    class Presses(Listener):
        def phase(self, name: str, done: int, total: int) -> None:
            if name == "range test" and done == 3:
                stop.signal_number = 2

    with pytest.raises(Interrupted):
        find(tmp_path, stop=stop, listener=Presses())


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    recipe(tmp_path, method=LORA, data={"eval": "rows.jsonl"})
    options = ["--steps", "8", "--from", "1e-5", "--to", "1", "--grid", "1", "--budget", "2 steps"]
    command = ["lr-find", str(tmp_path / "recipe.yaml"), *options]
    told = CliRunner().invoke(app, [*command, "--json", "--quiet", "--png", str(tmp_path / "lr.png")])
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert len(found["points"]) == 8 and found["method"] == "lora"
    assert found["default"] == Lora.default_learning_rate(64)
    assert {trial["is_default"] for trial in found["trials"]} == {True, False}
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(app, [*command, "--quiet"])
    assert "suggestion: " in table.stdout and "method's default" in table.stdout
    assert not (tmp_path / "run").exists()
    gone = CliRunner().invoke(app, [*command, "--png", str(tmp_path / "no" / "lr.png")])
    assert gone.exit_code == 2 and "--png no such folder: " in gone.stderr
