"""The artefact of `feature_based`: one folder that predicts by itself.

`body/` is a plain transformers folder for AutoModel, whose configuration names the labels. `head.safetensors` has the
weights of the head with `mean` and `deviation`. `feature_based.json` says which layers are read and how they are
pooled, and has the shape of the head, the settings and the notes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftune.errors import ArtifactError
from ftune.methods._feature_model import POOLINGS, TOKEN, Reading, build, build_head, num_layers_of, width_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BODY, HEAD, CONFIG = "body", "head.safetensors", "feature_based.json"
FORMAT = 1


def write(model: Any, folder: Path, settings: dict[str, Any]) -> None:
    """Write body, head and what was chosen into the existing `folder`."""
    from safetensors.torch import save_file

    body, head = model.body, model.head
    weights = {name: tensor.detach() for name, tensor in body.state_dict().items()}
    body.save_pretrained(folder / BODY, state_dict=_narrowed(weights))
    save_file(_learned(model), folder / HEAD, metadata={"format": "pt"})
    chosen = {
        "format": FORMAT,
        "layers": list(model.reading.layers),
        "pooling": model.reading.pooling,
        "hidden": head.hidden.out_features if hasattr(head, "hidden") else None,
        "labels": [body.config.id2label[number] for number in range(head.output.out_features)],
        "settings": settings,
        "notes": model.notes,
    }
    with (folder / CONFIG).open("w", encoding="utf-8") as file:
        file.write(json.dumps(chosen, indent=2, ensure_ascii=False) + "\n")


def _narrowed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in the half precision that holds every one of them exactly, as published models are; else as is."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(not t.is_floating_point() or torch.equal(t.to(dtype).to(t.dtype), t) for t in weights.values()):
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
    return weights


def _learned(model: Any) -> dict[str, torch.Tensor]:
    """Tensors of everything but the body, on the CPU."""
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("body.")}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def put_head(body: PreTrainedModel, folder: Path) -> Any:
    """The model in `folder` around its body, in evaluation mode; nothing of it learns.

    Raises:
        ArtifactError: a file is missing or damaged, or a weight is missing, unexpected or of another shape.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        chosen = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        reading = Reading(tuple(map(int, chosen["layers"])), str(chosen["pooling"]))
        hidden, outputs = chosen["hidden"], len(chosen["labels"])
        weights = load_file(folder / HEAD)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        message = f"{folder}: the head cannot be read: {error!r}. It is damaged or not of method feature_based."
        raise ArtifactError(message) from error
    last = num_layers_of(body)
    if reading.pooling not in (*POOLINGS, TOKEN) or not all(0 <= layer <= last for layer in reading.layers):
        raise ArtifactError(f"{folder / CONFIG}: {reading} does not fit a body with {last} layers. It is damaged.")
    model = build(body, build_head(width_of(body) * len(reading.layers), outputs, hidden, dropout=0.0), reading)
    model.notes = dict(chosen["notes"])
    wanted = _learned(model)
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} is {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        raise ArtifactError(
            f"{folder / HEAD}: does not fit {CONFIG}. Missing: {missing or 'none'}, unexpected: "
            f"{unexpected or 'none'}, of another shape: {shapes or 'none'}. Take the folder as it was written."
        )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in weights:
                tensor.copy_(weights[name])
    return model.requires_grad_(False).eval()


def load_features_model(folder: str | Path, dtype: torch.dtype | None = None) -> Any:
    """Open an artefact of method `feature_based`: a model from token ids to logits, in evaluation mode.

    It is called as `model(input_ids=..., attention_mask=...)` and has `logits` in its result and labels in
    `config.id2label`. The tokenizer is in the same folder.

    Args:
        folder: `model/` of a run.
        dtype: of the body; None is fp32. The head is always fp32.

    Raises:
        ArtifactError: the folder is none, not whole, or damaged.
    """
    import torch
    from transformers import AutoModel

    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder}: holds no {CONFIG}, so it is no artefact of method feature_based.")
    try:
        body, report = AutoModel.from_pretrained(
            folder / BODY, dtype=dtype or torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / BODY}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        raise ArtifactError(f"{folder / BODY}: has no weights for {sorted(report['missing_keys'])[:3]}. It is damaged.")
    return put_head(body, folder)
