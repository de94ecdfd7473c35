"""What only a CUDA device can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: builtin:tiny-llama\nmethod: {name: lora, rank: 8, dropout: 0.1}\n"
        "data: {train: rows.jsonl, eval: 20%}\n"
        "train: {duration: 20 steps, batch_size: 8, learning_rate: 1e-2, deterministic: true}\n",
        encoding="utf-8",
    )
    return path


def train(recipe: Path, *options: str) -> dict[str, object]:
    from ftune.cli import app

    done = CliRunner().invoke(app, ["train", str(recipe), "--quiet", "--json", *options])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trains_evaluates_and_merges(recipe: Path, precision: str) -> None:
    from ftune.cli import app

    report = train(recipe, "--set", f"train.precision={precision}", "--output-dir", precision)
    metrics = report["metrics"]
    assert isinstance(metrics, dict)
    baseline = report["baseline"]
    assert isinstance(baseline, dict)
    assert metrics["eval"]["loss"]["value"] < baseline["loss"]
    plan = json.loads(Path(precision, "plan.json").read_text())
    assert plan["device"]["value"] == "cuda"
    assert CliRunner().invoke(app, ["merge", precision, "--quiet"]).exit_code == 0


def test_deterministic_runs_repeat_bit_for_bit(recipe: Path) -> None:
    train(recipe, "--output-dir", "a")
    train(recipe, "--output-dir", "b")
    name = Path("model", "adapter_model.safetensors")
    assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_rows_end_to_end_equal_rows_alone(family: str) -> None:
    """Torch's kernel for rows of any length, in bf16, beside each row alone in fp32."""
    from transformers import AutoModelForCausalLM

    from ftune import builtin
    from ftune.attention import packed_arguments, use_packed_attention

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(builtin.config(family)).eval().cuda()
    use_packed_attention(model)
    lengths = torch.tensor([9, 9, 2, 6, 1, 9], device="cuda")
    rows = torch.arange(int(lengths.sum()), device="cuda").mul(7).remainder(250).split(lengths.tolist())
    positions = torch.cat([torch.arange(len(row), device="cuda") for row in rows])[None]
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row[None]).logits[0] for row in rows])
        arguments = packed_arguments(lengths, model.device)
        packed = model.bfloat16()(input_ids=torch.cat(rows)[None], position_ids=positions, **arguments).logits[0]
    assert float((packed.float() - alone).abs().max()) <= 0.05 * float(alone.abs().max())


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_go_on_bit_for_bit(recipe: Path, optimizer: str) -> None:
    """A run of 20 steps, and one that ends after 10 and is extended; the state keeps its pages."""
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file

    settings = ["--set", f"train.optimizer={optimizer}", "--set", "train.schedule=constant", "--set", "train.warmup=0"]
    train(recipe, *settings, "--output-dir", "whole")
    train(recipe, *settings, "--set", "train.duration=10 steps", "--output-dir", "cut")
    train(recipe, *settings, "--output-dir", "cut")
    for name in ("weights", "optimizer"):
        a, b = (load_file(Path(run, "checkpoints", "step_000020", f"{name}.safetensors")) for run in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_share_of_the_peak_is_told_in_bf16(recipe: Path) -> None:
    from ftune.device import device_name
    from ftune.flops import peak_flops

    report = train(recipe, "--set", "train.precision=bf16", "--profile", "--output-dir", "profiled")
    assert (report["mfu"] is None) == (peak_flops(device_name("cuda"), "bf16") is None)
    table = json.loads(Path("profiled", "profile", "table.json").read_text())
    assert table["device"] == "cuda" and sum(operator["seconds"] for operator in table["operators"]) > 0
