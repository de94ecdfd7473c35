"""Cross-entropy of the tokens that are targets, without logits of all tokens.

A transformers model for language is a body, which makes a hidden state of each token, and a head, which makes V logits
of each hidden state. Here the model's class runs its own code twice, over a `_Seam` in the place of its body: once with
the body, to get the hidden states, and then without it, over a few targets at a time. So soft caps, scales, biases and
the layers before the logits are those of the class, whatever they are. `ftune.loss_trial` tries it on each model first.

    L(t) = (1 - e) (log sum_v exp z_v - z_y) + (e / V) sum_v (log sum_w exp z_w - z_v)     e: label smoothing
    dL/dz_v = p_v - (1 - e) [v = y] - e / V

Both come from one pass over the logits of a target; no more than `chunk` of them exist at once.

Tensors: B rows, T positions, N targets, C of them at once, D width, V outputs of the head.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import torch

    Places = tuple[torch.Tensor, ...]
    """Row and position of each target's prediction, int64 [N] both."""

BLOCK = {"cpu": 2**19}
"""Logits that are turned into probabilities at a time: so many stay in a processor's cache."""
ALL = 2**62
"""Elsewhere all of a chunk."""


def token_losses(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    places: Places,
    labels: torch.Tensor,
    *,
    chunk: int | None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """-log p(label) at each place, in fp32, [N].

    Args:
        model: a transformers model with a head over the vocabulary, or a wrapper around one that changes only layers.
        inputs: of the model's forward.
        places: where the predictions stand.
        labels: int64 [N].
        chunk: how many targets have logits at once; None makes logits [B, T, V] of every position.
        smoothing: share of the label's probability that is spread over all V.
    """
    from torch.nn.functional import cross_entropy

    if chunk is None:
        said = model(**inputs).logits[places].float()  # [N, V]
        return cross_entropy(said, labels, reduction="none", label_smoothing=smoothing)
    split = _Split(inner_model(model))
    hidden = split.hidden_states(inputs)[places]  # [N, D]
    return _by_chunks(_Task(split.logits, hidden, labels, smoothing, chunk), split.head_parameters())


def sums_of_rows(losses: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the losses [N] over the targets of each of `count` rows, [B]."""
    import torch

    return torch.zeros(count, device=losses.device).index_add(0, rows, losses)


def inner_model(model: torch.nn.Module) -> Any:
    """The transformers model with its head, inside what a method may have wrapped around it."""
    from transformers import PreTrainedModel

    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


# ---------------------------------------------------------------------------------------------------- body and head


class _Seam:
    """Where body and head meet: what stands in the body's place, and which hidden states the head is given."""

    def __init__(self, body: torch.nn.Module) -> None:
        self.body = body
        self.kind: Any = None
        self.seen: torch.Tensor | None = None
        self.given: torch.Tensor | None = None

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the body and let the head see one position of it, or pass on what is given."""
        if self.given is not None:
            return self.kind(last_hidden_state=self.given)
        output = self.body(*arguments, **keywords)
        self.kind, self.seen = type(output), output.last_hidden_state
        one = self.seen.detach()[0, 0]  # not [:1, :1], whose strides would make the head copy its weights
        output.last_hidden_state = one[None, None]
        return output


class _Split:
    """A model whose body and head can be run apart. The model itself is not changed.

    Raises:
        ValueError: the class keeps its body in no place that is known here.
    """

    def __init__(self, model: Any) -> None:
        if "forward" in vars(model):
            raise ValueError(f"the forward of {type(model).__name__} was replaced")
        name = _name_of_body(model)
        self._seam = _Seam(model.get_submodule(name))
        self._model = copy.copy(model)
        self._model._modules = {key: module for key, module in model._modules.items() if key != name}
        object.__setattr__(self._model, name, self._seam)
        self._pair = bool(model.config.is_encoder_decoder)

    def hidden_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """What the body makes of `inputs`, [B, T, D]."""
        self._seam.given = None
        self._model(**inputs)
        if self._seam.seen is None:
            raise ValueError(f"{type(self._model).__name__} goes around its body")
        return self._seam.seen

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head makes of hidden states: [C, D] -> [1, C, V]."""
        from transformers.modeling_outputs import BaseModelOutput

        self._seam.given = hidden[None]
        encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[None])} if self._pair else {}
        said: torch.Tensor = self._model(**encoded).logits
        return said

    def head_parameters(self) -> list[torch.nn.Parameter]:
        """What learns outside the body; the embeddings too where the head is tied to them."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]


def _name_of_body(model: Any) -> str:
    """Name of the child whose hidden states the head reads: the whole body, or the decoder beside an encoder (T5).

    Raises:
        ValueError: there is none.
    """
    for body in (model.base_model, model.get_decoder()):
        for name, child in model.named_children():
            if child is body:
                return str(name)
    raise ValueError(f"{type(model).__name__} has no body apart from its head")


# ------------------------------------------------------------------------------------------------------------- chunks


class _Task(NamedTuple):
    """What is to be computed: head, hidden states [N, D], labels [N], label smoothing, targets at once."""

    head: Callable[[torch.Tensor], torch.Tensor]
    hidden: torch.Tensor
    labels: torch.Tensor
    smoothing: float
    chunk: int


class _Slopes(NamedTuple):
    """Derivatives of the sum of the losses: of the hidden states, [N, D], and of the head's parameters."""

    hidden: torch.Tensor | None
    parameters: list[torch.Tensor | None]


def _by_chunks(task: _Task, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Losses [N], with their gradient where one is wanted: it is made at once, while the logits are there."""
    import torch

    if not (torch.is_grad_enabled() and (task.hidden.requires_grad or parameters)):
        with torch.no_grad():
            return _losses_and_slopes(task, [], None)[0]
    losses, slopes = _losses_and_slopes(task, parameters, None)
    used = [(p, slope) for p, slope in zip(parameters, slopes.parameters, strict=True) if slope is not None]
    learning = [parameter for parameter, _ in used]
    known = _Slopes(slopes.hidden, [slope for _, slope in used])
    return _attached(losses, task, learning, known)


def _losses_and_slopes(
    task: _Task, parameters: Sequence[torch.nn.Parameter], weights: torch.Tensor | None
) -> tuple[torch.Tensor, _Slopes]:
    """Losses [N], and the derivatives of their sum, or of their sum under `weights` [N]."""
    import torch

    hidden = task.hidden.detach()
    wanted = torch.is_grad_enabled()
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    of_hidden = torch.empty_like(hidden) if wanted and task.hidden.requires_grad else None
    of_parameters: list[torch.Tensor | None] = [None] * len(parameters)
    for start in range(0, max(len(hidden), 1), task.chunk):  # one pass even without targets: gradients of zero
        rows = slice(start, start + task.chunk)
        given = hidden[rows].requires_grad_(of_hidden is not None)
        logits = task.head(given)
        # a view of them that autograd knows would pass its gradient on through zeros as large, as their values change
        values = logits.detach()[0]
        with torch.no_grad():
            losses[rows] = _into_slopes(values, task.labels[rows], task.smoothing, wanted)
            if wanted and weights is not None:
                values.mul_(weights[rows, None])
        if wanted:
            leaves = [*([given] if of_hidden is not None else []), *parameters]
            found = list(_gradients(logits, leaves))
            if of_hidden is not None:
                of_hidden[rows] = cast("torch.Tensor", found.pop(0))
            of_parameters = [_added(old, new) for old, new in zip(of_parameters, found, strict=True)]
    return losses, _Slopes(of_hidden, of_parameters)


def _gradients(logits: torch.Tensor, leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    """Of each leaf, from the slopes that stand in the memory of `logits`, [1, C, V]; None where it took no part."""
    import torch

    with torch.autocast(logits.device.type, enabled=False):  # backward runs in the types that forward ran in
        return torch.autograd.grad(logits, leaves, logits.detach(), allow_unused=True)


def _added(old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    return new if old is None else old if new is None else old.add_(new)


def _into_slopes(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, slopes: bool) -> torch.Tensor:
    """Losses [C] in fp32; with `slopes`, dL/dz is left in the place of the logits [C, V], in their type."""
    import torch

    count, width = logits.shape
    losses = torch.empty(count, dtype=torch.float32, device=logits.device)
    size = max(1, BLOCK.get(logits.device.type, ALL) // width)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        log_p = torch.log_softmax(logits[rows].float(), dim=1)
        losses[rows] = -(1 - smoothing) * log_p.gather(1, labels[rows, None])[:, 0]
        if smoothing:
            losses[rows] -= smoothing * log_p.mean(dim=1)
        if slopes:
            slope = log_p.exp_()
            if smoothing:
                slope -= smoothing / width
            slope.scatter_add_(1, labels[rows, None], slope.new_full((len(slope), 1), smoothing - 1))
            logits[rows] = slope
    return losses


def _attached(losses: torch.Tensor, task: _Task, learning: list[torch.nn.Parameter], known: _Slopes) -> torch.Tensor:
    """`losses` as a function of the hidden states and of what learns in the head, whose derivatives are known."""
    attached: torch.Tensor = _known_function().apply(losses, [known], task, task.hidden, *learning)
    return attached


@functools.cache
def _known_function() -> Any:
    """A function of autograd with its derivatives at hand; made once, since torch is not imported with this file."""
    import torch

    class Known(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, losses: torch.Tensor, known: list[_Slopes], task: _Task, hidden: torch.Tensor, *learning: Any
        ) -> torch.Tensor:
            ctx.known, ctx.task, ctx.learning = known, task, learning
            return losses.clone()

        @staticmethod
        def backward(ctx: Any, weights: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            slopes = ctx.known.pop()  # once, so that its memory can be used for the result
            of_hidden, of_parameters = slopes.hidden, slopes.parameters
            if of_hidden is not None:
                of_hidden = of_hidden * weights[:, None].to(of_hidden.dtype)
            if of_parameters and len(weights) and bool((weights != weights[0]).any()):
                with torch.enable_grad():  # derivatives of a sum tell nothing of its parts
                    of_parameters = _losses_and_slopes(ctx.task, ctx.learning, weights)[1].parameters
            elif len(weights):
                of_parameters = [None if slope is None else slope.mul_(weights[0]) for slope in of_parameters]
            return None, None, None, of_hidden, *of_parameters

    return Known
