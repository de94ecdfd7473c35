"""Documents of the sets in ../shared/data, without anything that a test, a recipe or docs/results.md scores."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import clean


def shakespeare(home: Path) -> list[str]:
    """The first nine tenths, without the 20 kB which recipes/data/shakespeare_later.txt is scored on."""
    text = (home / "tiny_shakespeare/input.txt").read_text(encoding="utf-8")
    later = (Path(__file__).parents[1] / "data/shakespeare_later.txt").read_text(encoding="utf-8").strip()
    start = text.index(later)
    kept = [text[:start], text[start + len(later) : shakespeare_cut(text)]]
    return [document for part in kept for document in clean.grouped(part.strip().split("\n\n"), size=8000)]


def shakespeare_cut(text: str) -> int:
    """Where the last tenth of the characters begins."""
    return len(text) * 9 // 10


def shakespeare_held(home: Path) -> list[str]:
    """The last tenth, as it is."""
    text = (home / "tiny_shakespeare/input.txt").read_text(encoding="utf-8")
    return [text[shakespeare_cut(text) :]]


def _policy_files(home: Path) -> tuple[list[Path], list[Path]]:
    """By name; the last tenth of the documents, rounded up, is held out."""
    found = sorted((home / "legal_site_policy").glob("*.md"))
    cut = len(found) - -(-len(found) // 10)
    return found[:cut], found[cut:]


def policies(home: Path) -> list[str]:
    """The policies by name but for the last tenth."""
    return [clean.from_markdown(path.read_text(encoding="utf-8")) for path in _policy_files(home)[0]]


def policies_held(home: Path) -> list[str]:
    """The last tenth of the policies, cleaned like the others."""
    return [clean.from_markdown(path.read_text(encoding="utf-8")) for path in _policy_files(home)[1]]


def gsm8k_rows(home: Path) -> list[tuple[str, str, str]]:
    """Question, worked answer without the calculator's marks, and the number, of the training part."""
    lines = (home / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        row = json.loads(line)
        worked, _, number = row["answer"].partition("\n#### ")
        rows.append((" ".join(row["question"].split()), re.sub(r"<<.*?>>", "", worked), number.strip()))
    return rows


def gsm8k(home: Path) -> list[str]:
    """Word problems with their working, about ten to a document."""
    rows = [f"Question: {q}\n\nAnswer: {worked}\nThe answer is {n}." for q, worked, n in gsm8k_rows(home)]
    return clean.grouped(rows, size=3000)


def papers(home: Path) -> list[str]:
    """Title, abstract and one-sentence summary of papers; two titles of the test part are left out."""
    lines = (home / "scitldr_a/train_first1200.jsonl").read_text(encoding="utf-8").splitlines()
    tests = (home / "scitldr_a/test.jsonl").read_text(encoding="utf-8").splitlines()
    known = {json.loads(line)["title"] for line in tests}
    rows = [row for row in map(json.loads, lines) if row["title"] not in known]
    return [f"{row['title']}\n\n{' '.join(row['source'])}\n\nIn short: {row['target'][0]}" for row in rows]


def tatoeba(home: Path) -> list[str]:
    """English sentences, each once, without those of recipes/data/translations.tsv; used in chats only."""
    shipped = (Path(__file__).parents[1] / "data/translations.tsv").read_text(encoding="utf-8")
    known = {row[0] for row in csv.reader(io.StringIO(shipped), delimiter="\t", quoting=csv.QUOTE_NONE) if row}
    text = (home / "tatoeba_eng_swe/eng_swe_every2nd.tsv").read_text(encoding="utf-8")
    found = dict.fromkeys(line.split("\t")[0] for line in text.splitlines())
    return [sentence for sentence in found if sentence not in known]
