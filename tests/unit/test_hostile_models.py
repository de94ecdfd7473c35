"""Model folders that are damaged, or made to do harm: one clear error, and no code of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import plain_base
from laws import Shared, recipe, train

from ftune import builtin
from ftune.errors import FtuneError, exit_code_of

PAIRS = [{"prompt": f"{n} is", "completion": "ok"} for n in range(4)]
CHATS = [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "ok"}]} for n in range(4)]
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"


class Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def whole_model(shared: Shared, folder: Path) -> None:
    shutil.copytree(plain_base(shared, "llama"), folder)
    builtin.tokenizer().save_pretrained(folder)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_code(folder: Path, canary: Path, file: str, **values: Any) -> None:
    """Code beside the model, and a file that asks for it."""
    (folder / "evil.py").write_text(f"import os\nos.system('touch {canary}')\nclass Evil: pass\n")
    edit(folder / file, **values)


def weights(content: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def change(folder: Path, canary: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))

    return change


def replaced(name: str, text: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, canary: Path) -> None:
        (folder / name).write_text(text.replace("CANARY", str(canary)))

    return change


def pickled(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))

    return change


def outside(folder: Path, canary: Path) -> None:
    """Weights that an index looks for elsewhere."""
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../../../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def overlapping(data: bytes) -> bytes:
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    header = json.dumps({"model.embed_tokens.weight": entry, "lm_head.weight": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


EVIL = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
CASES: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    "pickled weights": (pickled("pytorch_model.bin"), 10),
    "pickled weights of another name": (pickled("model.pt"), 10),
    "code of a model": (lambda f, c: with_code(f, c, "config.json", auto_map=EVIL, model_type="evil"), 10),
    "code of a tokenizer": (
        lambda f, c: with_code(
            f, c, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil"
        ),
        10,
    ),
    "an index that leaves the folder": (outside, 4),
    "a header as long as a disk": (weights(lambda data: (2**40).to_bytes(8, "little") + data[8:]), 4),
    "a header of open brackets": (weights(lambda data: (10**6).to_bytes(8, "little") + b"{" * 10**6), 4),
    "tensors on top of each other": (weights(overlapping), 4),
    "half a file": (weights(lambda data: data[: len(data) // 2]), 4),
    "an empty file": (weights(lambda data: b""), 4),
    "text": (weights(lambda data: b"root:x:0:0:root:/root:/bin/bash\n" * 100), 4),
    "a configuration nested too deep": (replaced("config.json", "[" * 100_000), 4),
    "a tokenizer nested too deep": (replaced("tokenizer.json", '{"a":' * 50_000), 4),
    "a list for an object": (replaced("generation_config.json", "[1]"), 4),
    "no layers": (lambda f, c: edit(f / "config.json", num_hidden_layers=0), 2),
    "a template that reaches into Python": (replaced("chat_template.jinja", ESCAPE), 3),
    "a template that makes gigabytes": (replaced("chat_template.jinja", "{{ 'x' * 10 ** 10 }}"), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_no_code(tmp_path: Path, shared: Shared, name: str) -> None:
    change, code = CASES[name]
    canary, folder = tmp_path / "canary", tmp_path / "base"
    whole_model(shared, folder)
    change(folder, canary)
    with pytest.raises(FtuneError) as caught:
        train(recipe(tmp_path, rows=CHATS if "template" in name else PAIRS, model=str(folder), method="lora",
                     data={"template": None} if "template" in name else {}))  # fmt: skip
    assert exit_code_of(caught.value) == code, str(caught.value)
    assert len(str(caught.value).splitlines()) <= 10 and not canary.exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_code_that_nothing_asks_for_does_not_run(tmp_path: Path, shared: Shared) -> None:
    """A model of a known kind is loaded as that kind, whatever code lies beside it."""
    canary, folder = tmp_path / "canary", tmp_path / "base"
    whole_model(shared, folder)
    with_code(folder, canary, "config.json", auto_map=EVIL)
    assert train(recipe(tmp_path, rows=PAIRS, model=str(folder), method="lora"))["steps"] == 5
    assert not canary.exists()
