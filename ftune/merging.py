"""Merge a run's weights into its base, write a plain transformers folder, and prove that it is the same function."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ftune.base import load_config
from ftune.device import torch_dtype
from ftune.errors import ArtifactError, Problem, RecipeError
from ftune.finish import _write_json, write_artefact
from ftune.manifest import sha256_of
from ftune.memory import Dtype
from ftune.methods import Method
from ftune.model import auto_class, cast_weights
from ftune.objectives import Head
from ftune.start import SIDECAR, Record, checked_start, load_start, record_json, start_of
from ftune.store import OnOperation, Store
from ftune.target import Target, kind_of, open_target
from ftune.witness import Witness

if TYPE_CHECKING:
    import torch

BaseWeights = Literal["dequantized", "original"]
EXACT = 1e-5
"""Largest logit difference, relative to the largest logit, between the merged and the trained function in fp32."""


@dataclass(frozen=True)
class MergeResult:
    """What was merged and how close it came.

    Args:
        folder: the plain model.
        base: the model it was merged into.
        base_weights: `published`; of a quantised base `dequantized`, what was trained on, or `original`.
        opens_with: transformers' auto class.
        dtype: type of the weights written.
        max_difference, mean_difference: of logits on probe text in fp32, merged against what was merged: the trained
            function, or with `original` the adapter on the original base.
        drift: largest difference to the trained function; that of rounding where the base was quantised.
        cast_max_difference: the same once the weights are in `dtype`; rounding, not error.
        token_agreement: share of greedy tokens on probe text that the written model and the trained one agree on.
        sha256: of the weights file.
        seconds: wall time.
    """

    folder: str
    base: str
    base_weights: str
    opens_with: str
    dtype: str
    max_difference: float
    mean_difference: float
    drift: float
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
    base: BaseWeights | None = None,
    on_operation: OnOperation | None = None,
) -> MergeResult:
    """Merge what `run` learned into its base, in fp32 and cast last; nothing appears before it was read back.

    Args:
        run: TARGET.
        out: the folder to write; None is `merged` inside the run.
        dtype: type of the written weights; None takes the base's own.
        tick: told what is going on; may raise to stop.
        base: of a quantised model, the weights to merge into; None is `dequantized`, the function that was trained.
        on_operation: fault injection for tests.

    Raises:
        NotMergeable: the method has nothing to add to the base.
        ArtifactError: the merged function differs from the trained one; nothing is written.
    """
    import torch

    started = time.monotonic()
    tick("loading")
    target, record = _open_mergeable(run, base)
    folder = (run / "merged" if out is None else out).absolute()
    _refuse_foreign(folder)
    tick("computing logits of the trained model")
    witness = trained = Witness.of(target, record)
    method = record.recipe.learner
    if base == "original":
        tick("loading the original base")
        method, target = _on_original(run, target, record)
        witness = Witness.of(target, record)
    tick("merging")
    merged = method.merge(target.model)
    differences, drift = _checked(run, witness, merged), trained.differences(merged)
    chosen = torch_dtype(dtype) if dtype is not None else _published_dtype(record)
    cast_weights(merged, chosen)
    tick("writing")
    _write(merged, target, record, folder, {"merged_from": str(run.absolute())}, tick, on_operation)
    tick("comparing")
    written = _open_plain(folder, torch.float32, record.head(target.tokenizer))
    return MergeResult(
        folder=str(folder),
        base=record.recipe.model.name,
        base_weights="published" if record.recipe.learner.quantised_bits is None else base or "dequantized",
        opens_with=_auto_class(folder, record.head(target.tokenizer)).__name__,
        dtype=str(chosen).removeprefix("torch."),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        drift=float(drift.max()),
        cast_max_difference=float(witness.differences(written).max()),
        token_agreement=trained.agreement(written),
        sha256=sha256_of(next(iter(sorted(folder.glob("*.safetensors"))))),
        seconds=time.monotonic() - started,
    )


def _checked(run: Path, witness: Witness, merged: torch.nn.Module) -> torch.Tensor:
    """Differences of logits, merged against what was merged.

    Raises:
        ArtifactError: they are more than rounding.
    """
    differences = witness.differences(merged)
    limit = EXACT * max(1.0, witness.largest)
    if not float(differences.max()) <= limit:  # also when it is no number
        found = f"merged and trained logits differ by {float(differences.max()):.2e}, more than {limit:.0e}"
        raise ArtifactError(f"{run}: {found}. Nothing was written.")
    return differences


def _open_mergeable(run: Path, base: BaseWeights | None) -> tuple[Target, Record]:
    """The trained model in fp32, and its recipe."""
    import torch

    kind = kind_of(run)
    if kind in ("recipe", "model") or (kind == "artefact" and (run / "config.json").is_file()):
        raise ArtifactError(f"{run}: is a {kind} that holds nothing to merge. Name a run, a checkpoint or an adapter.")
    target = open_target(run, dtype=torch.float32)
    if target.record is None:
        raise AssertionError(f"a {kind} without a recipe")
    method = target.record.recipe.learner
    if not method.mergeable:
        method.merge(target.model)  # raises, and says why
    if base is not None and method.quantised_bits is None:
        message = f"has no effect: the base of method {method.name} is not quantised. Leave it out."
        raise RecipeError([Problem("", message, "--base")])
    return target, target.record


def _on_original(run: Path, target: Target, record: Record) -> tuple[Method, Target]:
    """The adapter on the base as it was published, which is another function than the one that was trained.

    Raises:
        NotMergeable: the adapter holds what quantisation took away.
    """
    import torch

    folder = run / "model" if kind_of(run) == "run" else run
    if not (folder / SIDECAR).is_file():
        raise ArtifactError(f"{run}: --base original needs a finished run or its model/ folder.")
    plain = record.recipe.learner.on_original_base()
    head = record.head(target.tokenizer)
    model = load_start(checked_start(record, run), head, torch.float32, record.recipe.seed, plain)
    return plain, replace(target, model=plain.load(model, folder).eval())


def _auto_class(folder: Path, head: Head) -> Any:
    """What anybody opens the folder with, without ftune."""
    from transformers import AutoConfig

    return auto_class(head, AutoConfig.from_pretrained(folder))


def _write(
    merged: torch.nn.Module,
    target: Target,
    record: Record,
    folder: Path,
    facts: dict[str, Any],
    tick: Callable[[str], None],
    on_operation: OnOperation | None,
) -> None:
    """Publish the folder once it has been read back equal."""
    disk = Store(folder.parent, on_operation)
    disk.sweep(folder.name)  # of a merge that was killed
    disk.require_space(sum(p.numel() * p.element_size() for p in merged.parameters()), "the merged model")

    def write(temp: Path) -> None:
        write_artefact(merged, target.tokenizer, target.renderer.stop_ids, temp, _save_plain)
        _write_json(temp / SIDECAR, record_json(record))
        tick("reading back")
        _compare_written(temp, merged, record.head(target.tokenizer))

    disk.publish(folder.name, write, {**facts, "base": record.base_fingerprint})


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / SIDECAR).is_file() and any(folder.iterdir()):
        message = f"{folder} holds files that are no model of ftune. Choose another --out."
        raise RecipeError([Problem("", message, "--out")])


def _save_plain(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def _published_dtype(record: Record) -> torch.dtype:
    """The type the base was published in; fp32 for models built in code."""
    import torch

    config = load_config(start_of(record.recipe.model, record.folder, record.base_fingerprint).base)
    return cast("torch.dtype", getattr(torch, str(config.dtype or "float32").removeprefix("torch.")))


def _compare_written(folder: Path, merged: torch.nn.Module, head: Head) -> None:
    """Open the folder with plain transformers; every weight must be the one in memory.

    Raises:
        ArtifactError: one is not.
    """
    import torch

    read = _open_plain(folder, "auto", head).state_dict()
    for name, tensor in merged.state_dict().items():
        if name not in read or not torch.equal(read[name], tensor):
            raise ArtifactError(f"{folder}: weight {name} was not read back as it was written. Nothing is kept.")


def _open_plain(folder: Path, dtype: torch.dtype | Literal["auto"], head: Head) -> torch.nn.Module:
    """The folder as anybody opens it, without ftune."""
    return cast("torch.nn.Module", _auto_class(folder, head).from_pretrained(folder, dtype=dtype).eval())
