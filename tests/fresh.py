"""Run as a script: open what others wrote in a process that has seen nothing, and write down its logits.

    python fresh.py '[{"kind": "transformers", "path": ..., "out": ...}, {"kind": "peft", "base": ..., ...}]'

Kinds: transformers (a plain model folder), peft (an adapter on a plain base), ftune (any TARGET). The first two must
not import ftune, so they come first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(jobs: list[dict[str, str]]) -> None:
    """Do all jobs in order."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    probe = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(7))
    for job in jobs:
        if job["kind"] == "ftune":
            from ftune.target import open_target

            model = open_target(Path(job["path"])).model
        else:
            from transformers import AutoModelForCausalLM

            assert "ftune" not in sys.modules
            folder = job["base"] if job["kind"] == "peft" else job["path"]
            model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            assert not any(report.values()), report
            if job["kind"] == "peft":
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, job["path"])
        with torch.no_grad():
            logits = model.eval()(input_ids=probe, use_cache=False).logits
        save_file({"logits": logits}, job["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
