"""What a model says to probe texts, to hold another against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ftune.start import Record
from ftune.target import Target

if TYPE_CHECKING:
    import torch

PROBES = ("The quick brown fox jumps over the lazy dog.", "1 + 1 = 2, and 12 * 12 = 144.", "def f(x):\n    return x")


NEW_TOKENS = 16


@dataclass(frozen=True)
class Witness:
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
    def of(cls, target: Target, record: Record) -> Witness:
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
