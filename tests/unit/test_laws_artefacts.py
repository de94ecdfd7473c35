"""Laws 6 and 7: what is saved is what was trained, for ftune, peft and transformers; merging changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bases import plain_base
from laws import CELLS, FAMILIES, Cell, Shared, logits, python, recipe, start_model, train, trained

from ftune import methods
from ftune.errors import ArtifactError
from ftune.manifest import verify
from ftune.merging import merge
from ftune.objectives.causal_lm import CausalLM
from ftune.store import Store
from ftune.target import open_target

FRESH = str(Path(__file__).parents[1] / "fresh.py")
METHODS = sorted({cell.method for cell in CELLS})


def merged(shared: Shared, cell: Cell) -> Path:
    """The run of a cell, merged into its base in fp32."""
    run = trained(shared, cell).folder

    def fill(folder: Path) -> None:
        result = merge(run, folder / "plain", dtype="fp32", tick=lambda what: None)
        (folder / "result.json").write_text(json.dumps(result.to_json()))

    return shared.make(f"merged-{cell}", fill) / "plain"


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_6_a_run_opens_as_the_function_that_was_trained(shared: Shared, cell: Cell) -> None:
    import torch

    run = trained(shared, cell)
    found = logits(open_target(run.folder).model)
    if cell.block.get("init") == "pissa":  # saved as the difference to its start, over the original base
        assert (found - run.logits).abs().max() <= 1e-5
    else:
        assert torch.equal(found, run.logits)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_6_a_checkpoint_opens_as_the_function_that_was_trained(shared: Shared, cell: Cell) -> None:
    import torch

    run = trained(shared, cell)
    assert torch.equal(logits(open_target(run.folder / "checkpoints" / "step_000005").model), run.logits)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_law_6_a_missing_weight_is_fatal(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(trained(shared, cell).folder, run)
    weights = next((run / "model").glob("*.safetensors"))
    for place in (0, -1):
        tensors = load_file(weights)
        lost = sorted(tensors)[place]
        del tensors[lost]

        def write(folder: Path, left: dict[str, Any] = tensors) -> None:
            shutil.copytree(run / "model", folder, dirs_exist_ok=True)
            save_file(left, folder / weights.name, metadata={"format": "pt"})

        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(run, tmp_path / "damaged")
        Store(tmp_path / "damaged").publish("model", write, {})
        verify(tmp_path / "damaged" / "model")
        with pytest.raises(ArtifactError, match=lost.rpartition(".")[0].rpartition(".")[2]):
            open_target(tmp_path / "damaged")


@pytest.mark.parametrize("method", METHODS)
def test_laws_6_and_7_in_a_fresh_process(tmp_path: Path, shared: Shared, method: str) -> None:
    """One process for all: merged models in plain transformers, adapters in plain peft, runs in ftune."""
    import torch
    from safetensors.torch import load_file

    jobs, expected = [], []
    for cell in (cell for cell in CELLS if cell.method == method):
        run = trained(shared, cell)
        if methods.load(method).mergeable:
            jobs.append({"kind": "transformers", "path": str(merged(shared, cell))})
            expected.append((run.logits, 1e-5))
        if (run.folder / "model" / "adapter_config.json").is_file() and cell.name != "many_new_tokens":
            base = str(plain_base(shared, cell.family))
            jobs.append({"kind": "peft", "base": base, "path": str(run.folder / "model")})
            expected.append((run.logits, 1e-5))
        if cell.name == method:
            jobs.append({"kind": "ftune", "path": str(run.folder)})
            expected.append((run.logits, 0.0))
    assert len(jobs) >= 4
    pairs = sorted(zip(jobs, expected, strict=True), key=lambda pair: pair[0]["kind"], reverse=True)
    pairs.sort(key=lambda pair: pair[0]["kind"] == "ftune")
    for number, (job, _) in enumerate(pairs):
        job["out"] = str(tmp_path / f"{number}.safetensors")
    done = python(FRESH, json.dumps([job for job, _ in pairs]))
    assert done.returncode == 0, done.stderr[-2000:]
    for job, (wanted, bound) in pairs:
        found = load_file(job["out"])["logits"]
        assert (found - wanted).abs().max() <= bound, job
        assert bound > 0 or torch.equal(found, wanted)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.method == "lora"], ids=str)
def test_law_6_plain_peft_reads_what_lora_writes(shared: Shared, cell: Cell) -> None:
    from peft import PeftModel

    run = trained(shared, cell)
    base = start_model(recipe(shared.root / f"again-{cell}", model=f"builtin:tiny-{cell.family}"))
    if cell.name == "many_new_tokens":
        base.resize_token_embeddings(263 + len(cell.block["new_tokens"]), mean_resizing=False)
    model = PeftModel.from_pretrained(base, run.folder / "model")
    assert (logits(model) - run.logits).abs().max() <= 1e-5


@pytest.mark.parametrize("cell", [cell for cell in CELLS if methods.load(cell.method).mergeable], ids=str)
def test_law_7_merging_keeps_the_function_and_is_repeatable(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    from transformers import AutoModelForCausalLM

    run = trained(shared, cell)
    folder = merged(shared, cell)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert (logits(model.eval()) - run.logits).abs().max() <= 1e-5
    result = json.loads((folder.parent / "result.json").read_text())
    assert result["max_difference"] <= 1e-5 and result["token_agreement"] == 1.0
    assert model.config.tie_word_embeddings == (cell.family != "llama")
    assert model.generation_config.eos_token_id == [258], "anyone's generate() stops where training taught it"
    again = merge(run.folder, tmp_path / "again", dtype="fp32", tick=lambda what: None)
    assert again.sha256 == result["sha256"]
    start = logits(start_model(recipe(tmp_path / "base", model=f"builtin:tiny-{cell.family}")))
    assert (start - run.logits[..., :272]).abs().max() > 1e-2, "training changed nothing, so the test could not fail"


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.name in ("new_tokens", "many_new_tokens")], ids=str)
def test_law_7_only_the_rows_of_new_tokens_change_in_the_embedding(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    import torch
    from safetensors.torch import load_file

    base = start_model(recipe(tmp_path, model=f"builtin:tiny-{cell.family}"))
    weights = load_file(merged(shared, cell) / "model.safetensors")
    named = {"gpt2": ["transformer.wte.weight"], "llama": ["model.embed_tokens.weight", "lm_head.weight"]}
    new = range(263, 263 + len(cell.block["new_tokens"]))
    for name in named[cell.family]:
        old = base.state_dict()[name]
        assert weights[name].shape[0] == max(272, new.stop)
        differing = {i for i in range(len(old)) if not torch.equal(weights[name][i], old[i])}
        assert differing == {i for i in new if i < 272}, name
        assert torch.isfinite(weights[name]).all() and (weights[name][new.start : new.stop].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(
    "cell", [c for c in CELLS if c.name in (*METHODS, "pissa", "dora", "new_tokens", "many_new_tokens")], ids=str
)
def test_law_7_a_finished_run_is_the_start_of_another(tmp_path: Path, shared: Shared, cell: Cell) -> None:
    """Warm start: the new run begins at exactly the function the old one ended with, and its own artefact opens."""
    import torch

    first = trained(shared, cell)
    loaded = recipe(
        tmp_path,
        model=str(first.folder),
        method={"name": "lora", "rank": 2, "alpha": 4},
        train={"duration": "2 steps", "learning_rate": 1e-2},
        checkpoint={"every": 2},
    )
    started = logits(open_target(loaded.path).model)
    assert (started - first.logits).abs().max() <= (0 if cell.method == "full" else 1e-5)
    seen: list[torch.Tensor] = []
    from unittest import mock

    from ftune import run as runs

    def spy(run: Any, really: Any = runs._train) -> None:
        seen.append(logits(run.model))
        really(run)
        seen.append(logits(run.model))

    with mock.patch("ftune.run._train", spy):
        train(loaded)
    assert torch.equal(seen[0], started)
    assert torch.equal(logits(open_target(tmp_path / "run").model), seen[1])
    result = merge(tmp_path / "run", tmp_path / "plain", dtype="fp32", tick=lambda what: None)
    assert result.max_difference <= 1e-5
    third = recipe(tmp_path / "third", model=str(tmp_path / "run"))
    assert (logits(open_target(third.path).model) - seen[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_base_in_half_precision_is_trained_in_fp32_and_published_in_its_own_type(
    tmp_path: Path, shared: Shared, method: str
) -> None:
    """Checkpoints hold fp32 masters; whole models are cast, and the reported scores are those of the cast weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from ftune import builtin
    from ftune.scoring import evaluate

    base = AutoModelForCausalLM.from_pretrained(plain_base(shared, "llama"), dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    builtin.tokenizer().save_pretrained(tmp_path / "base")
    loaded = recipe(
        tmp_path, model="./base", method=method, data={"eval": "rows.jsonl"}, eval={"every": 5},
        checkpoint={"best": None},
    )  # fmt: skip
    report = train(loaded)
    run = tmp_path / "run"
    kept = load_file(run / "checkpoints/step_000005/weights.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    published = load_file(next((run / "model").glob("*.safetensors")))
    assert {t.dtype for t in published.values()} == {torch.bfloat16 if method == "full" else torch.float32}
    again = evaluate(
        run, split="eval", data_file=None, metrics=None, max_rows=None, batch_size=2, overrides=(),
        tick=lambda what, done, total: None,
    )  # fmt: skip
    found = {name: score.value for name, score in again.metrics.items()}
    assert found == pytest.approx({n: s["value"] for n, s in report["metrics"]["eval"].items()}, rel=1e-6)
    if method == "full":
        assert all(torch.equal(published[name], kept[name].bfloat16()) for name in published)
    result = merge(run, None, dtype=None, tick=lambda what: None)
    assert result.dtype == "bfloat16" and result.max_difference <= 1e-5
    assert (result.cast_max_difference > 1e-4) == (method == "lora")
    assert {t.dtype for t in load_file(run / "merged/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("where", ["builtin", "folder", "run"])
def test_weights_in_half_precision_leave_the_tables_of_positions_alone(
    tmp_path: Path, shared: Shared, where: str
) -> None:
    """Rotary frequencies are no weights: rounded to bf16 they would put later tokens at other places."""
    import torch

    from ftune.start import load_start, start_of

    lora = next(cell for cell in CELLS if str(cell) == "lora-llama")
    name = {"builtin": "builtin:tiny-llama", "folder": str(plain_base(shared, "llama")),
            "run": str(trained(shared, lora).folder)}[where]  # fmt: skip
    start = start_of(recipe(tmp_path, model=name).recipe.model, tmp_path)
    whole, half = (load_start(start, CausalLM().head((), 0), dtype, 0) for dtype in (torch.float32, torch.bfloat16))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    tables = dict(whole.named_buffers())
    assert tables and all(torch.equal(table, tables[name]) for name, table in half.named_buffers())


def test_families_are_all_here() -> None:
    assert {cell.family for cell in CELLS} == set(FAMILIES)
