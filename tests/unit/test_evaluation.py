"""Scores by hand, and generation: batched equals one by one, it stops where it should, and nothing else steers it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import BLOCKS, FAMILIES, Cell, Shared, recipe, start_model, trained

from ftune import builtin
from ftune.data.read import Row
from ftune.data.render import Renderer
from ftune.data.shape import Sample, to_sample
from ftune.errors import RecipeError
from ftune.evaluation import RowLosses, likelihood_scores, mean_loss
from ftune.generation import Prediction, generate, predict, predictions_lines, text_scores
from ftune.metrics import Score
from ftune.recipe import Data
from ftune.scoring import chosen_split, evaluate

EOS = 258
METRICS = ("loss", "perplexity", "bits_per_byte")
PROMPTS = ["a", "The sun", "x" * 40, "one two three", "?", "12 + 30 =", "y z " * 12, "ok"]


def losses(*rows: tuple[float, int, int]) -> RowLosses:
    """Rows of (nats, targets, bytes)."""
    nats, targets, num_bytes = zip(*rows, strict=True)
    return RowLosses(np.array(nats), np.array(targets), np.array(num_bytes), None, [])


def test_scores_by_hand() -> None:
    """Long rows weigh more: sums over all rows are divided once, never means of means."""
    found = losses((8 * math.log(2), 4, 2), (2 * math.log(2), 1, 3))
    scores = {name: score.value for name, score in likelihood_scores(found, METRICS, intervals=False).items()}
    assert scores == pytest.approx({"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 2.0}, rel=1e-12)
    assert mean_loss(found) == pytest.approx(2 * math.log(2), rel=1e-12)


def test_bits_per_byte_counts_utf8_bytes_and_is_absent_without_bytes() -> None:
    assert likelihood_scores(losses((math.log(2) * 12, 5, 6)), METRICS, intervals=False)["bits_per_byte"].value == 2.0
    assert "bits_per_byte" not in likelihood_scores(losses((1.0, 5, 0)), METRICS, intervals=False)


def test_only_the_metrics_that_were_asked_for() -> None:
    assert list(likelihood_scores(losses((1.0, 1, 1)), ("perplexity",), intervals=False)) == ["perplexity"]


def test_intervals() -> None:
    """They hold the value, are repeatable, shrink with more rows, and one row has none."""
    generator = np.random.default_rng(0)
    rows = [(float(x), 10, 10) for x in generator.normal(20, 5, 40).clip(1)]
    few, many = losses(*rows), losses(*(rows * 25))
    low, high = likelihood_scores(few, METRICS, intervals=True)["loss"].ci95 or (0, 0)
    assert low < mean_loss(few) < high
    assert likelihood_scores(few, METRICS, intervals=True) == likelihood_scores(few, METRICS, intervals=True)
    closer = likelihood_scores(many, METRICS, intervals=True)["loss"].ci95 or (0, 0)
    assert closer[1] - closer[0] < (high - low) / 3
    scores = likelihood_scores(few, METRICS, intervals=True)
    assert scores["perplexity"].ci95 == pytest.approx((math.exp(low), math.exp(high)), rel=1e-12)
    assert likelihood_scores(losses((1.0, 1, 1)), METRICS, intervals=True)["loss"].ci95 is None
    exact = 1.96 * np.std([nats for nats, _, _ in rows]) / 10 / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(exact, rel=0.2), "the bootstrap agrees with the normal approximation"


def prediction(expected: str, received: str) -> Prediction:
    """An answer to something."""
    return Prediction("rows.jsonl", 3, "prompt", expected, received)


@pytest.mark.parametrize(
    ("expected", "received", "exact"),
    [
        ("tea", "tea", True), ("tea", " tea\n", True), (" tea", "tea", True), ("tea", "Tea", False),
        ("tea", "tea.", False), ("tea", "", False), ("", "", False), ("  ", "\n", False), ("a b", "a  b", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_up_to_white_space_at_its_ends_and_never_when_empty(
    expected: str, received: str, exact: bool
) -> None:
    assert prediction(expected, received).exact is exact


def test_exact_match_is_a_share() -> None:
    answers = [prediction("a", "a"), prediction("a", "b"), prediction("a", ""), prediction("c", "c ")]
    names = ("loss", "exact_match")
    assert text_scores(answers, names, {}, intervals=False) == {"exact_match": Score(0.5)}
    low, high = text_scores(answers * 5, names, {}, intervals=True)["exact_match"].ci95 or (0, 0)
    assert 0.2 < low < 0.5 < high < 0.8
    assert text_scores([], names, {}, intervals=True) == {}


def test_predictions_are_one_json_object_a_line() -> None:
    text = predictions_lines([prediction("é\n", "a"), prediction("b", "b")])
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["exact"] for row in rows] == [False, True]
    assert rows[0] == {"file": "rows.jsonl", "number": 3, "prompt": "prompt", "expected": "é\n", "received": "a",
                       "exact": False}  # fmt: skip
    assert "é" in text


def lively(tmp_path: Path, family: str, **sections: Any) -> Any:
    """The builtin model, its logits spread out so that no two tokens are near to equal."""
    import torch

    model = start_model(recipe(tmp_path, model=f"builtin:tiny-{family}", **sections))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8 if family == "bart" else 2)
    return model


def answers_of(model: Any, prompts: list[str], **options: Any) -> list[str]:
    settings = {"pad_id": 256, "max_new_tokens": 12, "batch_size": 8, "tick": lambda done, total: None, **options}
    return generate(model, prompts, options.pop("renderer", plain_renderer()), **settings)


def plain_renderer() -> Renderer:
    """Text as it is: answers end at EOS."""
    return Renderer(builtin.tokenizer(), "{{ prompt }}")


def by_hand(model: Any, prompt: str, count: int = 12) -> list[int]:
    """Ids of a greedy answer, one token at a time, without cache or padding, up to EOS."""
    import torch

    ids = builtin.tokenizer()(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + count:
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best == EOS:
            break
        ids.append(best)
    return ids[start:]


def text_of(ids: list[int]) -> str:
    return str(builtin.tokenizer().decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_in_batches_equals_one_by_one(tmp_path: Path, family: str) -> None:
    """Left padding must not be seen; 40-letter prompts reach over gemma3's sliding window of 32."""
    import torch

    model = lively(tmp_path, family).train()
    state = torch.random.get_rng_state()
    expected = [text_of(by_hand(model.eval(), prompt)) for prompt in PROMPTS]
    model.train()
    for batch_size in (1, 3, 8):
        assert answers_of(model, PROMPTS, batch_size=batch_size) == expected
    assert len(set(expected)) > 4
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_answers_of_encoder_decoders_in_batches_equal_one_by_one(tmp_path: Path, family: str) -> None:
    """Pads behind a prompt must not be seen."""
    import torch

    model = lively(tmp_path, family, objective="seq2seq_lm")
    renderer, start = plain_renderer(), int(model.config.decoder_start_token_id)
    expected = []
    for prompt in PROMPTS:
        read, written = torch.tensor([renderer.encoder_ids(prompt)]), [start]
        while len(written) <= 12 and written[-1] != EOS:
            with torch.no_grad():
                logits = model(input_ids=read, decoder_input_ids=torch.tensor([written]), use_cache=False).logits
            written.append(int(logits[0, -1].argmax()))
        expected.append(text_of([i for i in written[1:] if i != EOS]))
    for batch_size in (1, 3, 8):
        assert answers_of(model, PROMPTS, batch_size=batch_size) == expected
    assert len(set(expected)) >= 3


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0}, {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.5},
        {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(97, 123))}, {"num_beams": 3}, {"min_length": 200},
        {"max_length": 5}, {"forced_eos_token_id": 258}, {"eos_token_id": 32}, {"min_new_tokens": 99},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_settings_that_come_with_a_model_do_not_change_what_was_asked(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = lively(tmp_path, "llama")
    expected = [text_of(by_hand(model, prompt)) for prompt in PROMPTS]
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    published = model.generation_config.to_dict()
    assert answers_of(model, PROMPTS) == expected
    assert model.generation_config.to_dict() == published, "they are saved with the model again"


def test_generation_stops_at_the_terminator_and_cuts_it_off(tmp_path: Path) -> None:
    """The output head's rows of EOS and of the model's own fifth token change places."""
    import torch

    model = lively(tmp_path, "llama")
    free = by_hand(model, "The sun")
    assert len(free) == 12 and free[4] not in free[:4]
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[[EOS, free[4]]] = head.weight[[free[4], EOS]]
    for batch in (["The sun"], ["The sun", "x" * 40]):
        assert answers_of(model, batch)[0] == text_of(free[:4])


def test_an_answer_never_holds_its_prompt(shared: Shared) -> None:
    from ftune.answering import answer

    run = trained(shared, Cell("lora", "llama", {"name": "lora", **BLOCKS["lora"]})).folder
    texts = answer(
        run, ["12 + 30 =", "q"], max_new_tokens=5, sampling=None, seed=0, raw=False, overrides=(),
        tick=lambda what, done, total: None,
    )  # fmt: skip
    assert len(texts) == 2 and all("12 + 30 =" not in text for text in texts)


def test_no_prompts_no_answers(tmp_path: Path) -> None:
    assert answers_of(lively(tmp_path, "llama"), []) == []


def test_sampling_is_repeatable_by_the_seed(tmp_path: Path) -> None:
    import torch

    model = lively(tmp_path, "llama")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(answers_of(model, PROMPTS, sampling={"temperature": 5.0, "top_p": 1.0}))
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampling_leaves_no_token_out_that_was_not_asked_to(tmp_path: Path) -> None:
    """transformers would take the 50 likeliest only."""
    import torch

    torch.manual_seed(0)
    model = lively(tmp_path, "llama")
    options = {"sampling": {"temperature": 1e4, "top_p": 1.0}, "max_new_tokens": 1, "batch_size": 400}
    assert len(set(answers_of(model, ["a"] * 400, **options))) > 60


def test_what_is_expected_is_what_was_learned_and_weight_0_is_not_asked_for(tmp_path: Path) -> None:
    tools = '[{"name": "f", "arguments": {}}]'
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": words, **more}]}
        for words, more in (("  yes ", {}), ("no", {"weight": 0}), ("", {"tool_calls": json.loads(tools)}))
    ]
    samples = [to_sample(Row("rows.jsonl", number, row), "chat", {}) for number, row in enumerate(rows, start=1)]
    assert all(isinstance(sample, Sample) for sample in samples)
    form = (
        "{% for m in messages %}{{ m.content | trim }}{% if m.tool_calls %}<f>{{ m.tool_calls[0].function.name }}</f>"
    )
    renderer = Renderer(builtin.tokenizer(), form + "{% endif %}<|im_end|>{% endfor %}")
    found = predict(
        lively(tmp_path, "llama"), samples, renderer,  # type: ignore[arg-type]
        pad_id=256, max_new_tokens=1, batch_size=2, tick=lambda done, total: None,
    )  # fmt: skip
    assert [(p.number, p.prompt, p.expected) for p in found] == [
        (1, "q<|im_end|>", "  yes "), (3, "q<|im_end|>", "<f>f</f>"),
    ]  # fmt: skip


def test_set_is_refused_where_a_recipe_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecipeError, match="--set has no effect on a run, whose recipe is recorded"):
        evaluate(
            tmp_path, split=None, data_file=None, metrics=None, max_rows=None, batch_size=1,
            overrides=("eval.max_new_tokens=3",), tick=lambda *_: None,
        )  # fmt: skip


def test_other_rows_are_not_called_train() -> None:
    rows = Data(train="a.jsonl", eval="b.jsonl")
    assert chosen_split(rows, None, Path("/c.jsonl")) == (Data(train="/c.jsonl"), "train", "data")
    assert chosen_split(rows, None, None) == (rows, "eval", "eval")


def test_a_limit_that_is_asked_for_takes_the_place_of_the_recipes_and_draws_by_the_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} + ", "completion": "7" * i} for i in range(1, 13)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "model: builtin:tiny-llama\ndata: {train: rows.jsonl, eval: rows.jsonl, test: rows.jsonl}\n"
        "eval: {max_rows: 3, metrics: [exact_match], max_new_tokens: 1}\n",
        encoding="utf-8",
    )

    def scored(split: Any, max_rows: int | None) -> list[int]:
        found = evaluate(
            tmp_path / "recipe.yaml", split=split, data_file=None, metrics=["exact_match"], max_rows=max_rows,
            batch_size=4, overrides=(), tick=lambda *_: None,
        )  # fmt: skip
        assert found.rows == len(found.predictions)
        return [prediction.number for prediction in found.predictions]

    limited = scored("eval", None)
    assert len(limited) == 3
    assert {*limited} < {*scored("eval", 5)}
    assert scored("test", 3) == limited != [1, 2, 3]
    assert len(scored("test", None)) == 12
