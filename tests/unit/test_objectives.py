"""Losses equal transformers' own; what is hidden is a function of the seed; heads are drawn and pooled right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import bench
from laws import recipe, train
from matrix import HEAD, ROWS

from ftune import builtin, objectives
from ftune.data.encode import Example
from ftune.errors import RecipeError
from ftune.load import parse_recipe
from ftune.objectives.masked_lm import MaskedLM
from ftune.objectives.seq2seq_lm import Seq2SeqLM
from ftune.objectives.sequence_classification import SequenceClassification

EOS = 258


def prepared(folder: Path, objective: Any, model: str, rows: list[dict[str, Any]], **data: Any) -> Any:
    return bench(recipe(folder, rows=rows, objective=objective, model=f"builtin:tiny-{model}", method="full",
                        data={"template": None, **data}))  # fmt: skip


def by_transformers(work: Any, example: Example) -> float:
    """transformers' own mean loss of one row, times its number of targets."""
    import torch

    ids = torch.from_numpy(example.ids).long()[None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if example.answer is not None:
        inputs["labels"] = torch.from_numpy(example.answer).long()[None]
    elif example.labels is not None and example.labels.dtype.kind == "i" and example.labels.shape == example.ids.shape:
        labels = torch.from_numpy(np.where(example.is_target, example.labels, -100)).long()
        inputs["labels"] = labels[None]
    elif example.labels is not None:
        labels = torch.from_numpy(example.labels)
        inputs["labels"] = labels[None] if labels.is_floating_point() else labels.long()
    work.model.eval()
    with torch.no_grad():
        return float(work.model(**inputs).loss) * example.num_targets


TEXT = [{"text": "The sea is " + "blue " * (1 + i % 4)} for i in range(9)]
MULTI = [{"text": "x" * (1 + i), "labels": ["a", "b", "c"][: i % 4]} for i in range(9)]
NUMBERS = [{"text": "y" * (1 + i % 5), "label": i / 3 - 1} for i in range(9)]
CASES = {
    "masked": ("masked_lm", "bert", TEXT),
    "seq2seq t5": ("seq2seq_lm", "t5", ROWS["pairs"]),
    "infilling": ("seq2seq_lm", "bart", TEXT),
    "single": ("sequence_classification", "bert", ROWS["classification"]),
    "single of a decoder": ("sequence_classification", "llama", ROWS["classification"]),
    "single of an encoder-decoder": ("sequence_classification", "bart", ROWS["classification"]),
    "multi": ({"name": "sequence_classification", "problem": "multi_label"}, "bert", MULTI),
    "regression": ({"name": "sequence_classification", "problem": "regression"}, "gpt2", NUMBERS),
    "tokens": ("token_classification", "bert", ROWS["token_labels"]),
    "tokens of a decoder": ({"name": "token_classification", "align": "last"}, "llama", ROWS["token_labels"]),
}


@pytest.mark.parametrize(("objective", "model", "rows"), CASES.values(), ids=CASES.keys())
def test_law_13_losses_equal_those_of_transformers(tmp_path: Path, objective: Any, model: str, rows: Any) -> None:
    """Padded batches of ours against one row at a time of theirs."""
    work = prepared(tmp_path, objective, model, rows)
    losses = work.row_losses(batch_size=4)
    expected = [by_transformers(work, example) for example in losses.examples]
    assert np.allclose(losses.nats, expected, rtol=1e-5, atol=1e-5)
    assert losses.nats.min() > 1e-4 and len(expected) == len(rows)


@pytest.mark.parametrize(("objective", "model", "rows"), list(CASES.values())[:5], ids=list(CASES)[:5])
def test_law_13_ten_steps_equal_a_plain_loop(tmp_path: Path, objective: Any, model: str, rows: Any) -> None:
    """AdamW over transformers' mean loss of the whole batch, weighted by targets: the same losses, step by step.

    A new head learns ten times faster, which is the default of `full`.
    """
    import torch

    from ftune.data.order import window
    from ftune.data.pack import Cut

    work = prepared(tmp_path, objective, model, rows)
    ours = [result.loss for result in work.steps()]
    again = prepared(tmp_path / "plain", objective, model, rows)
    again.model.train()
    heads = [p for name, p in again.model.named_parameters() if re.fullmatch(HEAD, name)]
    assert bool(heads) == ("classification" in str(objective))
    body = [p for p in again.model.parameters() if all(p is not head for head in heads)]
    groups = [{"params": body}, {"params": heads, "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    for step, loss in enumerate(ours):
        part = window(again.prepared.dataset.train.examples, step, batch_size=4, cut=Cut(4),
                      seed=again.plan.seed, draw=again.prepared.draw)  # fmt: skip
        total = torch.zeros(())
        for example in part.micro_batches[0]:
            ids = torch.from_numpy(example.ids).long()[None]
            labels = example.answer if example.answer is not None else example.labels
            assert labels is not None
            if len(labels) == len(example.is_target) > 1:
                labels = np.where(example.is_target, labels, -100)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            wanted = torch.from_numpy(np.asarray(labels)).long()
            inputs["labels"] = wanted if len(wanted) == 1 and example.answer is None else wanted[None]
            total = total + again.model(**inputs).loss * example.num_targets
        total = total / part.num_targets
        assert float(total.detach()) == pytest.approx(loss, rel=2e-5), step
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(again.model.parameters(), 1.0)
        optimizer.step()
    assert ours[-1] < ours[0]


def text_example(length: int) -> Example:
    """Ordinary tokens between two special ones."""
    ids = np.array([257, *(97 + i % 20 for i in range(length)), EOS], dtype=np.int32)
    hideable = np.ones(len(ids), dtype=bool)
    hideable[[0, -1]] = False
    return Example(ids, hideable, 0, "a.txt", 1)


def test_masks_have_the_shares_of_bert_and_depend_on_the_seed_only() -> None:
    draw = MaskedLM().drawer(builtin.tokenizer())
    example = text_example(20_000)
    drawn = draw(example, 7)
    chosen = drawn.is_target
    assert np.array_equal(drawn.ids, draw(example, 7).ids) and not np.array_equal(drawn.ids, draw(example, 8).ids)
    assert drawn.labels is not None and np.array_equal(drawn.labels, example.ids)
    assert np.array_equal(drawn.ids[~chosen], example.ids[~chosen])
    assert not chosen[[0, -1]].any(), "special tokens are never hidden"
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    hidden = drawn.ids[chosen] == builtin.tokenizer().mask_token_id
    kept = drawn.ids[chosen] == example.ids[chosen]
    assert hidden.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.02)
    swapped = drawn.ids[chosen][~hidden & ~kept]
    assert len(np.unique(swapped)) > 150 and not set(swapped.tolist()) & set(builtin.tokenizer().all_special_ids)


def test_at_least_one_token_is_hidden() -> None:
    draw = MaskedLM(mask_probability=1e-6).drawer(builtin.tokenizer())
    assert {draw(text_example(3), seed).num_targets for seed in range(20)} == {1}
    assert len({int(draw(text_example(3), seed).is_target.argmax()) for seed in range(30)}) == 3


@pytest.mark.parametrize("length", [1, 2, 3, 10, 57, 500])
def test_spans_leave_text_and_answer_that_make_the_whole(length: int) -> None:
    """BART's way, with the tokenizer's mask: putting the answer's words for the masks gives the text."""
    draw = Seq2SeqLM().drawer(builtin.tokenizer())
    example = text_example(length)
    mask = builtin.tokenizer().mask_token_id
    for seed in range(10):
        drawn = draw(example, seed)
        assert drawn.answer is not None and np.array_equal(drawn.answer, example.ids)
        masks = int((drawn.ids == mask).sum())
        assert masks >= 1 and drawn.ids[0] == 257 and drawn.ids[-1] == EOS
        kept = len(drawn.ids) - masks
        assert len(example.ids) - kept == min(max(1, round(0.15 * length)), max(1, length - 1))
        assert not ((drawn.ids[1:] == mask) & (drawn.ids[:-1] == mask)).any(), "spans never touch"
    starts = [tuple(np.flatnonzero(draw(example, seed).ids == mask)) for seed in range(10)]
    assert length < 3 or len(set(starts)) > 1


def test_spans_of_t5_have_sentinels() -> None:
    from tokenizers import AddedToken

    tokenizer = builtin.tokenizer()
    tokenizer.add_tokens([AddedToken(f"<extra_id_{i}>", special=True) for i in range(100)])
    draw = Seq2SeqLM().drawer(tokenizer)
    example = text_example(200)
    drawn = draw(example, 3)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert drawn.answer is not None and drawn.answer[0] == first and drawn.answer[-1] == EOS
    answer, text, rebuilt = drawn.answer[:-1].tolist(), drawn.ids.tolist(), list[int]()
    for token in text:
        if token >= first:
            start = answer.index(token)
            stop = next(i for i in range(start + 1, len(answer)) if answer[i] >= first)
            rebuilt += answer[start + 1 : stop]
        else:
            rebuilt.append(token)
    assert rebuilt == example.ids.tolist()
    assert answer[-1] == first + sum(token >= first for token in text), "one sentinel closes the answer"


def test_other_epochs_hide_other_tokens_and_evaluations_the_same(tmp_path: Path) -> None:
    from ftune.data.order import window
    from ftune.data.pack import Cut

    work = prepared(tmp_path, "masked_lm", "bert", TEXT)
    examples, draw = work.prepared.dataset.train.examples, work.prepared.draw
    epochs = [window(examples, step, batch_size=9, cut=Cut(9), seed=0, draw=draw) for step in (0, 1, 0)]
    masks = [sorted((e.number, e.is_target.tobytes()) for e in part.micro_batches[0]) for part in epochs]
    assert masks[0] == masks[2] != masks[1]
    assert np.array_equal(work.row_losses(batch_size=2).nats, work.row_losses(batch_size=2).nats)


def test_a_head_is_drawn_under_the_seed(tmp_path: Path) -> None:
    import torch

    heads = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        loaded = recipe(tmp_path / name, rows=ROWS["classification"], objective="sequence_classification",
                        model=str(folder_of(tmp_path, "llama")), method="full", data={"template": None},
                        seed=seed)  # fmt: skip
        heads[name] = bench(loaded).model.score.weight
    assert torch.equal(heads["a"], heads["b"]) and not torch.equal(heads["a"], heads["c"])
    assert heads["a"].shape == (3, 64)


def folder_of(root: Path, family: str) -> Path:
    """A pretrained language model without a head, as a folder."""
    from transformers import AutoModelForCausalLM

    folder = root / f"base-{family}"
    if not folder.exists():
        AutoModelForCausalLM.from_config(builtin.config(family)).save_pretrained(folder)
        builtin.tokenizer().save_pretrained(folder)
    return folder


def test_labels_are_stored_with_the_model_and_found_again(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from ftune.scoring import evaluate

    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(["10", "9", "-1", "9"])]
    loaded = recipe(tmp_path, rows=rows, objective="sequence_classification", model="builtin:tiny-bert",
                    method="full", data={"template": None})  # fmt: skip
    train(loaded)
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.id2label == {0: "-1", 1: "9", 2: "10"}, "whole numbers are sorted as numbers"
    assert json.loads((tmp_path / "run/model/ftune.json").read_text())["labels"] == ["-1", "9", "10"]
    (tmp_path / "other.jsonl").write_text('{"text": "a", "label": 10}\n')
    result = evaluate(tmp_path / "run", split=None, data_file=tmp_path / "other.jsonl", metrics=None, max_rows=None,
                      batch_size=1, overrides=(), tick=lambda *_: None)  # fmt: skip
    assert result.rows == 1 and {"loss", "accuracy"} <= result.metrics.keys()


def logits_and_loss(objective: SequenceClassification, training: bool) -> Any:
    """Loss of a fixed batch of logits."""
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            return type("Output", (), {"logits": torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])})()

    return objective.loss(Fixed().train(training), {"input_ids": torch.zeros(2, 1), "labels": torch.tensor([0, 2])})[0]


def test_weights_smoothing_and_focus_shape_training_only() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
    plain = cross_entropy(logits, torch.tensor([0, 2]), reduction="none")
    settings = {"class_weights": {"c": 3.0}, "label_smoothing": 0.1, "focal_gamma": 2.0}
    counts = {"a": 1, "b": 1, "c": 2}
    for name, value in settings.items():
        objective = SequenceClassification(**{name: value}).bound(("a", "b", "c"), counts)
        assert torch.equal(logits_and_loss(objective, False), plain), "held-out rows are scored plainly"
        assert not torch.equal(logits_and_loss(objective, True), plain)
    weighted = SequenceClassification(class_weights={"c": 3.0}).bound(("a", "b", "c"), counts)
    assert torch.allclose(logits_and_loss(weighted, True), plain * torch.tensor([1.0, 3.0]))
    balanced = SequenceClassification(class_weights="balanced").bound(("a", "b", "c"), counts)
    assert torch.allclose(logits_and_loss(balanced, True), plain * torch.tensor([4 / 3, 4 / 6]))
    p = logits.softmax(dim=1)[torch.arange(2), torch.tensor([0, 2])]
    focal = SequenceClassification(focal_gamma=2.0)
    assert torch.allclose(logits_and_loss(focal, True), (1 - p) ** 2 * plain)
    with pytest.raises(RecipeError, match="no training row has the label 'd'"):
        SequenceClassification(class_weights={"d": 1.0}).bound(("a", "b"), {"a": 1, "b": 1})


def test_settings_that_mean_nothing_are_refused() -> None:
    block = {"name": "sequence_classification", "problem": "regression", "focal_gamma": 1.0}
    _, problems = parse_recipe({"model": "m", "objective": block, "data": {"train": "t.csv"}})
    assert [problem.path for problem in problems] == ["objective.focal_gamma"]
    block = {"name": "masked_lm", "keep_probability": 0.7, "random_probability": 0.6}
    _, problems = parse_recipe({"model": "m", "objective": block, "data": {"train": "t.csv"}})
    assert "add up to 1.3" in problems[0].message


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoders_head_reads_the_last_token_whatever_its_id(tmp_path: Path, family: str) -> None:
    """Rows of very different length, padded on either side, score as they do alone."""
    work = prepared(tmp_path, "sequence_classification", family, [
        {"text": "a" * (1 + 9 * (i % 3)) + "bc"[i % 2], "label": "xyz"[i % 3]} for i in range(6)
    ])  # fmt: skip
    alone = work.row_losses(batch_size=1)
    for left in (False, True):
        together = work.row_losses(batch_size=6, pad_left=left)
        assert np.allclose(together.nats, alone.nats, atol=1e-5)
    assert len({round(float(n), 4) for n in alone.nats}) == 6


def test_every_objective_says_what_it_is_for() -> None:
    for name in objectives.names():
        objective = objectives.load(name)()
        assert objective.families and objective.formats and objective.forward_metrics[0] == "loss"


def test_tags_that_are_not_bio_are_scored_word_by_word(tmp_path: Path) -> None:
    rows = [{"tokens": ["we", "met", "x"][: 1 + i % 3], "tags": ["PRON", "VERB", "X"][: 1 + i % 3]} for i in range(5)]
    loaded = recipe(tmp_path, rows=rows, objective="token_classification", model="builtin:tiny-bert", method="full",
                    data={"template": None, "eval": "rows.jsonl"}, eval={"every": 5})  # fmt: skip
    metrics = train(loaded)["metrics"]["eval"]
    assert metrics.keys() == {"loss", "token_accuracy"}


def test_a_label_that_was_renamed_is_other_data(tmp_path: Path) -> None:
    """The positions are the same, the names are not: a run may not go on under other names."""
    from ftune.errors import ArtifactError

    def start(names: str) -> None:
        rows = [{"text": f"t{i}", "label": names[i % 2]} for i in range(4)]
        train(recipe(tmp_path, rows=rows, objective="sequence_classification", model="builtin:tiny-bert",
                     method="full", data={"template": None}))  # fmt: skip

    start("ab")
    with pytest.raises(ArtifactError, match="data.train: what the run learned from has changed"):
        start("xy")


def test_an_artefact_without_its_head_does_not_open(tmp_path: Path) -> None:
    """A base may lack the head, which is drawn; what was trained may not."""
    from safetensors.torch import load_file, save_file

    from ftune.errors import ArtifactError
    from ftune.store import Store
    from ftune.target import open_target

    train(recipe(tmp_path, rows=ROWS["classification"], objective="sequence_classification",
                 model="builtin:tiny-bert", method="full", data={"template": None}))  # fmt: skip
    files = [file for file in (tmp_path / "run" / "model").iterdir() if file.suffix != ".safetensors"]
    kept = {file.name: file.read_bytes() for file in files}
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    del tensors["classifier.weight"]

    def write(folder: Path) -> None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name in kept.keys() - {"MANIFEST.json"}:
            (folder / name).write_bytes(kept[name])

    Store(tmp_path / "run").publish("model", write, {})
    with pytest.raises(ArtifactError, match="has no weights for .'classifier.weight'"):
        open_target(tmp_path / "run")
