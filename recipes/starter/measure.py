"""Score `builtin:starter` on the held-out text of each source, beside a 5-gram model, gzip and xz, and write its card.

    python recipes/starter/measure.py --text runs/starter_text

Everything is in bits per byte of UTF-8, so that tokenizers do not matter. xz and gzip get a source's held-out text as
one file; a further column gives xz the source's training text before it, and counts what the held-out text adds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import tempfile
from pathlib import Path
from typing import Any

import ngram

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEASURED = HERE / "measured.json"
CARD = ROOT / "ftune" / "starter" / "README.md"
SAMPLE = ROOT / "tests" / "data" / "starter" / "heldout.jsonl"
SAMPLE_BYTES = 6000
"""Of each source, in whole paragraphs from the first document on: what the tests score again."""
OTHERS = ("five_gram", "xz_after_training_text", "xz", "gzip")
MARKS = ("<!-- measured -->", "<!-- end -->")


def documents(path: Path) -> list[str]:
    """Texts of a file of JSON lines."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def scored(rows: Path, model: str = "builtin:starter") -> dict[str, Any]:
    """Bits per byte of the texts in `rows`, in fp32, by what `ftune eval` calls: value and 95% interval."""
    from ftune.scoring import evaluate

    here = str(rows.absolute())  # a recipe's own paths begin at its folder
    recipe = {"model": model, "data": {"train": here, "eval": here, "format": "text", "max_length": 512},
              "eval": {"max_rows": None, "metrics": ["loss", "bits_per_byte"]},
              "train": {"precision": "fp32"}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "score.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        found = evaluate(
            path, split="eval", data_file=None, metrics=None, max_rows=None, batch_size=4, overrides=(),
            tick=lambda what, done, total: None,
        )  # fmt: skip
    score = found.metrics["bits_per_byte"]
    return {"bits_per_byte": score.value, "ci95": score.ci95}


def of_tokens(text: Path, model: Path) -> dict[str, float]:
    """Bits per byte of a 5-gram model that read every token of the training text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def ids(path: Path) -> list[list[int]]:
        encoded = tokenizer(documents(path), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*row, end] for row in encoded]

    levels = ngram.fit((row for path in sorted((text / "pretrain").glob("*.jsonl")) for row in ids(path)), start)
    return {
        path.stem: sum(ngram.bits(levels, row, start, len(tokenizer)) for row in ids(path)) / size(path)
        for path in sorted((text / "heldout").glob("*.jsonl"))
    }


def size(path: Path) -> int:
    """Bytes of all texts of a file."""
    return sum(len(text.encode()) for text in documents(path))


def of_compressors(train: list[str], held: list[str]) -> dict[str, float]:
    """Bits per byte that gzip and xz need for the held-out texts, and xz after the training texts."""
    text, before = ("\n\n".join(held)).encode(), ("\n\n".join(train) + "\n\n").encode()
    long = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**26}]
    after = len(lzma.compress(before + text, filters=long)) - len(lzma.compress(before, filters=long))
    return {
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
        "xz_after_training_text": 8 * after / len(text),
    }


def baselines(text: Path, model: Path) -> dict[str, dict[str, float]]:
    """Figures that the weights do not enter, by source."""
    by_tokens = of_tokens(text, model)
    return {
        path.stem: {
            "five_gram": by_tokens[path.stem],
            **of_compressors(documents(text / "pretrain" / path.name), documents(path)),
        }
        for path in sorted((text / "heldout").glob("*.jsonl"))
    }


def measure(text: Path, model: Path, others: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Every figure, by source."""
    sources = {}
    for path in sorted((text / "heldout").glob("*.jsonl")):
        starter = scored(path, str(model.resolve()))
        sources[path.stem] = {"bytes": size(path), "starter": starter, **others[path.stem]}
        print(path.stem, sources[path.stem], flush=True)
    total = sum(entry["bytes"] for entry in sources.values())
    whole = {
        key: sum(entry["bytes"] * number(entry[key]) for entry in sources.values()) / total
        for key in ("starter", *OTHERS)
    }
    return {"sources": sources, "all": {"bytes": total, **whole}, "sample": scored(SAMPLE, str(model.resolve()))}


def number(value: Any) -> float:
    """A figure with or without an interval."""
    return float(value["bits_per_byte"] if isinstance(value, dict) else value)


def write_sample(text: Path) -> None:
    """The beginning of the held-out text of each source, for the tests."""
    lines = []
    for path in sorted((text / "heldout").glob("*.jsonl")):
        taken = ""
        for paragraph in documents(path)[0].split("\n\n"):
            if taken and len((taken + paragraph).encode()) > SAMPLE_BYTES:
                break
            taken += ("\n\n" if taken else "") + paragraph
        lines.append(json.dumps({"text": taken, "source": path.stem}, ensure_ascii=False))
    SAMPLE.parent.mkdir(parents=True, exist_ok=True)
    SAMPLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(measured: dict[str, Any]) -> str:
    """The card's table."""
    rows = [
        "| held-out text | bytes | starter | 95% interval | 5-gram | xz after the training text | xz | gzip |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for name, entry in measured["sources"].items():
        low, high = entry["starter"]["ci95"] or (math.nan, math.nan)
        interval = "one document" if math.isnan(low) or low == high else f"{low:.3f} to {high:.3f}"
        rows.append(_row(f"`{name}`", entry, number(entry["starter"]), interval))
    rows.append(_row("all", measured["all"], measured["all"]["starter"], ""))
    return "\n".join(rows)


def _row(name: str, entry: dict[str, Any], starter: float, interval: str) -> str:
    others = " | ".join(f"{entry[key]:.3f}" for key in OTHERS)
    return f"| {name} | {entry['bytes']:,} | **{starter:.3f}** | {interval} | {others} |"


def write_card(measured: dict[str, Any]) -> None:
    """Put the table between the marks of the card."""
    before, _, rest = CARD.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    CARD.write_text(f"{before}{MARKS[0]}\n\n{table(measured)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Parse the command, measure, and write figures and card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="what gather.py wrote")
    parser.add_argument("--model", type=Path, default=CARD.parent, help="model folder; default: the packaged one")
    parser.add_argument("--same-text", action="store_true", help="take figures of the others from the last time")
    options = parser.parse_args()
    write_sample(options.text)
    if options.same_text:
        last = json.loads(MEASURED.read_text(encoding="utf-8"))["sources"]
        others = {name: {key: entry[key] for key in OTHERS} for name, entry in last.items()}
    else:
        others = baselines(options.text, options.model)
    measured = measure(options.text, options.model, others)
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    write_card(measured)


if __name__ == "__main__":
    main()
