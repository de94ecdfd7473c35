"""The rule that ends a run when guard sets show that the model forgets; and what is left as the model then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bases import noisy
from cuts import Stops
from facts import plan_of
from laws import Shared, events, train

from ftune.errors import ArtifactError, Interrupted, RecipeError
from ftune.load import load_recipe
from ftune.state import TrainState
from ftune.stopping import FORGETTING, forgetting, goes_on, model_step, note_evaluation, reason_to_stop, rises

GENERAL = [{"prompt": "@~" * i, "completion": "ZXQWJ" * (1 + i % 2)} for i in range(1, 7)]
"""Letters that training never shows, so that learning takes likelihood from them."""
STEPS = 12


def limited(limit: str | None = "5%", **sections: Any) -> Any:
    return plan_of(
        train={"early_stopping": {"patience": 2, "max_forgetting": limit}},
        eval={"guard": ["g.jsonl", "h.jsonl"]},
        **sections,
    )


def after(plan: Any, *evaluations: tuple[float | None, float, float]) -> TrainState:
    """The state after evaluations of (eval loss, loss of g, loss of h); both guard sets began at 2."""
    state = TrainState(guard_baseline={"g": {"loss": 2.0}, "h": {"loss": 2.0}})
    for state.step, (loss, g, h) in enumerate(evaluations, start=1):
        state.guard_losses = {"g": g, "h": h}
        note_evaluation(state, loss, plan)
    return state


def test_one_set_beyond_the_limit_is_enough() -> None:
    plan = limited()
    assert plan.max_forgetting == 0.05 and plan.patience == 2
    assert reason_to_stop(after(plan, (1.0, 2.0, 2.1)), plan) is None, "exactly the limit is within it"
    state = after(plan, (1.0, 1.5, 2.2))
    assert reason_to_stop(state, plan) == FORGETTING
    assert rises(state) == pytest.approx({"g": -0.25, "h": 0.1})
    found = forgetting(state, plan)
    assert found is not None and found["beyond"] == ["h"] and found["limit"] == 0.05 and not found["kept"]


def test_the_best_is_the_best_within_the_limit() -> None:
    plan = limited()
    state = after(plan, (1.0, 2.0, 2.0), (0.9, 2.05, 2.0), (0.5, 2.5, 2.0))
    assert (state.best_step, state.best_loss, model_step(state, plan)) == (2, 0.9, 2)
    assert model_step(after(plan, (1.0, 3.0, 2.0)), plan) == 1, "where none was within, it is the last"
    without = limited(checkpoint={"best": None})
    state = after(without, (1.0, 2.0, 2.0), (1.1, 2.0, 2.0), (0.5, 2.5, 2.0))
    assert (state.best_step, model_step(state, without)) == (None, 2), "the last within the limit"


def test_patience_is_another_rule_that_stays_as_it_was() -> None:
    plan = limited()
    assert reason_to_stop(after(plan, (1.0, 2.0, 2.0), (1.0, 2.0, 2.0), (1.0, 2.0, 2.0)), plan) == "early_stopping"
    alone = plan_of(train={"early_stopping": {"patience": None, "max_forgetting": "5%"}}, eval={"guard": ["g.jsonl"]})
    state = after(alone, *[(1.0, 2.0, 2.0)] * 9)
    assert alone.patience is None and reason_to_stop(state, alone) is None


def test_a_higher_limit_lets_the_run_go_on() -> None:
    state = after(limited(), (1.0, 2.2, 2.0))
    state.finished = FORGETTING
    assert not goes_on(state, limited()) and goes_on(state, limited("20%")) and goes_on(state, limited(None))


def problems(folder: Path, text: str) -> list[str]:
    (folder / "r.yaml").write_text(f"model: builtin:tiny-llama\n{text}", encoding="utf-8")
    try:
        load_recipe(folder / "r.yaml")
    except RecipeError as error:
        return [str(problem).removeprefix(f"{folder / 'r.yaml'}:") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("stopping", "rest", "message"),
    [
        ("{max_forgetting: 5%}", "data: {train: t, eval: 5%}",
         "3:26 train.early_stopping.max_forgetting: has no effect without eval.guard."),
        ("{patience: null}", "data: {train: t, eval: 5%}", "3:9 train.early_stopping: has no effect with neither"),
        ("{patience: 2, max_forgetting: 5%}", "data: {train: t}\neval: {guard: [g]}",
         "3:26 train.early_stopping.patience: has no effect without data.eval."),
        ("{max_forgetting: 0%}", "data: {train: t, eval: 5%}\neval: {guard: [g]}",
         "3:26 train.early_stopping.max_forgetting: expected a share"),
        ("{max_forgetting: 5}", "data: {train: t, eval: 5%}\neval: {guard: [g]}",
         "3:26 train.early_stopping.max_forgetting: expected text"),
    ],
)  # fmt: skip
def test_what_would_never_stop_is_an_error(tmp_path: Path, stopping: str, rest: str, message: str) -> None:
    (found,) = problems(tmp_path, f"seed: 0\ntrain: {{early_stopping: {stopping}}}\n{rest}\n")
    assert found.startswith(message), found


def test_guard_sets_are_enough_without_data_eval(tmp_path: Path) -> None:
    rest = "data: {train: t}\neval: {guard: [g], every: 5}\n"
    assert problems(tmp_path, f"train: {{early_stopping: {{max_forgetting: 5%}}}}\n{rest}") == []
    assert problems(tmp_path, f"train: {{early_stopping: {{patience: 2}}}}\n{rest}") != []


def forgetful(folder: Path, shared: Shared, limit: str | None, **sections: Any) -> Any:
    """Every weight learns other letters, dropout on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "general.jsonl").write_text("\n".join(map(json.dumps, GENERAL)) + "\n")
    stopping = None if limit is None else {"patience": None, "max_forgetting": limit}
    values: dict[str, Any] = {
        "data": {"eval": "rows.jsonl"},
        "train": {"duration": f"{STEPS} steps", "learning_rate": 3e-3, "early_stopping": stopping},
        "eval": {"every": 2, "guard": ["general.jsonl"]},
        "checkpoint": {"every": 5, "keep": 1},
    }
    for name, block in sections.items():
        values[name] = {**values[name], **block}
    return noisy(folder, shared, "full", "gpt2", **values)


def at(run: Path) -> int:
    """The newest checkpoint's step."""
    return max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def stopped_where(folder: Path, shared: Shared) -> tuple[str, int, dict[int, float]]:
    """A limit that this run passes at some evaluation after the second, that step, and its rise at each; measured."""
    train(forgetful(folder / "probe", shared, "100%"))
    seen = {event["step"]: event["rise"] for event in events(folder / "probe" / "run", "guard")}
    assert list(seen) == list(range(2, STEPS + 1, 2))
    before = {step: max(seen[other] for other in seen if other < step) for step in list(seen)[2:-1]}
    step = next(step for step in before if seen[step] > before[step] > 0)
    return f"{50 * (before[step] + seen[step]):.4f}%", step, seen


def test_the_run_stops_and_says_which_set_and_by_how_much(tmp_path: Path, shared: Shared) -> None:
    limit, last, seen = stopped_where(tmp_path, shared)
    report = train(forgetful(tmp_path, shared, limit))
    assert (report["finished"], report["steps"]) == ("forgetting", last) and report["model_step"] < last
    assert report["forgetting"]["rise"] == {"general": seen[last]} and report["forgetting"]["beyond"] == ["general"]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["finished"] == "forgetting"
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"Stopped, since the loss of guard set general was {seen[last]:.2%} above its value before training" in text
    assert "(best eval loss within the limit of forgetting)" in text
    assert events(tmp_path / "run", "finish")[0]["finished"] == "forgetting"
    after_training = report["guard"]["general"]
    kept = after_training["after"]["loss"]["value"] / after_training["before"]["loss"] - 1
    assert kept == pytest.approx(seen[report["model_step"]], abs=1e-4), "model/ is a step within the limit"


def test_without_a_best_the_last_within_the_limit_is_kept(tmp_path: Path, shared: Shared) -> None:
    limit, last, _ = stopped_where(tmp_path, shared)
    report = train(forgetful(tmp_path, shared, limit, data={"eval": None}, checkpoint={"every": 100}))
    assert (report["finished"], report["steps"], report["model_step"]) == ("forgetting", last, last - 2)
    assert "(the last within the limit of forgetting)" in (tmp_path / "run" / "report.md").read_text()


def test_a_run_that_ends_within_says_so(tmp_path: Path, shared: Shared) -> None:
    report = train(forgetful(tmp_path, shared, "100%", train={"learning_rate": 1e-5}))
    assert report["finished"] == "complete" and report["forgetting"]["beyond"] == []
    assert "The loss of no guard set rose by more than the 100% of" in (tmp_path / "run" / "report.md").read_text()


def test_law_8_a_run_cut_at_every_step_forgets_alike_and_stops_alike(tmp_path: Path, shared: Shared) -> None:
    limit, last, seen = stopped_where(tmp_path, shared)
    whole = train(forgetful(tmp_path / "whole", shared, limit))
    loaded = forgetful(tmp_path / "cut", shared, limit)
    for step in range(1, last):
        listener = Stops(step)
        with pytest.raises(Interrupted):
            train(loaded, listener, listener.flag)
        assert at(tmp_path / "cut" / "run") == step
    report = train(loaded)
    for key in ("finished", "steps", "model_step", "forgetting", "metrics", "guard"):
        assert report[key] == whole[key], key
    runs = [tmp_path / name / "run" for name in ("whole", "cut")]
    states = [json.loads((run / "checkpoints" / f"step_{last:06d}" / "state.json").read_text()) for run in runs]
    assert states[0].pop("train_seconds") != states[1].pop("train_seconds")
    assert states[0] == states[1] and states[0]["guard_losses"]["general"] > 0
    a, b = ((run / "checkpoints" / f"step_{last:06d}" / "weights.safetensors").read_bytes() for run in runs)
    assert a == b
    assert [[e["step"], e["loss"]] for e in events(runs[0], "guard")] == [
        [e["step"], e["loss"]] for e in events(runs[1], "guard")
    ]
    assert train(loaded)["steps"] == last, "the same command makes no more steps"


def test_the_limit_may_be_raised_and_the_run_goes_on(tmp_path: Path, shared: Shared) -> None:
    limit, last, _ = stopped_where(tmp_path, shared)
    train(forgetful(tmp_path, shared, limit))
    report = train(forgetful(tmp_path, shared, "100%"))
    assert (report["finished"], report["steps"]) == ("complete", STEPS)


def test_scoring_guard_sets_never_changes_what_is_learned(tmp_path: Path, shared: Shared) -> None:
    """Law 11."""
    for name, limit in (("with", "100%"), ("without", None)):
        train(forgetful(tmp_path / name, shared, limit))
    a, b = (
        (tmp_path / name / "run" / "checkpoints" / f"step_{STEPS:06d}" / "weights.safetensors").read_bytes()
        for name in ("with", "without")
    )
    assert a == b


def test_a_set_that_was_not_scored_before_training_is_refused(tmp_path: Path, shared: Shared) -> None:
    train(forgetful(tmp_path, shared, None, eval={"guard": []}, train={"duration": "4 steps"}))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match="guard set general was not scored before training"):
        train(forgetful(tmp_path, shared, "5%"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
