"""Laws 1, 2, 3 and 14: recipes of every method, what learns, the function at the start, errors before torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from laws import CELLS, LEARNING, NEW, Cell, Shared, logits, python, recipe, start_model, trained

from ftune import methods
from ftune.load import parse_recipe

METHODS = methods.names()


def fitting(name: str) -> dict[str, str]:
    """The objective that a method needs to be named, where it does not learn from the default one."""
    known = methods.load(name).objectives
    return {} if "causal_lm" in known else {"objective": min(known)}


@pytest.mark.parametrize("name", METHODS)
def test_law_1_a_minimal_recipe_validates_and_round_trips(name: str) -> None:
    minimal = {"model": "builtin:tiny-llama", "method": name, "data": {"train": "rows.jsonl"}, **fitting(name)}
    first, problems = parse_recipe(minimal)
    assert first is not None and not problems
    assert isinstance(first.method, methods.load(name)) and first.method.name == name
    stored = json.loads(json.dumps(first.model_dump(mode="json")))
    again, problems = parse_recipe(stored)
    assert again == first and not problems


@pytest.mark.parametrize("name", METHODS)
def test_law_1_an_unknown_field_is_refused_with_its_path_and_the_nearest_name(name: str) -> None:
    known = next((field for field in methods.load(name).model_fields if field != "name"), "name")
    misspelt = known[:1] + known  # `rrank` for `rank`
    values = {"model": "m", "method": {"name": name, misspelt: 1}, "data": {"train": "rows.jsonl"}, **fitting(name)}
    _, problems = parse_recipe(values)
    assert [problem.path for problem in problems] == [f"method.{misspelt}"]
    assert f"Did you mean '{known}'?" in problems[0].message


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_2_what_learns_has_the_methods_names_and_the_planned_count(shared: Shared, cell: Cell) -> None:
    run = trained(shared, cell)
    pattern = re.compile(LEARNING[cell.method])
    assert run.learning == {name for name in run.before if pattern.fullmatch(name)} != set()
    count = sum(run.before[name].numel() for name in run.learning)
    assert run.plan["trainable_parameters"] == count
    assert run.plan["total_parameters"] == sum(tensor.numel() for tensor in run.before.values())


SHAPES = {  # (outputs, inputs) of the linear layers of one block, written down by hand
    "llama": {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64),
              "gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)},
    "gpt2": {"attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)},
    "qwen3": {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64),
              "gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)},
    "gemma3": {"q_proj": (96, 64), "k_proj": (48, 64), "v_proj": (48, 64), "o_proj": (64, 96),
               "gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)},
}  # fmt: skip


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.method == "lora"], ids=str)
def test_law_2_lora_counts_rank_times_inputs_plus_outputs(shared: Shared, cell: Cell) -> None:
    block = cell.block
    ranks = block.get("rank_pattern", {})
    expected = 0
    for name, (outputs, inputs) in SHAPES[cell.family].items():
        if "target_modules" in block and not any(name.endswith(end) for end in block["target_modules"]):
            continue
        rank = next((rank for end, rank in ranks.items() if name.endswith(end)), block["rank"])
        expected += rank * (inputs + outputs) + (outputs if block.get("dora") else 0)
    expected = 2 * expected + 64 * len(block.get("new_tokens", [])) * (2 if cell.family == "llama" else 1)
    assert trained(shared, cell).plan["trainable_parameters"] == expected


def test_law_2_a_matrix_of_nine_numbers_learns_six_at_rank_one() -> None:
    from ftune.methods.lora import Lora

    assert Lora(rank=1, alpha=1).trainable_parameters({"w": (3, 3)}) == 6
    assert Lora(rank=1, alpha=1, dora=True).trainable_parameters({"w": (3, 3)}) == 9


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_3_attaching_leaves_the_function_as_it_was(tmp_path: Path, cell: Cell) -> None:
    import torch

    from ftune.base import load_tokenizer
    from ftune.start import Record, start_of
    from ftune.target import attached

    loaded = recipe(tmp_path, model=f"builtin:tiny-{cell.family}", method=dict(cell.block))
    method, start = loaded.recipe.method, start_of(loaded.recipe.model, tmp_path)
    tokenizer = load_tokenizer(start.tokenizer_base)
    method.prepare_tokenizer(tokenizer)
    base = start_model(loaded)
    before = logits(base)
    model = attached(start, Record(loaded.recipe, tmp_path, ""), tokenizer, torch.float32)
    after = logits(model)
    known = min([before.shape[-1], *tokenizer.convert_tokens_to_ids(list(cell.block.get("new_tokens", [])))])
    assert method.identity_at_start == (known == before.shape[-1])
    if cell.block.get("init") == "pissa":
        # computed in fp64: in fp32 the base alone is 2e-6 off, so only this shows what the fp32 split of W0 does
        exact = logits(base.double())
        assert (logits(model.double()) - exact).abs().max() <= 1e-6 * exact.abs().max()
    elif cell.block.get("dora"):
        assert (after - before).abs().max() <= 1e-6
    else:
        assert torch.equal(after[..., :known], before[..., :known])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_new_token_starts_as_the_mean_of_its_letters(tmp_path: Path, family: str) -> None:
    import torch

    from ftune.base import load_tokenizer
    from ftune.start import Record, start_of
    from ftune.target import attached

    block = {"name": "lora", "rank": 1, "new_tokens": NEW}
    loaded = recipe(tmp_path, model=f"builtin:tiny-{family}", method=block)
    base, start = start_model(loaded), start_of(loaded.recipe.model, tmp_path)
    tokenizer = load_tokenizer(start.tokenizer_base)
    loaded.recipe.method.prepare_tokenizer(tokenizer)
    grown = attached(start, Record(loaded.recipe, tmp_path, ""), tokenizer, torch.float32)
    ids = tokenizer.convert_tokens_to_ids(NEW)
    assert ids == [263, 264] and len(tokenizer) == 265
    matrix = base.get_input_embeddings().weight
    for token, row in zip(NEW, ids, strict=True):
        mean = torch.stack([matrix[byte] for byte in token.encode()]).mean(dim=0)
        entered = grown.get_input_embeddings()(torch.tensor([row]))[0]
        assert torch.allclose(entered, mean, atol=1e-7)


ERRORS = {
    "objective": ({"objective": "masked_lmm"}, r"recipe\.yaml:\d+:\d+ objective.*masked_lmm"),
    "dead key": ({"eval": {"every": 3}}, r"recipe\.yaml:\d+:\d+ eval\.every: has no effect without data\.eval"),
    "typo": ({"method": {"name": "lora", "rnak": 4}}, r"recipe\.yaml:\d+:\d+ method\.rnak: .*Did you mean 'rank'\?"),
    "method": ({"method": "lorra"}, r"recipe\.yaml:\d+:\d+ method.*lorra.*Did you mean 'lora'\?"),
    "value": ({"train": {"learning_rate": -1.0}}, r"recipe\.yaml:\d+:\d+ train\.learning_rate: expected .*-1"),
}
COLD = """
import json, sys
from ftune.cli import app
codes = []
for path in json.loads(sys.argv[1]):
    try:
        app(["train", path])
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
heavy = {"torch", "transformers", "peft", "accelerate", "tokenizers", "datasets"} & set(sys.modules)
print(json.dumps([codes, sorted(heavy)]))
"""


def test_law_14_a_wrong_recipe_is_one_error_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    paths = []
    for name, (sections, _) in ERRORS.items():
        folder = tmp_path / name
        folder.mkdir()
        values = {"model": "builtin:tiny-llama", "data": {"train": "rows.jsonl"}, "output_dir": str(folder / "run")}
        (folder / "recipe.yaml").write_text(json.dumps({**values, **sections}, indent=1))
        paths.append(str(folder / "recipe.yaml"))
    done = python("-c", COLD, json.dumps(paths))
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [2] * len(ERRORS)
    assert heavy == []
    messages = done.stderr.strip().split("1 problem. Nothing was run.")
    assert len(messages) == len(ERRORS) + 1 and not messages[-1].strip()
    for (name, (_, pattern)), message in zip(ERRORS.items(), messages, strict=False):
        lines = message.strip().splitlines()
        assert len(lines) == 1 and re.search(pattern, lines[0]), (name, message)
    assert not list(tmp_path.glob("*/run"))


LIBRARIES = """
import sys
from ftune.cli.common import prepare_process
prepare_process(offline=True, verbose=False)
import peft, bitsandbytes
print(sorted({"torch._inductor.compile_fx", "torch._inductor.lowering"} & set(sys.modules)))
"""


def test_libraries_load_no_compiler_and_say_nothing() -> None:
    done = python("-c", LIBRARIES)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
