"""Merge a run's weights into its base, write a plain transformers folder, and prove that it is the same function."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ftune.device import torch_dtype
from ftune.errors import ArtifactError, NotMergeable, Problem, RecipeError
from ftune.finish import _write_json, write_artefact
from ftune.manifest import sha256_of
from ftune.model import auto_class, cast_weights, load_config
from ftune.objectives import Head
from ftune.plan import Dtype
from ftune.store import OnOperation, Store
from ftune.target import SIDECAR, Record, Target, kind_of, open_target, record_json, start_of

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
    import torch

    started = time.monotonic()
    tick("loading")
    target, record = _open_mergeable(run)
    folder = (run / "merged" if out is None else out).absolute()
    _refuse_foreign(folder)
    tick("computing logits of the trained model")
    witness = _Witness.of(target, record)
    tick("merging")
    merged = record.recipe.learner.merge(target.model)
    differences = witness.differences(merged)
    limit = EXACT * max(1.0, witness.largest)
    if not float(differences.max()) <= limit:  # also when it is no number
        found = f"merged and trained logits differ by {float(differences.max()):.2e}, more than {limit:.0e}"
        raise ArtifactError(f"{run}: {found}. Nothing was written.")
    chosen = torch_dtype(dtype) if dtype is not None else _published_dtype(record)
    cast_weights(merged, chosen)
    tick("writing")
    _write(merged, target, record, folder, {"merged_from": str(run.absolute())}, tick, on_operation)
    tick("comparing")
    written = _open_plain(folder, torch.float32, record.head(target.tokenizer))
    return MergeResult(
        folder=str(folder),
        base=record.recipe.model.name,
        dtype=str(chosen).removeprefix("torch."),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        cast_max_difference=float(witness.differences(written).max()),
        token_agreement=witness.agreement(written),
        sha256=sha256_of(next(iter(sorted(folder.glob("*.safetensors"))))),
        seconds=time.monotonic() - started,
    )


def _open_mergeable(run: Path) -> tuple[Target, Record]:
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
    return target, target.record


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
    disk.require_space(sum(p.numel() * p.element_size() for p in merged.parameters()), "the merged model")

    def write(temp: Path) -> None:
        write_artefact(merged, target.tokenizer, target.renderer.stop_ids, temp, _save_plain)
        _write_json(temp / SIDECAR, record_json(record))
        tick("reading back")
        _compare_written(temp, merged, record.head(target.tokenizer))

    disk.publish(folder.name, write, {**facts, "base": record.base_fingerprint})


@dataclass(frozen=True)
class _Witness:
    """What the trained model says to probe texts, to hold others against.

    Args:
        ids: token ids of each text, [1, T].
        logits: of each text in fp32, [1, T, V], or [1, K] of a head over the row.
        greedy: how each goes on, `NEW_TOKENS` ids; None where the model does not predict the next token.
    """

    ids: list[torch.Tensor]
    logits: list[torch.Tensor]
    greedy: list[list[int]] | None

    @classmethod
    def of(cls, target: Target, record: Record) -> _Witness:
        """Ask the target."""
        import torch

        continues = record.recipe.objective.encoding == "next_token"
        tokens = target.renderer.prompt_ids if continues else target.renderer.encoder_ids
        ids = [torch.tensor([tokens(text)]) for text in PROBES]
        greedy = [_greedy(target.model, x) for x in ids] if continues else None
        return cls(ids, [_logits(target.model, x) for x in ids], greedy)

    @property
    def largest(self) -> float:
        """Largest absolute logit."""
        return max(float(logits.abs().max()) for logits in self.logits)

    def differences(self, model: torch.nn.Module) -> torch.Tensor:
        """|logit - trained logit| of every text, position and token, in one row."""
        import torch

        pairs = zip(self.ids, self.logits, strict=True)
        return torch.cat([(_logits(model, ids) - logits).abs().flatten() for ids, logits in pairs])

    def agreement(self, model: torch.nn.Module) -> float:
        """Share of the tokens or labels the trained model ranks first that `model` also does; of greedy ones if any."""
        import torch

        hits = total = 0
        if self.greedy is None:
            firsts = [
                (_logits(model, x).argmax(-1) == y.argmax(-1)) for x, y in zip(self.ids, self.logits, strict=True)
            ]
            return float(torch.cat([same.flatten() for same in firsts]).float().mean())
        for ids, tokens in zip(self.ids, self.greedy, strict=True):
            whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
            chosen = _logits(model, whole)[0, ids.shape[1] - 1 : -1].argmax(dim=-1)
            hits += int((chosen == torch.tensor(tokens)).sum())
            total += len(tokens)
        return hits / total


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / SIDECAR).is_file() and any(folder.iterdir()):
        message = f"{folder} holds files that are no model of ftune. Choose another --out."
        raise RecipeError([Problem("", message, "--out")])


def _save_plain(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def _published_dtype(record: Record) -> torch.dtype:
    """The type the base was published in; fp32 for models built in code."""
    import torch

    config = load_config(start_of(record.recipe.model, record.folder).base)
    return cast("torch.dtype", getattr(torch, str(config.dtype or "float32").removeprefix("torch.")))


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    import torch

    writes = model.config.is_encoder_decoder and model.get_output_embeddings() is not None  # type: ignore
    more: dict[str, Any] = {"decoder_input_ids": ids, "use_cache": False} if writes else {}
    with torch.no_grad():
        return cast("torch.Tensor", model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits.float())


def _greedy(model: torch.nn.Module, ids: torch.Tensor) -> list[int]:
    """Continuation without stopping, so that models are compared on equally many tokens."""
    import torch

    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, _logits(model, ids)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return [int(token) for token in ids[0, -NEW_TOKENS:]]


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
    from transformers import AutoConfig

    kind = auto_class(head, AutoConfig.from_pretrained(folder))
    return cast("torch.nn.Module", kind.from_pretrained(folder, dtype=dtype).eval())
