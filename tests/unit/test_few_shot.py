"""`ftune eval --shots`: which rows are shown, how they are written, what fits, and that the scores are the model's."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ftune

from ftune import builtin
from ftune.as_language_model import Asked
from ftune.data.chat import Turn
from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.shape import Sample
from ftune.errors import DataError, RecipeError
from ftune.few_shot import evaluate_shots
from ftune.generation import Prediction
from ftune.scoring import Evaluation, evaluate
from ftune.shots import Pool, nearest, shown_before, text_of

QUIET: Any = lambda *_: None  # noqa: E731 - hears of progress
PAIRS = [{"prompt": f"{i} + {i}", "completion": f"{2 * i}"} for i in range(30)]
TEXTS = [{"text": f"{word} number {i}", "label": word} for i in range(12) for word in ("cat", "giraffe", "ox")]
QUESTIONS = [
    {"question": f"what is {i}?", "choices": [f"{i}", f"not {i} at all", "x"], "answer_index": i % 3} for i in range(12)
]


def project(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Path:
    """A recipe whose last six rows are held out."""
    for name, some in (("train", rows[:-6]), ("eval", rows[-6:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    data = {"train": "train.jsonl", "eval": "eval.jsonl", **sections.pop("data", {})}
    if "eval" in sections:
        sections["eval"] = {"metrics": ["exact_match"], **sections["eval"]}
    values = {"model": "builtin:tiny-llama", "data": data, "train": {"precision": "fp32"}, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder / "recipe.yaml"


def scored(path: Path, *shots: int, **options: Any) -> list[Evaluation]:
    how = {"split": None, "data_file": None, "metrics": None, "max_rows": None, "batch_size": 4, "overrides": ()}
    own = {name: options.pop(name) for name in list(options) if name in how}
    return evaluate_shots(path, Asked(shots, **options), tick=QUIET, **{**how, **own})  # type: ignore[arg-type]


def ordinary(path: Path, metrics: list[str] | None = None, batch_size: int = 4) -> Evaluation:
    return evaluate(
        path, split=None, data_file=None, metrics=metrics, max_rows=None, batch_size=batch_size, overrides=(),
        tick=QUIET,
    )  # fmt: skip


def value(found: Evaluation, name: str) -> float:
    return found.metrics[name].value


def sample(text: str, answer: str = "a", number: int = 1) -> Sample:
    turns = (Turn("user", text), Turn("assistant", answer))
    return Sample(Row("rows.jsonl", number, {}), turns=turns, fields={"prompt": text}, shown=("prompt",))


# which rows are shown


def test_more_demonstrations_begin_with_fewer_and_the_seed_draws_them() -> None:
    train = [sample(f"question {i}") for i in range(50)]
    pool, again, other = (Pool(train, [], seed) for seed in (0, 0, 1))
    assert pool.first(8)[:3] == pool.first(3) == again.first(3) != other.first(3)
    assert len({text_of(one) for one in pool.first(50)}) == 50
    with pytest.raises(DataError, match="expected 51 demonstrations, but data.train has 50 rows"):
        pool.first(51)


def test_no_row_with_the_text_of_a_scored_one_is_shown() -> None:
    """Whatever its answer, its case and its spaces; and no text twice."""
    train = [sample("Is  it SO? "), sample("is it so?", "b"), sample("fine"), sample("Fine", "c"), sample("other")]
    pool = Pool(train, [sample("is it so?")], 0)
    assert {text_of(one) for one in pool.all()} == {"fine", "other"} and len(pool.all()) == 2


def test_rows_that_are_not_to_be_learned_are_not_shown() -> None:
    bad = Sample(Row("r", 1, {}), turns=(Turn("user", "q"), Turn("assistant", "a", weight=0)))
    assert Pool([bad, sample("x")], [], 0).all() == [sample("x")]


@pytest.mark.parametrize("how", ["random", "balanced", "nearest"])
@pytest.mark.parametrize("of", ["eval", "file", "train"])
def test_no_scored_row_is_ever_a_demonstration(tmp_path: Path, how: str, of: str) -> None:
    """Each row that is scored is in the training file too, once more in other letters and once with another answer."""
    scored_rows = [{"prompt": f"the question {i}", "completion": "A"} for i in range(6)]
    twins = [{"prompt": row["prompt"].upper(), "completion": "A"} for row in scored_rows]
    twins += [{**row, "completion": "WRONG"} for row in scored_rows]
    others = [{"prompt": f"something else {i}", "completion": "B"} for i in range(4)]
    path = project(
        tmp_path, [*twins, *others, *scored_rows], data={"template": "{{ prompt }}: "}, eval={"max_new_tokens": 1}
    )
    options: dict[str, Any] = {"split": "eval"}
    if of == "file":
        (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored_rows), encoding="utf-8")
        options = {
            "data_file": tmp_path / "other.jsonl",
        }
    if of == "train":
        options = {"split": "train", "max_rows": 2}
    if of != "eval":
        (tmp_path / "eval.jsonl").write_text('{"prompt": "of its own", "completion": "B"}\n', encoding="utf-8")
    (found,) = scored(path, 2, demonstrations=how, metrics=["exact_match"], **options)
    for one in found.predictions:
        *shown, asked = one.prompt.split("\n\n")
        questions = [text.split(":")[0].casefold() for text in shown]
        assert len(shown) == 2 and asked.split(":")[0].casefold() not in questions
        if of != "train":
            assert all(text.startswith("something else") for text in shown)


def test_balanced_takes_each_label_in_turn(tmp_path: Path) -> None:
    train = [sample(f"q {i}", "rare" if i < 3 else "common") for i in range(40)]
    found = Pool(train, [], 0).balanced(6)
    assert Counter(one.turns[-1].content for one in found) == {"rare": 3, "common": 3}
    assert found[0].turns[-1] != found[1].turns[-1] != found[2].turns[-1]
    assert Counter(one.turns[-1].content for one in Pool(train, [], 0).balanced(10)) == {"rare": 3, "common": 7}


def test_nearest_by_hand() -> None:
    pool = np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-1.0, 0.0]])
    assert nearest(np.array([[3.0, 0.1], [0.0, -1.0]]), pool, 2).tolist() == [[2, 0], [3, 0]]


def test_the_nearest_row_stands_right_before(tmp_path: Path) -> None:
    """A training row that differs from the scored one by its last letter."""
    rows = [{"prompt": "zzzz qqqq", "completion": "n"}] * 3 + [
        {"prompt": f"{i * 11}", "completion": "n"} for i in range(9)
    ]
    rows += [
        {"prompt": f"a long question about {word}!", "completion": "y"}
        for word in ("tea", "salt", "rain", "wood", "snow", "coal")
    ]
    rows += [
        {"prompt": f"a long question about {word}?", "completion": "y"}
        for word in ("tea", "salt", "rain", "wood", "snow", "coal")
    ]
    path = project(tmp_path, rows, data={"template": "{{ prompt }} "}, eval={"max_new_tokens": 1})
    (found,) = scored(path, 2, demonstrations="nearest", metrics=["exact_match"])
    assert found.demonstrations == (), "they are others for each row"
    for one in found.predictions:
        *_, last, asked = one.prompt.split("\n\n")
        assert last[:-3] == asked[:-2]


# how they are written


def test_in_a_chat_they_are_earlier_turns() -> None:
    renderer = Renderer(builtin.tokenizer(), None)
    turns = (Turn("system", "S"), Turn("user", "now"), Turn("assistant", "answer"))
    one = Sample(Row("r", 1, {}), turns=turns)
    before = Sample(
        Row("r", 2, {}), turns=(Turn("system", "other"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "x"))
    )
    rendered = renderer.render(shown_before(one, [before], renderer), "completion")
    plain = re.sub(r"<\|im_(start|end)\|>", "|", rendered.text)
    assert plain == "|system\nS|\n|user\nq|\n|assistant\na|\n|user\nnow|\n|assistant\nanswer|"
    (span,) = rendered.spans
    assert rendered.text[slice(*span)] == "answer<|im_end|>", "demonstrations are not scored"
    assert renderer.prompt(shown_before(one, [before], renderer)).endswith("now<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_elsewhere_they_are_rendered_prompts_with_answers(train_on: Any) -> None:
    renderer = Renderer(builtin.tokenizer(), "Q: {{ prompt }} A: ")
    shown = shown_before(sample("now", "yes"), [sample("first", "one"), sample("second", "two")], renderer)
    rendered = renderer.render(shown, train_on)
    assert rendered.text == "Q: first A: one\n\nQ: second A: two\n\nQ: now A: yes"
    (span,) = rendered.spans
    assert rendered.text[slice(*span)] == ("yes" if train_on == "completion" else "Q: now A: yes")


# the scores


@pytest.mark.parametrize(
    ("rows", "sections"),
    [
        (PAIRS, {"data": {"template": "{{ prompt }} = "}}), (PAIRS, {}), (QUESTIONS, {}),
        (PAIRS, {"model": "builtin:tiny-gemma3"}),
        (PAIRS, {"model": "builtin:tiny-t5", "objective": "seq2seq_lm", "data": {"template": "{{ prompt }} = "}}),
    ],
)  # fmt: skip
def test_without_shots_it_is_the_ordinary_evaluation(tmp_path: Path, rows: Any, sections: dict[str, Any]) -> None:
    path = project(tmp_path, rows, eval={"max_new_tokens": 4}, **sections)
    metrics = ["loss", "exact_match", "chrf"] + (["accuracy"] if rows is QUESTIONS else [])
    (found,) = scored(path, 0, metrics=metrics)
    expected = ordinary(path, metrics)
    assert found.metrics.keys() == expected.metrics.keys()
    for name in metrics:
        assert value(found, name) == pytest.approx(value(expected, name), abs=1e-5)
    assert [one.received for one in found.predictions] == [one.received for one in expected.predictions]
    assert found.to_json()["shots"] == 0 and found.to_json().keys() == expected.to_json().keys()


@pytest.mark.parametrize("sections", [{"data": {"template": "{{ prompt }} = "}}, {}, {"model": "builtin:tiny-gpt2"}])
def test_the_loss_with_shots_is_that_of_the_whole_text(tmp_path: Path, sections: dict[str, Any]) -> None:
    """By hand: the demonstrations of the JSON, rendered, before each row, in one forward pass without a cache."""
    import torch

    path = project(tmp_path, PAIRS, eval={"max_new_tokens": 3}, **sections)
    zero, found = scored(path, 0, 3, metrics=["loss", "exact_match"])
    from ftune.target import open_target

    target = open_target(path)
    train = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(found.demonstrations) == 3
    before = [train[int(place.rpartition(":")[2]) - 1] for place in found.demonstrations]
    nats = targets = 0.0
    for row, said in zip(PAIRS[-6:], found.predictions, strict=True):
        demos = [sample(one["prompt"], one["completion"]) for one in before]
        shown = shown_before(sample(row["prompt"], row["completion"]), demos, target.renderer)
        prompt = target.renderer.prompt(shown)
        end = "<|im_end|>" if target.renderer.mode == "chat" else "</s>"
        front, ids = (
            target.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, f"{prompt}{row['completion']}{end}")
        )
        with torch.no_grad():
            logits = target.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(dim=-1)
        nats -= float(sum(logits[i - 1, ids[i]] for i in range(len(front), len(ids))))
        targets += len(ids) - len(front)
        assert said.prompt == prompt
    assert value(found, "loss") == pytest.approx(nats / targets, abs=1e-5)
    assert value(zero, "loss") != pytest.approx(value(found, "loss"), abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_answers_and_scores_do_not_depend_on_the_batch(tmp_path: Path, family: str) -> None:
    """What is shared is read once; gemma3 reads all of each row."""
    path = project(tmp_path, PAIRS, model=f"builtin:tiny-{family}", eval={"max_new_tokens": 6})
    found = {size: scored(path, 3, metrics=["loss", "exact_match"], batch_size=size)[0] for size in (1, 4)}
    assert value(found[1], "loss") == pytest.approx(value(found[4], "loss"), abs=1e-5)
    answers = {size: [one.received for one in each.predictions] for size, each in found.items()}
    assert answers[1] == answers[4]
    from ftune.generation import generate
    from ftune.target import open_target

    target = open_target(path)
    prompts = [one.prompt for one in found[1].predictions]
    whole = generate(
        target.model, prompts, target.renderer, pad_id=target.pad_id, max_new_tokens=6, batch_size=1, tick=QUIET
    )
    assert answers[1] == whole


def test_answers_end_at_the_blank_line_that_ends_demonstrations(tmp_path: Path) -> None:
    """A byte that the model writes again and again becomes a line end."""
    import torch

    from ftune.generation import predict
    from ftune.stop_text import StopText
    from ftune.target import open_target

    path = project(tmp_path, PAIRS, data={"template": "{{ prompt }} = "})
    target = open_target(path)
    head = target.model.get_output_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        head.weight.zero_()
        head.weight[10] = 1.0
        head.weight[97] = -1.0
    how = {"pad_id": 256, "max_new_tokens": 40, "batch_size": 4, "tick": QUIET}
    free = predict(target.model, [sample("x")], target.renderer, **how)[0].received
    stopped = predict(target.model, [sample("x")], target.renderer, stop=StopText("\n\n", target.tokenizer), **how)
    assert set(free) <= {"\n", "a"} and len(free) == 40
    assert stopped[0].received == free.partition("\n\n")[0]


def test_options_by_hand(tmp_path: Path) -> None:
    """Sums of log-probabilities of each label after its prompt; per byte; and less those without content."""
    import torch

    from ftune.target import open_target

    path = project(tmp_path, TEXTS, objective="sequence_classification")
    plain = project_of_prompts(tmp_path)
    target = open_target(plain)
    metrics = ["accuracy", "accuracy_norm", "macro_f1"]
    (found,), (calibrated,) = (scored(path, 2, metrics=metrics, calibrate=on) for on in (False, True))
    train = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    before = [train[int(place.rpartition(":")[2]) - 1] for place in found.demonstrations]
    front = "".join(f"{one['text']}\nLabel: {one['label']}\n\n" for one in before)
    labels = ["cat", "giraffe", "ox"]

    def said(text: str) -> Any:
        prompt = f"{front}{text}\nLabel:"
        sums = []
        for label in labels:
            ids = list(f"{prompt} {label}".encode())
            with torch.no_grad():
                logits = target.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(dim=-1)
            sums.append(float(sum(logits[i - 1, ids[i]] for i in range(len(prompt), len(ids)))))
        return np.array(sums)

    rows = TEXTS[-6:]
    sums = np.stack([said(row["text"]) for row in rows])
    gold = np.array([labels.index(row["label"]) for row in rows])
    sizes = np.array([len(label) for label in labels])
    assert [one.received for one in found.predictions] == [labels[i] for i in sums.argmax(axis=1)]
    assert value(found, "accuracy") == (sums.argmax(axis=1) == gold).mean()
    assert value(found, "accuracy_norm") == ((sums / sizes).argmax(axis=1) == gold).mean()
    assert [one.received for one in calibrated.predictions] == [labels[i] for i in (sums - said("N/A")).argmax(axis=1)]
    assert [one.received for one in calibrated.predictions] != [one.received for one in found.predictions]
    assert all(one.prompt == f"{front}{row['text']}\nLabel:" for one, row in zip(found.predictions, rows, strict=True))


def project_of_prompts(folder: Path) -> Path:
    """A recipe of a language model, to look at the same model."""
    (folder / "lm").mkdir()
    return project(folder / "lm", PAIRS)


@pytest.mark.parametrize("options", [{}, {"template": "{{ question }}\nAnswer:"}, {"options": "texts"}])
def test_what_the_options_of_a_question_are(tmp_path: Path, options: dict[str, Any]) -> None:
    """Letters where the prompt shows letters, as training has it; else the choices themselves."""
    path = project(tmp_path, QUESTIONS)
    (found,) = scored(path, 1, **options)
    row = QUESTIONS[-6]
    one: Prediction = found.predictions[0]
    choices = [str(text) for text in row["choices"]]  # type: ignore[attr-defined]
    expected = choices if options else ["A", "B", "C"]
    assert one.expected == expected[int(row["answer_index"])] and one.received in expected  # type: ignore[call-overload]
    assert {"loss", "accuracy", "accuracy_norm"} <= found.metrics.keys()
    if "template" in options:
        first, asked = one.prompt.split("\n\n")
        assert re.fullmatch(r"what is \d+\?\nAnswer: .+", first) and asked == f"{row['question']}\nAnswer:"


def test_questions_are_scored_by_their_options_without_being_asked(tmp_path: Path) -> None:
    path = project(tmp_path, QUESTIONS)
    found = ordinary(path)
    assert list(found.metrics) == ["loss", "perplexity", "bits_per_byte", "accuracy", "accuracy_norm"]
    assert found.metrics["accuracy"].ci95 is not None and len(found.predictions) == 6


# what is refused


def test_prompts_that_do_not_fit_name_the_row_and_how_many_shots_do(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "x" * 98} for i in range(10, 60)]
    rows[-2]["prompt"] = "y" * 400
    path = project(tmp_path, rows, data={"template": "{{ prompt }}"})
    with pytest.raises(DataError) as raised:
        scored(path, 30)
    found = re.search(
        r"eval.jsonl:5: needs (\d+) tokens with 30 shots, more than the 2048 that .* At most (\d+) shots fit",
        str(raised.value),
    )
    assert found is not None
    most = int(found[2])
    assert most == (2048 - 400 - 98 - 1) // 102
    assert scored(path, most)[0].shots == most
    with pytest.raises(DataError, match=f"At most {most} shots"):
        scored(path, most + 1)


def test_answers_that_are_written_need_room_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "x" * 98} for i in range(10, 60)]
    path = project(tmp_path, rows, data={"template": "{{ prompt }}"}, eval={"max_new_tokens": 1200})
    with pytest.raises(DataError, match=r"answers of 1200 \(eval.max_new_tokens\) among them.* At most 8 shots fit"):
        scored(path, 10, metrics=["exact_match"])


@pytest.mark.parametrize(
    ("sections", "rows", "options", "message"),
    [
        ({"objective": "sequence_classification", "model": "builtin:tiny-bert"}, TEXTS, {}, "encoder guesses words"),
        ({"objective": "sequence_classification", "model": "builtin:tiny-bart"}, TEXTS, {}, "was not made to go on"),
        ({"objective": "masked_lm", "model": "builtin:tiny-bert"}, TEXTS, {}, "masked_lm continues no prompt"),
        ({}, PAIRS, {"calibrate": True}, "--calibrate has no effect: the rows have no options"),
        ({}, PAIRS, {"options": "texts"}, "--options has no effect: the rows have no options"),
        ({}, PAIRS, {"metrics": ["accuracy"]}, "'accuracy' is no metric of causal_lm"),
        ({"objective": "sequence_classification"}, TEXTS, {"metrics": ["loss"]}, "'loss' is no metric"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_so_is_refused(
    tmp_path: Path, sections: dict[str, Any], rows: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        scored(project(tmp_path, rows, **sections), 1, **options)


def test_plain_text_and_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval.jsonl:1: has no answer"):
        scored(project(tmp_path, [{"text": f"words {i}"} for i in range(20)]), 1)
    with pytest.raises(DataError, match="expected 99 demonstrations, but data.train has 24 rows"):
        scored(project(tmp_path, PAIRS), 99)


def test_the_command(tmp_path: Path) -> None:
    """One number keeps the contract; several add a list; bad values are named all at once."""
    path = project(tmp_path, TEXTS, objective="sequence_classification")
    one = json.loads(ftune("eval", path, "--shots", "2", "--json", cwd=tmp_path).stdout)
    assert one.keys() == {"target", "split", "rows", "metrics", "shots", "baseline", "seconds", "demonstrations"}
    options = ("--demonstrations", "balanced", "--predictions", "said.jsonl")
    two = json.loads(ftune("eval", path, "--shots", "0,3", "--json", *options, cwd=tmp_path).stdout)
    assert two["shots"] == 0 and [each["shots"] for each in two["results"]] == [0, 3]
    assert two["metrics"] == two["results"][0]["metrics"] and two["results"][1]["metrics"]["accuracy"]["ci95"]
    labels = [TEXTS[int(place.rpartition(":")[2]) - 1]["label"] for place in two["results"][1]["demonstrations"]]
    assert sorted(map(str, labels)) == ["cat", "giraffe", "ox"]
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert Counter(line["shots"] for line in said) == {0: 6, 3: 6}
    table = ftune("eval", path, "--shots", "0,3", cwd=tmp_path).stdout
    assert "0 shots" in table and "3 shots" in table
    bad = ftune("eval", path, "--shots", "1,1", "--demonstrations", "far", "--options", "x", cwd=tmp_path, code=2)
    assert all(name in bad.stderr for name in ("--shots expected", "--demonstrations expected", "--options expected"))
