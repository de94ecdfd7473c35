"""Make a finished run the model that `builtin:starter` names: weights in bf16, tokenizer, nothing else.

python recipes/starter/pack.py runs/instruct_starter
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

LARGEST = 8 * 10**6
"""Bytes of the whole folder: it travels in every package."""
PACKAGED = Path(__file__).parents[2] / "ftune" / "starter"


def pack(model: Path, out: Path) -> dict[str, str]:
    """Write `out` from the model folder of a run; SHA-256 of each file.

    Raises:
        ValueError: it is larger than what a package should carry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    weights, words = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        AutoTokenizer.from_pretrained(model),
    )
    ends = [words.eos_token_id, words.convert_tokens_to_ids("<|im_end|>")]  # of a document, of a turn
    weights.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=words.pad_token_id)
    weights.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    words.save_pretrained(out)
    tokenizer = out / "tokenizer.json"  # transformers indents it: half of it would be blanks
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokenizer.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    files = sorted(path for path in out.iterdir() if path.suffix != ".md")
    if (size := sum(path.stat().st_size for path in out.iterdir())) > LARGEST:
        raise ValueError(f"{out} has {size:,} bytes; expected at most {LARGEST:,}")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Parse the command, pack, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of recipes/instruct_starter.yaml")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to write")
    options = parser.parse_args()
    for name, digest in pack(options.run / "model", options.out).items():
        print(digest, name)


if __name__ == "__main__":
    main()
