"""The data path on a large file: peak memory, and speed beside the bare call of the tokenizer.

    python tests/bench/data_path.py [--megabytes 1000] [--threads 2] [--kind pairs]

Makes JSON lines of about 150 tokens and trains a tokenizer on some of them. Then a fresh process reads, renders,
tokenises and writes all rows as `ftune train` would, and starts a second time from its cache. Another fresh process
gives texts that are in memory already to `encode_batch`, before and after, with the same number of threads. The data
path also takes a quarter of the rows, which tells what memory each further row takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ou")]
BARE_MEGABYTES = 50


def generate(path: Path, megabytes: float, kind: str) -> None:
    """Rows of 60 to 140 words out of 30,000, of which few are frequent, as in language."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(30_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    left = megabytes * 1e6
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            said = rng.choices(words, cum_weights=weights, k=rng.randint(60, 140))
            said[::9] = [f"{word.capitalize()}," for word in said[::9]]
            cut = len(said) // 3
            row = {"prompt": " ".join(said[:cut]) + "?\n", "completion": " ".join(said[cut:])}
            line = json.dumps({"text": "".join(row.values())} if kind == "text" else row, ensure_ascii=False) + "\n"
            left -= file.write(line)


def make_tokenizer(rows: Path, path: Path) -> None:
    """A byte-level BPE of 16,000 tokens, as GPT-2 has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(itertools.islice(texts_of(rows), 5000), trainer)
    core.save(str(path))


def texts_of(rows: Path) -> Any:
    """What the data path makes of each row."""
    with rows.open(encoding="utf-8") as lines:
        for line in lines:
            yield "".join(json.loads(line).values())


def bare(folder: Path) -> dict[str, float]:
    """`encode_batch` on texts that are there, a thousand at a time."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts, wall, cpu, size, tokens, rows = texts_of(folder / "rows.jsonl"), 0.0, 0.0, 0, 0, 0
    while size < BARE_MEGABYTES * 1e6 and (batch := list(itertools.islice(texts, 1000))):
        started, busy = time.perf_counter(), time.process_time()
        encodings = core.encode_batch(batch, add_special_tokens=False)
        count = sum(map(len, encodings))
        del encodings  # as much a part of it as making them
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - busy
        size, tokens, rows = size + sum(map(len, batch)), tokens + count, rows + len(batch)
    return {"tokens": tokens, "rows": rows, "seconds": wall, "cpu_seconds": cpu}


def data_path(folder: Path) -> dict[str, float | str]:
    """All of it, into a cache in `folder`."""
    from transformers import PreTrainedTokenizerFast

    from ftune.data.build import build_data
    from ftune.data.cache import Cache
    from ftune.data.render import Renderer
    from ftune.objectives.causal_lm import CausalLM
    from ftune.recipe import Data

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>")
    tokenizer("warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.process_time()
    dataset = build_data(
        Data(train="rows.jsonl", eval="1%"), folder, Renderer(tokenizer, None), CausalLM(), guard=[], max_length=1024,
        accepted=CausalLM().formats, seed=0, max_eval_rows=500, encoder_decoder=False, tick=lambda *_: None,
        cache=Cache(folder / "cache"),
    )  # fmt: skip
    report = dataset.train.report
    return {
        "rows": report.rows,
        "tokens": sum(file.columns.size("ids") for file in dataset.train.examples.files),  # type: ignore[attr-defined]
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - busy,
        "imports_mib": before / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "story": dataset.story,
    }


def fresh(part: str, folder: Path, threads: int) -> dict[str, Any]:
    """One part in a process of its own."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run all parts and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kind", choices=["pairs", "text"], default="pairs")
    parser.add_argument("--part", choices=["bare", "data_path"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps({"bare": bare, "data_path": data_path}[asked.part](asked.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="ftune-bench-") as name:
        folder = Path(name)
        (folder / "quarter").mkdir()
        for part, megabytes in ((folder, asked.megabytes), (folder / "quarter", asked.megabytes / 4)):
            generate(part / "rows.jsonl", megabytes, asked.kind)
            make_tokenizer(folder / "rows.jsonl", part / "tokenizer.json")
        bares = [fresh("bare", folder, asked.threads)]
        first = fresh("data_path", folder, asked.threads)
        bares.append(fresh("bare", folder, asked.threads))
        second = fresh("data_path", folder, asked.threads)
        quarter = [fresh("data_path", folder / "quarter", asked.threads) for _ in range(2)]
    size = f"{asked.megabytes:g} MB of JSON lines ({asked.kind}), {first['rows']:,} rows, {first['tokens']:,} tokens"
    print(f"{size}; {asked.threads} threads of the tokenizer")
    for what in ("second", "cpu_second"):
        plain = sum(part["tokens"] for part in bares) / sum(part[f"{what}s"] for part in bares)
        ours = first["tokens"] / first[f"{what}s"]
        print(f"tokens per {what}: {ours:,.0f}, bare encode_batch {plain:,.0f}, ratio {ours / plain:.2f}")
    print(f"peak memory {first['peak_mib']:,.0f} MiB, of which {first['imports_mib']:,.0f} MiB imports and tokenizer")
    for which, part, less in (("first", first, quarter[0]), ("second", second, quarter[1])):
        growth = (part["peak_mib"] - less["peak_mib"]) * 2**20 / (part["rows"] - less["rows"])
        told = f"peak memory {part['peak_mib']:,.0f} MiB, {growth:,.0f} bytes for each further row"
        print(f"{which} start {part['seconds']:,.1f} s ({part['story']}), {told}")


if __name__ == "__main__":
    main()
