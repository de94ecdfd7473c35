"""`builtin:starter`: a model in the package, as its card says it is; and the 5-gram model it is measured against."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import recipe, start_model, train

from ftune.builtin import CHATML, STARTER

ROOT = Path(__file__).parents[2]
HERE = ROOT / "recipes" / "starter"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The scripts beside the recipes import each other by name."""
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def script(name: str) -> Any:
    return importlib.import_module(name)


def test_it_fits_into_a_package() -> None:
    files = {path.name: path.stat().st_size for path in STARTER.iterdir()}
    assert sum(files.values()) <= script("pack").LARGEST == 8_000_000
    assert set(files) == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_plain_transformers_open_it() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(STARTER), AutoTokenizer.from_pretrained(STARTER)
    assert model.dtype == torch.bfloat16 and model.num_parameters() == 3_803_392
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert tokenizer.chat_template == CHATML and len(tokenizer) == model.config.vocab_size == 4096
    ends = [tokenizer.convert_ids_to_tokens(i) for i in model.generation_config.eos_token_id]
    assert ends == ["</s>", "<|im_end|>"]


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_its_tokenizer_loses_nothing(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_it_stops_when_it_has_answered() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(STARTER), AutoTokenizer.from_pretrained(STARTER)
    questions = ["Repeat: red green", "What is 2 + 3?", "Spell the word house.", "What is the opposite of cold?"]
    for question in questions:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            said = model.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert len(said) < 60 and tokenizer.convert_ids_to_tokens(int(said[-1])) == "<|im_end|>", question
        assert tokenizer.decode(said, skip_special_tokens=True).strip(), question


def test_the_card_names_the_weights() -> None:
    digest = hashlib.sha256((STARTER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (STARTER / "README.md").read_text(encoding="utf-8")


def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "measured.json").read_text(encoding="utf-8"))
    return found


def test_the_card_has_the_figures_that_were_measured() -> None:
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    assert script("measure").table(measured()) in card
    names = {entry["name"] for entry in json.loads((HERE / "sources.json").read_text(encoding="utf-8"))}
    assert set(measured()["sources"]) == names - {"chats", "tokenizer"}
    for name in measured()["sources"]:
        assert f"| `{name}` |" in (HERE / "SOURCES.md").read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_model() -> None:
    """Bits per byte of the beginning of every source's held-out text, within 1%."""
    measure = script("measure")
    found = measure.scored(measure.SAMPLE)
    assert found["bits_per_byte"] == pytest.approx(measured()["sample"]["bits_per_byte"], rel=0.01)
    text = "\n\n".join(measure.documents(measure.SAMPLE)).encode()
    assert len(text) > 60_000
    for compress in (lambda data: gzip.compress(data, 9), lambda data: lzma.compress(data, preset=9)):
        assert found["bits_per_byte"] < 8 * len(compress(text)) / len(text)


def test_it_says_more_of_every_source_than_compressors_and_n_grams_do() -> None:
    for name, entry in measured()["sources"].items():
        assert entry["starter"]["bits_per_byte"] < min(entry["gzip"], entry["xz"]), name
        assert entry["starter"]["ci95"][0] < entry["five_gram"], f"{name}: below it, or not to be told from it"
    whole = measured()["all"]
    assert whole["starter"] < 0.95 * whole["five_gram"] and whole["five_gram"] < whole["xz_after_training_text"]
    assert whole["starter"] < whole["xz_after_training_text"] < whole["xz"] < whole["gzip"]


def test_a_tokenizer_of_the_gathered_text_is_the_packaged_one() -> None:
    record = {entry["name"]: entry for entry in json.loads((HERE / "sources.json").read_text(encoding="utf-8"))}
    digest = hashlib.sha256((STARTER / "tokenizer.json").read_bytes()).hexdigest()
    assert record["tokenizer"]["sha256"]["tokenizer/tokenizer.json"] == digest


def test_drawn_anew_it_has_its_shape_and_full_precision(tmp_path: Path) -> None:
    """Its configuration names bf16, in which a random weight would be one of few."""
    import torch

    new = start_model(recipe(tmp_path, model={"name": "builtin:starter", "init": "random"}))
    old = start_model(recipe(tmp_path, model="builtin:starter"))
    assert new.config.to_dict() == old.config.to_dict()
    matrix = new.model.layers[0].mlp.up_proj.weight
    assert matrix.dtype == torch.float32 and not torch.equal(matrix, matrix.bfloat16().float())
    assert not torch.equal(matrix, old.model.layers[0].mlp.up_proj.weight)
    other = start_model(recipe(tmp_path, model={"name": "builtin:starter", "init": "random"}, seed=1))
    assert not torch.equal(matrix, other.model.layers[0].mlp.up_proj.weight)


def test_plain_peft_opens_an_adapter_on_it(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    loaded = recipe(tmp_path, model="builtin:starter", method="lora", train={"duration": "1 step"})
    train(loaded)
    opened = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert opened.get_base_model().config.hidden_size == 256


def test_a_five_gram_model_is_a_distribution() -> None:
    ngram, rng = script("ngram"), np.random.default_rng(0)
    documents = [[*rng.integers(2, 8, size=30).tolist(), 0] for _ in range(20)]
    levels = ngram.fit(documents, 1)
    for history in ([], [5], [2, 3], [7, 7, 7, 7, 2], documents[0][:9], [8]):
        before = ngram.bits(levels, history, 1, 9) if history else 0.0
        total = sum(2 ** (before - ngram.bits(levels, [*history, word], 1, 9)) for word in range(9))
        assert total == pytest.approx(1, abs=1e-12), history


def test_a_five_gram_model_learns_what_follows_and_backs_off() -> None:
    ngram = script("ngram")
    cycle = [[2, 3, 4, 5, 6, 7] * 10 + [0] for _ in range(3)]
    levels = ngram.fit(cycle, 1)
    assert ngram.bits(levels, cycle[0], 1, 9) < 0.2 * len(cycle[0])
    assert ngram.bits(levels, [2, 3, 4, 8, 8, 8], 1, 9) > ngram.bits(levels, [2, 3, 4, 5, 6, 7], 1, 9)


def test_a_five_gram_model_of_one_order_is_counted_by_hand() -> None:
    """Of `a b a`: c(a) = 2 and c(b) = 1 as continuations of different tokens; n1 = n2 = 1, so y = 1/3."""
    ngram = script("ngram")
    level = ngram._level(np.array([2, 3], np.int64), np.array([2, 1]))
    discounts = ngram._discounts(np.array([2, 1]))
    assert discounts.tolist() == pytest.approx([0, 1 - 2 / 3, 1, 3 - 4 / 3])
    assert level.taken.tolist() == pytest.approx([2 - discounts[2], 1 - discounts[1]])
    assert level.totals.tolist() == [3] and level.backoff[0] == pytest.approx((discounts[2] + discounts[1]) / 3)


def test_what_is_trained_from_nothing_is_kept_in_the_type_its_configuration_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train(recipe(tmp_path, model={"name": "builtin:starter", "init": "random"}, train={"duration": "1 step"}))
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.bfloat16"}
