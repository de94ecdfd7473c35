"""Operations of a step: the formula against torch's own count of what a forward and backward pass do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from ftune import methods
from ftune.data.encode import Example
from ftune.data.order import Window
from ftune.flops import PEAKS, Cost, cost_of, peak_flops

ENCODINGS = {"causal": "next_token", "masked": "next_token", "seq2seq": "answer", "sequence": "row_labels",
             "token": "token_labels"}  # fmt: skip
DEEP: dict[str, Any] = {
    **dict.fromkeys(("llama", "bert"), {"num_hidden_layers": 6}),
    "qwen3": {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6},
    "gemma3": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "gpt2": {"n_layer": 6}, "t5": {"num_layers": 4, "num_decoder_layers": 3},
    "bart": {"encoder_layers": 4, "decoder_layers": 3},
}  # fmt: skip
"""Deep enough that the first layers, of which not every gradient is needed, are a small part."""
TOKENS, ANSWER = 24, 10


def window_of(rows: int, tokens: int, targets: int, answer: int | None = None) -> Window:
    """One micro-batch of equal rows."""
    asked = np.zeros(tokens if answer is None else answer, dtype=bool)
    asked[len(asked) - targets :] = True
    ids = None if answer is None else np.zeros(answer, dtype=np.int32)
    example = Example(np.zeros(tokens, dtype=np.int32), asked, 0, "rows", 1, answer=ids)
    return Window(0, ((example,) * rows,))


def attached(head: str, family: str, method: str) -> Any:
    from ftune import builtin

    built = tiny.model(head, family, **DEEP[family])
    built.set_attn_implementation("eager")  # torch counts its products; those of the fused kernels on CPU it does not
    block = {"lora": {"rank": 4, "alpha": 8}, "prompt": {"length": 5}}.get(method, {})
    return methods.load(method)(name=method, **block).attach(built, builtin.tokenizer())


def counted(model: Any, head: str, rows: int = 3) -> int:
    """What torch counts in one forward and backward pass over rows without pads."""

    ids = torch.randint(0, 250, (rows, TOKENS), generator=torch.Generator().manual_seed(0))
    if head != "causal":
        ids[:, -1] = 258
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head == "seq2seq":
        inputs["decoder_input_ids"] = ids[:, :ANSWER]
    if head in ("causal", "seq2seq"):
        inputs["use_cache"] = False
    model.train()

    def added(total: Any, one: Any, other: Any, **_: Any) -> int:
        return int(2 * one[0] * one[1] * other[1])

    in_place = {torch.ops.aten.addmm_: added}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(**inputs).logits.float().log_softmax(-1)[..., 1].sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("method", ["full", "lora", "ia3"])
@pytest.mark.parametrize(
    ("head", "family"),
    [("causal", "llama"), ("causal", "gpt2"), ("causal", "qwen3"), ("causal", "gemma3"), ("masked", "bert"),
     ("sequence", "bert"), ("sequence", "llama"), ("token", "bert"), ("seq2seq", "t5"), ("seq2seq", "bart")],
)  # fmt: skip
def test_the_formula_counts_what_torch_counts(head: str, family: str, method: str) -> None:
    model = attached(head, family, method)
    targets = {"seq2seq": ANSWER, "sequence": 1}.get(head, TOKENS)
    work = window_of(3, TOKENS, targets, ANSWER if head == "seq2seq" else None)
    assert cost_of(model, ENCODINGS[head]).of(work) == pytest.approx(counted(model, head), rel=0.04)  # type: ignore[arg-type]


def test_full_tuning_is_six_operations_a_weight_and_lora_four() -> None:
    full, lora = (attached("causal", "llama", name) for name in ("full", "lora"))
    matrices = sum(p.numel() for n, p in full.named_parameters() if p.ndim == 2 and "embed" not in n)
    head = full.lm_head.weight.numel()
    cost = cost_of(full, "next_token")
    assert cost.per == {"token": 6.0 * (matrices - head), "answer": 0.0, "target": 6.0 * head, "row": 0.0}
    new = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    body = lora.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.numel()
    expected = 4.0 * (matrices - head) + 6.0 * new - 2.0 * body
    assert cost_of(lora, "next_token").per["token"] == pytest.approx(expected, rel=0.002)


def test_frozen_experts_that_are_not_chosen_cost_nothing() -> None:
    from test_moe import model

    for kind in ("mixtral", "qwen3_moe"):
        built = model(kind)
        built.set_attn_implementation("eager")
        built.set_experts_implementation("eager")
        lora = methods.load("lora")(name="lora", rank=4, alpha=8).attach(built, None)  # type: ignore[arg-type]
        cost = cost_of(lora, "next_token").of(window_of(3, TOKENS, TOKENS))
        assert cost == pytest.approx(counted(lora, "causal"), rel=0.12), kind  # two layers: see DEEP


def test_a_soft_prompt_adds_tokens_and_its_gradient_goes_through_all_layers() -> None:
    model = attached("causal", "llama", "prompt")
    cost = cost_of(model, "next_token")
    assert cost.virtual == 5
    assert cost.of(window_of(3, TOKENS, TOKENS)) == pytest.approx(counted(model, "causal"), rel=0.03)


def test_pads_cost_nothing_and_windows_bound_attention() -> None:
    cost = cost_of(attached("causal", "gemma3", "full"), "next_token")
    near, far = (layer.window for layer in sorted(cost.attention, key=lambda layer: layer.window or 1e9))
    assert (near, far) == (32, None)
    pair = 3 * 4.0 * 4 * 24  # passes, two products of a multiplication and a sum, heads, their size
    assert [layer.flops for layer in cost.attention] == [3 * pair, 3 * pair]
    long = cost.of(window_of(1, 100, 1)) - cost.of(window_of(2, 50, 1)) + cost.per["target"]
    assert long == pytest.approx(3 * pair * (100 * 100 - 2 * 50 * 50) + 3 * pair * (100 * 32 - 2 * 50 * 32))


def test_a_body_that_is_not_run_is_not_counted() -> None:
    from torch import nn

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny.model("causal", "llama")
            self.head = nn.Linear(64, 5)

    model = Head()
    assert cost_of(model, "row_labels", model.body) == Cost(
        {"token": 2.0 * 64 * 5 * 2, "answer": 0.0, "target": 0.0, "row": 0.0}, ()
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10G", None), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12), ("NVIDIA GH200 480GB", 989.4e12), ("Tesla T4", None), ("", None),
    ],
)  # fmt: skip
def test_peaks_of_cards_by_the_drivers_name(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bf16") == peak
    assert peak_flops(name, "fp32") is None
    assert set(PEAKS.values()) and min(PEAKS.values()) > 50e12
