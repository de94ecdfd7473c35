"""What tests of methods share: tiny models of each family and head, a batch for each, and a few steps of training."""

from __future__ import annotations

from typing import Any

from ftune import builtin

HEADS = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "causal": "AutoModelForCausalLM",
}
FAMILIES = {
    "sequence": ("llama", "gpt2", "qwen3", "gemma3", "bert", "t5", "bart"),
    "token": ("llama", "gpt2", "qwen3", "bert", "t5"),
    "masked": ("bert",),
    "seq2seq": ("t5", "bart"),
    "causal": ("llama", "gpt2", "qwen3", "gemma3"),
}
"""Every head with the families that have a class for it in transformers 5."""
CELLS = [(head, family) for head, families in FAMILIES.items() for family in families]
LABELS = 5


def model(head: str, family: str, *, seed: int = 0, labels: int = LABELS, **settings: Any) -> Any:
    """A frozen model in evaluation mode. The body is always the same; `seed` draws the classification head."""
    import torch
    import transformers

    from ftune import targets

    config = builtin.config(family)
    config.num_labels = labels
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    built = getattr(transformers, HEADS[head]).from_config(config)
    torch.manual_seed(seed)
    for name in targets.head_modules(built):
        for parameter in built.get_submodule(name).parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return built.eval().requires_grad_(False)


def batch(head: str, family: str) -> dict[str, Any]:
    """Three rows of bytes, the middle one with pads on the right; 'a' and the first new token are among them."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 250, (3, 12), generator=generator)
    ids[:, 2], ids[:, 3], ids[:, 7] = 97, 263, 258  # T5 and BART read the state at the last EOS
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 256, 0
    found = {"input_ids": ids, "attention_mask": mask}
    if head == "seq2seq":
        found["decoder_input_ids"] = torch.randint(0, 250, (3, 7), generator=generator)
        found["decoder_input_ids"][:, 1:3] = torch.tensor([97, 263])
    return found


def logits(built: Any, inputs: dict[str, Any]) -> Any:
    """Logits in evaluation mode."""
    import torch

    with torch.no_grad():
        return built.eval()(**inputs).logits


def learn(built: Any, inputs: dict[str, Any], *, steps: int = 3, rate: float = 1e-2) -> None:
    """A few steps of AdamW towards class or token 1, after casting what learns to fp32 as runs do."""
    import torch

    learning = [parameter for parameter in built.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    built.train()
    for _ in range(steps):
        loss = -built(**inputs).logits.float().log_softmax(dim=-1)[..., 1].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    built.eval()


def distance(one: Any, other: Any) -> float:
    """Largest absolute difference."""
    return float((one.detach().float() - other.detach().float()).abs().max())
