"""`lora` on every head: it learns, is saved, is required, is merged; and rows of embeddings on every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from ftune import builtin, targets
from ftune.errors import ArtifactError, RecipeError
from ftune.methods.lora import Lora

CLASSIFIERS = [cell for cell in tiny.CELLS if cell[0] in ("sequence", "token")]
WORDS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "masked": None, "seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM"}
NEW = ["<call>"]
MANY = [*NEW, *(f"<{i}>" for i in range(10))]
"""More than the spare rows of the tiny models."""


def lora(**fields: Any) -> Lora:
    return Lora(**{"rank": 4, "alpha": 8.0, **fields})


def attached(method: Lora, built: Any) -> Any:
    import torch

    tokenizer = builtin.tokenizer()
    method.prepare_tokenizer(tokenizer)
    torch.manual_seed(3)
    return method.attach(built, tokenizer)


def parameters(built: Any, learning: bool) -> dict[str, Any]:
    named = built.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad == learning}


def plain_peft(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.parametrize(("head", "family"), tiny.CELLS)
def test_every_head_learns_is_saved_and_is_merged(tmp_path: Path, head: str, family: str) -> None:
    import torch
    import transformers

    method, inputs = lora(), tiny.batch(head, family)
    base = tiny.model(head, family)
    before, heads = tiny.logits(base, inputs), targets.head_modules(base)
    built = attached(method, base)
    assert torch.equal(tiny.logits(built, inputs), before)

    frozen, learning = parameters(built, False), parameters(built, True)
    assert all(any(f"{name}." in key and "modules_to_save" in key for key in learning) for name in heads)
    tiny.learn(built, inputs)
    after = dict(built.named_parameters())
    assert [name for name, value in learning.items() if torch.equal(after[name], value)] == []
    assert [name for name, value in frozen.items() if not torch.equal(after[name], value)] == []
    trained = tiny.logits(built, inputs)
    assert tiny.distance(trained, before) > 0.05

    method.save(built, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == WORDS[head] and config["modules_to_save"] == (sorted(heads) or None)
    loaded = method.load(tiny.model(head, family, seed=9), tmp_path / "adapter")
    assert torch.equal(tiny.logits(loaded, inputs), trained)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(tiny.logits(plain_peft(tiny.model(head, family, seed=9), tmp_path / "adapter"), inputs), trained)

    merged = method.merge(loaded)
    assert tiny.distance(tiny.logits(merged, inputs), trained) < 1e-5 * max(1.0, float(trained.abs().max()))
    merged.save_pretrained(tmp_path / "merged")
    read = getattr(transformers, tiny.HEADS[head]).from_pretrained(tmp_path / "merged")
    assert torch.equal(tiny.logits(read, inputs), tiny.logits(merged, inputs))


@pytest.mark.parametrize(("head", "family"), CLASSIFIERS)
def test_no_layer_of_the_head_gets_an_update(head: str, family: str) -> None:
    from peft.tuners.lora import LoraLayer

    base = tiny.model(head, family)
    method, heads = lora(), targets.head_modules(base)
    shapes = method.target_shapes(base)
    assert shapes and not any(name.startswith(tuple(heads)) for name in shapes)
    own = [base.get_submodule(name) for name in heads]
    of_the_head = sum(p.numel() for module in own for p in module.parameters())
    built = attached(method, base)
    adapted = [name for name, module in built.named_modules() if isinstance(module, LoraLayer)]
    assert adapted == [f"base_model.model.{name}" for name in shapes]
    assert sum(v.numel() for v in parameters(built, True).values()) == method.trainable_parameters(shapes) + of_the_head


@pytest.mark.parametrize(("head", "family"), [("sequence", "bart"), ("token", "bert"), ("sequence", "llama")])
def test_a_head_that_is_missing_is_fatal(tmp_path: Path, head: str, family: str) -> None:
    from safetensors.torch import load_file, save_file

    method = lora()
    method.save(attached(method, tiny.model(head, family)), tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    state, settings = load_file(weights), json.loads(config.read_text())
    name = next(key for key in state if "lora" not in key)

    with pytest.raises(ArtifactError, match="of another shape: \\['base_model"):
        method.load(tiny.model(head, family, labels=3), tmp_path)
    save_file({key: value for key, value in state.items() if key != name}, weights)
    with pytest.raises(ArtifactError, match="Missing: \\['base_model.model."):
        method.load(tiny.model(head, family), tmp_path)
    save_file(state, weights)
    config.write_text(json.dumps({**settings, "modules_to_save": None}))
    with pytest.raises(ArtifactError, match="does not hold the head"):
        method.load(tiny.model(head, family), tmp_path)


def test_a_target_in_the_head_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match="method.target_modules: 'classifier' is part of the head, which learns"):
        attached(lora(target_modules=["query", "classifier"]), tiny.model("sequence", "bert"))
    with pytest.raises(RecipeError, match="'quary' matches no linear layer of this model. Did you mean 'query'"):
        attached(lora(target_modules=["quary"]), tiny.model("sequence", "bert"))


@pytest.mark.parametrize(("head", "family"), [("sequence", "bert"), ("sequence", "bart"), ("token", "llama")])
def test_the_head_stays_fp32_beside_a_bf16_body(tmp_path: Path, head: str, family: str) -> None:
    import torch

    method, inputs = lora(), tiny.batch(head, family)
    built = attached(method, tiny.model(head, family).to(torch.bfloat16))
    tiny.learn(built, inputs)
    assert {p.dtype for p in parameters(built, True).values()} == {torch.float32}
    trained = tiny.logits(built, inputs)
    method.save(built, tmp_path)
    loaded = method.load(tiny.model(head, family, seed=9).to(torch.bfloat16), tmp_path)
    assert torch.equal(tiny.logits(loaded, inputs), trained)


@pytest.mark.parametrize(("head", "family"), tiny.CELLS)
def test_what_learns_can_be_counted_without_weights(head: str, family: str) -> None:
    import torch
    import transformers

    config = builtin.config(family)
    config.num_labels = tiny.LABELS
    with torch.device("meta"):
        empty = getattr(transformers, tiny.HEADS[head]).from_config(config)
    method = lora(init="pissa")
    counted = parameters(attached(method.skeleton(), empty.requires_grad_(False)), True)
    real = parameters(attached(method, tiny.model(head, family)), True)
    assert {name: value.shape for name, value in counted.items()} == {name: v.shape for name, v in real.items()}


@pytest.mark.parametrize("family", tiny.FAMILIES["seq2seq"])
def test_seq2seq_generates_as_well_merged(tmp_path: Path, family: str) -> None:
    import torch

    method, inputs = lora(trainable_tokens=["a"]), tiny.batch("seq2seq", family)
    built = attached(method, tiny.model("seq2seq", family))
    tiny.learn(built, inputs)
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    answer = built.generate(**prompt, max_new_tokens=8, do_sample=False)
    method.save(built, tmp_path)
    merged = method.merge(method.load(tiny.model("seq2seq", family), tmp_path))
    assert torch.equal(merged.generate(**prompt, max_new_tokens=8, do_sample=False), answer)


TOKEN_CELLS = [
    *(cell for cell in tiny.CELLS if cell[0] in ("causal", "seq2seq")),
    ("sequence", "bert"), ("token", "bert"), ("sequence", "gpt2"), ("token", "qwen3"),
]  # fmt: skip


@pytest.mark.parametrize("tokens", [{"trainable_tokens": ["a", "b"]}, {"new_tokens": NEW}, {"new_tokens": MANY}])
@pytest.mark.parametrize(("head", "family"), TOKEN_CELLS)
def test_rows_of_embeddings_learn(tmp_path: Path, head: str, family: str, tokens: dict[str, Any]) -> None:
    import torch
    import transformers

    both = "new_tokens" in tokens
    method, inputs = lora(**tokens, **({"trainable_tokens": ["a"]} if both else {})), tiny.batch(head, family)
    base = tiny.model(head, family)
    before = tiny.logits(base, inputs)
    matrix = base.get_input_embeddings().weight.detach().clone()
    built = attached(method, base)
    if not both:
        assert torch.equal(tiny.logits(built, inputs), before)
    rows = [name for name in parameters(built, True) if "trainable_tokens_delta" in name]
    start = parameters(built, True)[rows[0]]
    tiny.learn(built, inputs)
    moved = (dict(built.named_parameters())[rows[0]] != start).any(dim=1)
    assert moved[0] and moved[-1 if both else 0], "'a' and '<call>' are in the batch"
    trained = tiny.logits(built, inputs)

    method.save(built, tmp_path / "adapter")
    loaded = method.load(tiny.model(head, family, seed=9), tmp_path / "adapter")
    assert torch.equal(tiny.logits(loaded, inputs), trained)
    merged = method.merge(loaded)
    assert tiny.distance(tiny.logits(merged, inputs), trained) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    read = getattr(transformers, tiny.HEADS[head]).from_pretrained(tmp_path / "merged")
    assert torch.equal(tiny.logits(read, inputs), tiny.logits(merged, inputs))
    others = [row for row in range(250) if row not in (97, 98)]
    assert torch.equal(read.get_input_embeddings().weight[others], matrix[others])


def test_rows_that_peft_would_get_wrong_are_refused() -> None:
    for tokens, field in (({"new_tokens": NEW}, "new_tokens"), ({"trainable_tokens": ["a"]}, "trainable_tokens")):
        with pytest.raises(RecipeError, match=rf"method.{field}: .*output head has a bias"):
            attached(lora(**tokens), tiny.model("masked", "bert"))
    for head, family in (("sequence", "t5"), ("token", "t5"), ("sequence", "bart")):
        for tokens in ({"new_tokens": NEW}, {"new_tokens": MANY}, {"trainable_tokens": ["a"]}):
            with pytest.raises(RecipeError, match=r"encoder.embed_tokens shares the embeddings"):
                attached(lora(**tokens), tiny.model(head, family))


def test_peft_still_drops_the_bias_of_an_output_head() -> None:
    """Canary: when this fails, peft is fixed and the refusal above can go."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny.model("masked", "bert")
    torch.nn.init.ones_(base.get_output_embeddings().bias)
    inputs = tiny.batch("masked", "bert")
    before = tiny.logits(base, inputs)
    config = LoraConfig(target_modules=["query"], trainable_token_indices={"word_embeddings": [97]})
    assert tiny.distance(tiny.logits(get_peft_model(base, config), inputs), before) == pytest.approx(1.0, abs=1e-3)


def test_tokens_are_checked_against_the_vocabulary() -> None:
    with pytest.raises(RecipeError, match=r"method.trainable_tokens: 'abc' is no token of this model: .*'a', 'b', 'c'"):
        lora(trainable_tokens=["a", "abc"]).prepare_tokenizer(builtin.tokenizer())
    with pytest.raises(RecipeError, match=r"method.new_tokens: \['a'\] is already in the vocabulary"):
        lora(new_tokens=["a"]).prepare_tokenizer(builtin.tokenizer())
    assert [field for field, _ in lora(trainable_tokens=["a", "a"]).problems()] == ["trainable_tokens"]
    assert [field for field, _ in lora(new_tokens=NEW, trainable_tokens=NEW).problems()] == ["trainable_tokens"]
    again = builtin.tokenizer()
    for _ in range(2):
        lora(new_tokens=NEW).prepare_tokenizer(again)
    assert again.convert_tokens_to_ids("<call>") == len(again) - 1
