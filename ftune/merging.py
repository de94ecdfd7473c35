"""Merge a run's weights into its base, write a plain transformers folder, and prove that it is the same function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ftune.device import torch_dtype
from ftune.errors import ArtifactError, NotMergeable, Problem, RecipeError
from ftune.finish import _write_json, write_artefact
from ftune.manifest import sha256_of
from ftune.model import cast_weights
from ftune.plan import Dtype
from ftune.store import OnOperation, Store
from ftune.target import SIDECAR, Target, kind_of, open_target, record_json

if TYPE_CHECKING:
    import torch

EXACT = 1e-5
"""Largest logit difference, relative to the largest logit, between the merged and the trained function in fp32."""
PROBES = ("The quick brown fox jumps over the lazy dog.", "1 + 1 = 2, and 12 * 12 = 144.", "def f(x):\n    return x")
NEW_TOKENS = 16


@dataclass(frozen=True)
class MergeResult:
    """What was merged and how close it came.

    Args:
        folder: the plain model.
        base: the model it was merged into.
        dtype: type of the weights written.
        max_difference, mean_difference: of logits on probe text, merged against trained, both in fp32.
        cast_max_difference: the same once the weights are in `dtype`; rounding, not error.
        token_agreement: share of greedy tokens on probe text that the written model and the trained one agree on.
        sha256: of the weights file.
        seconds: wall time.
    """

    folder: str
    base: str
    dtype: str
    max_difference: float
    mean_difference: float
    cast_max_difference: float
    token_agreement: float
    sha256: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def merge(
    run: Path,
    out: Path | None,
    *,
    dtype: Dtype | None,
    tick: Callable[[str], None],
    on_operation: OnOperation | None = None,
) -> MergeResult:
    """Merge what `run` (a run, checkpoint or adapter folder of ftune) learned into its base.

    The sum is made in fp32 and cast last. The folder appears only after it was read back and compared.

    Args:
        run: TARGET.
        out: the folder to write; None is `merged` inside the run.
        dtype: type of the written weights; None takes the base's own.
        tick: told what is going on; may raise to stop.
        on_operation: fault injection for tests.

    Raises:
        NotMergeable: the method has nothing to add to the base.
        ArtifactError: the merged function differs from the trained one; nothing is written.
    """
    import time

    import torch

    started = time.monotonic()
    tick("loading")
    kind = kind_of(run)
    if kind in ("recipe", "model") or (kind == "artefact" and (run / "config.json").is_file()):
        raise ArtifactError(f"{run}: is a {kind} that holds nothing to merge. Name a run, a checkpoint or an adapter.")
    target = open_target(run, dtype=torch.float32)
    record = target.record
    if record is None:
        raise AssertionError(f"a {kind} without a recipe")
    method = record.recipe.method
    if not method.mergeable:
        raise NotMergeable(f"{run}: method {method.name} cannot be merged into its base. Load it beside the base.")
    folder = (run / "merged" if out is None else out).absolute()
    _refuse_foreign(folder)
    tick("computing logits of the trained model")
    probes = _probe_ids(target)
    trained = [_logits(target.model, ids) for ids in probes]
    greedy = [_greedy(target.model, ids) for ids in probes]
    tick("merging")
    merged = method.merge(target.model)
    differences = [(a - b).abs() for a, b in zip([_logits(merged, ids) for ids in probes], trained, strict=True)]
    largest = max(float(d.max()) for d in differences)
    scale = max(1.0, max(float(logits.abs().max()) for logits in trained))
    if not largest <= EXACT * scale:
        raise ArtifactError(
            f"{run}: merged and trained logits differ by {largest:.2e}, more than {EXACT * scale:.0e}. "
            "Nothing was written."
        )
    chosen = torch_dtype(dtype) if dtype is not None else _published_dtype(target)
    cast_weights(merged, chosen)
    tick("writing")

    def write(temp: Path) -> None:
        write_artefact(merged, target.tokenizer, target.renderer.stop_ids, temp, _save_plain)
        _write_json(temp / SIDECAR, record_json(record.recipe, record.folder, record.base_fingerprint))
        tick("reading back")
        _compare_written(temp, merged)

    facts = {"merged_from": str(run.absolute()), "base": record.base_fingerprint}
    Store(folder.parent, on_operation).publish(folder.name, write, facts)
    tick("comparing")
    written = _open_plain(folder, torch.float32)
    rounded = [_logits(written, ids) for ids in probes]
    return MergeResult(
        folder=str(folder),
        base=record.recipe.model.name,
        dtype=str(chosen).removeprefix("torch."),
        max_difference=largest,
        mean_difference=sum(float(d.mean()) for d in differences) / len(differences),
        cast_max_difference=max(float((a - b).abs().max()) for a, b in zip(rounded, trained, strict=True)),
        token_agreement=_agreement(written, probes, greedy),
        sha256=sha256_of(next(iter(sorted(folder.glob("*.safetensors"))))),
        seconds=time.monotonic() - started,
    )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / SIDECAR).is_file() and any(folder.iterdir()):
        message = f"{folder} holds files that are no model of ftune. Choose another --out."
        raise RecipeError([Problem("", message, "--out")])


def _save_plain(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def _published_dtype(target: Target) -> torch.dtype:
    """The type the base was published in; fp32 for models built in code."""
    import torch

    from ftune.model import load_config
    from ftune.target import start_of

    if target.record is None:
        return torch.float32
    config = load_config(start_of(target.record.recipe.model, target.record.folder).base)
    return cast("torch.dtype", getattr(torch, str(config.dtype or "float32").removeprefix("torch.")))


def _probe_ids(target: Target) -> list[torch.Tensor]:
    import torch

    return [torch.tensor([target.renderer.prompt_ids(text)]) for text in PROBES]


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return cast("torch.Tensor", model(input_ids=ids, use_cache=False).logits.float())


def _greedy(model: torch.nn.Module, ids: torch.Tensor) -> list[int]:
    """Continuation without stopping, so that models are compared on equally many tokens."""
    import torch

    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, _logits(model, ids)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return [int(token) for token in ids[0, -NEW_TOKENS:]]


def _agreement(model: torch.nn.Module, probes: list[torch.Tensor], greedy: list[list[int]]) -> float:
    """Share of the trained model's greedy tokens that `model` also ranks first, given the same tokens before."""
    import torch

    hits = total = 0
    for ids, tokens in zip(probes, greedy, strict=True):
        whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
        chosen = _logits(model, whole)[0, ids.shape[1] - 1 : -1].argmax(dim=-1)
        hits += int((chosen == torch.tensor(tokens)).sum())
        total += len(tokens)
    return hits / total


def _compare_written(folder: Path, merged: torch.nn.Module) -> None:
    """Open the folder with plain transformers; every weight must be the one in memory.

    Raises:
        ArtifactError: one is not.
    """
    import torch

    read = _open_plain(folder, "auto").state_dict()
    for name, tensor in merged.state_dict().items():
        if name not in read or not torch.equal(read[name], tensor):
            raise ArtifactError(f"{folder}: weight {name} was not read back as it was written. Nothing is kept.")


def _open_plain(folder: Path, dtype: torch.dtype | Literal["auto"]) -> torch.nn.Module:
    """The folder as anybody opens it, without ftune."""
    from transformers import AutoModelForCausalLM

    return cast("torch.nn.Module", AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval())
