"""Strike one trainer: kills, damage, full disks, two at once. `python durable.py TRAINER SETTINGS.json RESULTS.jsonl`

Everything heavy is imported once; each training is a forked child, so that hundreds of them take minutes. TRAINER is
`hf` (transformers' Trainer), `trl` (SFTTrainer) or `ftune`. Each is used as its documentation says: the same command is
given again, which goes on from the last checkpoint that the trainer itself finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
STEPS, EVERY = 12, 3
"""Optimizer steps of a run, and between checkpoints."""
SAME, OTHER, FAILED = "same weights", "other weights", "does not go on"


class Trainer:
    """How one trainer is started again and again on a folder, and where it leaves its result."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.work = Path(settings["work"])

    def train(self, out: Path) -> None:
        """In a child: go on from the newest checkpoint, if there is one, to the end."""
        raise NotImplementedError

    def result(self, out: Path) -> Path:
        """What the run was for."""
        return out / "final" / "adapter_model.safetensors"

    def checkpoints(self, out: Path) -> list[Path]:
        """Oldest first."""
        return sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))

    def forget_the_end(self, out: Path) -> None:
        """As if the run had ended before its last checkpoint."""
        shutil.rmtree(out / "final")
        shutil.rmtree(self.checkpoints(out)[-1])


class Huggingface(Trainer):
    """transformers' Trainer with a peft adapter, gone on with as its examples do: `get_last_checkpoint`."""

    def arguments(self, out: Path) -> dict[str, Any]:
        return {
            "output_dir": str(out), "max_steps": STEPS, "save_steps": EVERY, "save_total_limit": 3, "seed": 0,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
            "logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True,
        }  # fmt: skip

    def train(self, out: Path) -> None:
        from transformers.trainer_utils import get_last_checkpoint

        trainer = self.build(out)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None)
        trainer.save_model(str(out / "final"))

    def build(self, out: Path) -> Any:
        from datasets import Dataset
        from peft import LoraConfig, get_peft_model
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
            DataCollatorForSeq2Seq,
            TrainingArguments,
            set_seed,
        )
        from transformers import Trainer as HuggingfaceTrainer

        set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(self.settings["model"])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        texts = [row["prompt"] + row["completion"] for row in self.settings["rows"]]
        encoded = [tokenizer(text)["input_ids"] for text in texts]
        rows = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in encoded])
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(self.settings["model"]), LoraConfig(**LORA))
        return HuggingfaceTrainer(
            model=model, args=TrainingArguments(**self.arguments(out)), train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        )  # fmt: skip


class Trl(Huggingface):
    """TRL's SFTTrainer, on the same rows."""

    def build(self, out: Path) -> Any:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import set_seed
        from trl import SFTConfig, SFTTrainer

        set_seed(0)
        return SFTTrainer(
            model=self.settings["model"],
            args=SFTConfig(**self.arguments(out), gradient_checkpointing=False, bf16=False),
            train_dataset=Dataset.from_list(self.settings["rows"]), peft_config=LoraConfig(**LORA),
        )  # fmt: skip


class Ftune(Trainer):
    """`ftune train`."""

    def train(self, out: Path) -> None:
        from ftune.__main__ import main

        os.sched_getaffinity = lambda pid: {0}  # type: ignore[assignment]  # plan for one thread, as the others have
        recipe = out.parent / f"{out.name}.yaml"
        (self.work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.settings["rows"]))
        rows = str(self.work / "rows.jsonl")
        recipe.write_text(json.dumps({
            "model": self.settings["model"], "data": {"train": rows, "template": "{{ prompt }}"},
            "method": {"name": "lora", "rank": LORA["r"], "alpha": LORA["lora_alpha"], "dropout": LORA["lora_dropout"]},
            "train": {"duration": f"{STEPS} steps", "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2},
            "checkpoint": {"every": EVERY, "keep": 3}, "output_dir": str(out),
        }))  # fmt: skip
        sys.argv = ["ftune", "train", str(recipe), "--quiet", "--offline"]
        main()

    def result(self, out: Path) -> Path:
        return out / "model" / "adapter_model.safetensors"

    def checkpoints(self, out: Path) -> list[Path]:
        return sorted((out / "checkpoints").glob("step_*"))

    def forget_the_end(self, out: Path) -> None:
        (out / "report.json").unlink()
        shutil.rmtree(out / "model")
        shutil.rmtree(self.checkpoints(out)[-1])


TRAINERS = {"hf": Huggingface, "trl": Trl, "ftune": Ftune}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


class Arena:
    """A trainer, what it gives when nothing strikes it, and how long that takes."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.draw = trainer, random.Random(0)
        self.out = trainer.work / "out"
        began = time.monotonic()
        code, said = self.run()
        assert code == 0, said
        self.seconds = time.monotonic() - began
        self.expected = self.hash()
        self.finished = self.out.rename(trainer.work / "finished")

    def hash(self) -> str | None:
        path = self.trainer.result(self.out)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def start(self, die_at: int = 0) -> int:
        """Fork a training; returns its pid. `die_at`: killed when it opens that file of its folder to write into it."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            output = os.open(self.trainer.work / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.addaudithook(_counting(str(self.out), die_at, self.trainer.work / "opened"))
            self.trainer.train(self.out)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, die_at: int = 0) -> tuple[int, str]:
        """A training to its end: exit code, or minus the signal, and what it printed."""
        return self.wait(self.start(die_at))

    def wait(self, pid: int) -> tuple[int, str]:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, (self.trainer.work / "said.txt").read_text("utf-8", "replace")

    def again(self) -> str:
        """Give the same command again; what came of it."""
        code, _ = self.run()
        if code != 0:
            return FAILED
        return SAME if self.hash() == self.expected else OTHER

    def fresh(self, finished: bool = False) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if finished:
            shutil.copytree(self.finished, self.out)


def _counting(folder: str, die_at: int, counted: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that counts the files under `folder` that are opened for writing, and dies at one of them."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event != "open" or not isinstance(arguments[0], str) or not arguments[0].startswith(folder):
            return
        mode, flags = arguments[1], arguments[2]
        if not ((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not set(mode or "") & set("wax+"):
            return
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not die_at:
            descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, str(count).encode())
            os.close(descriptor)

    return hook


def killed_at_random(arena: Arena, trials: int) -> Counter[str]:
    """SIGKILL at a random instant, then the same command again."""
    found: Counter[str] = Counter()
    while found.total() < trials:
        arena.fresh()
        pid = arena.start()
        time.sleep(arena.draw.uniform(0, arena.seconds))
        os.kill(pid, signal.SIGKILL)
        if arena.wait(pid)[0] == -signal.SIGKILL:
            found[arena.again()] += 1
    return found


def killed_while_writing(arena: Arena, trials: int) -> Counter[str]:
    """SIGKILL as each file of the run is opened for writing, or at `trials` of them."""
    found: Counter[str] = Counter()
    total = int((arena.trainer.work / "opened").read_text())
    for number in sorted(arena.draw.sample(range(1, total + 1), min(trials, total))):
        arena.fresh()
        if arena.run(number)[0] == -signal.SIGKILL:
            found[arena.again()] += 1
    return found


def damaged(arena: Arena, damage: Callable[[Path], None]) -> str:
    """Damage the newest checkpoint of a run that has a step left to go."""
    arena.fresh(finished=True)
    arena.trainer.forget_the_end(arena.out)
    damage(arena.trainer.checkpoints(arena.out)[-1])
    return arena.again()


def bits_flipped(arena: Arena, trials: int) -> Counter[str]:
    """One bit of one file of weights or of the optimizer is another."""

    def flip(folder: Path) -> None:
        names = ("adapter_model.safetensors", "optimizer.pt", "weights.safetensors", "optimizer.safetensors")
        path = arena.draw.choice(sorted(folder / name for name in names if (folder / name).is_file()))
        data = bytearray(path.read_bytes())
        data[arena.draw.randrange(len(data))] ^= 1 << arena.draw.randrange(8)
        path.write_bytes(data)

    return Counter(damaged(arena, flip) for _ in range(trials))


def files_missing(arena: Arena, trials: int) -> Counter[str]:
    """Each file of the checkpoint is gone, in turn."""
    whole = arena.trainer.checkpoints(arena.finished)[-2]
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    return Counter(damaged(arena, lambda folder, name=name: (folder / name).unlink()) for name in names[:trials])  # type: ignore[misc]


def disks_full(arena: Arena, trials: int) -> Counter[str]:
    """A disk of 0.5 to 3 checkpoints; it is enlarged, and the same command given again."""
    found: Counter[str] = Counter()
    if os.geteuid() != 0:
        return Counter({"not tried, for only root may mount a disk": trials})
    size = sum(path.stat().st_size for path in arena.trainer.checkpoints(arena.finished)[-1].rglob("*"))
    for trial in range(trials):
        arena.fresh()
        arena.out.mkdir()
        bytes_ = int(size * (0.5 + 2.5 * trial / max(1, trials - 1)))
        with _small_disk(arena.out, bytes_):
            code, _ = arena.run()
            if code == 0:
                found["it was enough"] += 1
                continue
            subprocess.run(["mount", "-o", "remount,size=1g", str(arena.out)], check=True)
            found[arena.again()] += 1
    return found


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def two_at_once(arena: Arena, trials: int) -> Counter[str]:
    """The same command twice at the same time."""
    found: Counter[str] = Counter()
    for _ in range(trials):
        arena.fresh()
        pids = [arena.start(), arena.start()]
        codes = sorted(arena.wait(pid)[0] for pid in pids)
        ran = codes.count(0)
        found["one was refused" if ran == 1 else "both trained" if ran == 2 else "none finished"] += 1
    return found


CASES = {
    "killed at random": (killed_at_random, 30), "killed while writing": (killed_while_writing, 40),
    "a bit flipped": (bits_flipped, 50), "a file missing": (files_missing, 20), "disk full": (disks_full, 10),
    "two at once": (two_at_once, 5),
}  # fmt: skip


def main() -> None:
    name, settings, results = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    trainer = TRAINERS[name](json.loads(Path(settings).read_text(encoding="utf-8")))
    import peft  # noqa: F401 - once, for all children
    import torch  # noqa: F401
    import transformers  # noqa: F401

    arena = Arena(trainer)
    for case, (strike, trials) in CASES.items():
        began = time.monotonic()
        outcomes = strike(arena, max(1, int(trials * trainer.settings["share"])))
        line = {"trainer": name, "case": case, "outcomes": dict(outcomes), "seconds": time.monotonic() - began}
        with Path(results).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
