"""Gather the text that `builtin:starter` is trained on, its tokenizer, and the record of every licence.

    python recipes/starter/gather.py --out runs/starter_text --shared ../shared/data

Needs `apt-get` and `dpkg-deb` (Debian 12), `npm`, `pip`, and the network for the first call; packages are kept in
runs/starter_text/packages. The same packages give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import chats
import fetch
import shared
import sources
import tokenizer

HELD_BYTES = 100_000
"""At most about so much of a source is held out, and no more than a tenth."""


def split(documents: list[str], *, tail: bool) -> tuple[list[str], list[str]]:
    """Documents to train on, and those held out: the last ones, or every so many through the whole source."""
    total = sum(map(size, documents))
    target = min(total // 10, HELD_BYTES)
    if not tail:
        every = -(-total // target)
        held = set(range(every // 2, len(documents), every))
    else:
        at, left = len(documents), target
        while left > 0:
            at -= 1
            left -= size(documents[at])
        held = set(range(at, len(documents)))
    return (
        [document for i, document in enumerate(documents) if i not in held],
        [document for i, document in enumerate(documents) if i in held],
    )


def size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode())


def read(name: str, folders: sources.Folders) -> tuple[list[str], list[str]]:
    """Training and held-out documents of a source; those of two sources are fixed by what is scored elsewhere."""
    source = sources.SOURCES[name]
    documents = source.read(folders)
    fixed = {"shakespeare": shared.shakespeare_held, "policies": shared.policies_held}
    if name in fixed:
        return documents, fixed[name](folders["shared"])
    return split(list(dict.fromkeys(documents)), tail=source.held == "tail")


RUN = 13
"""Words in a row that a training paragraph may not have in common with a held-out text (Brown et al. 2020)."""


def runs(text: str) -> Iterator[str]:
    """Every run of 13 words."""
    words = text.split()
    return (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))


def apart(train: list[str], held: set[str]) -> list[str]:
    """Training documents without the paragraphs that share a run of words with a held-out text."""
    kept = (
        "\n\n".join(block for block in document.split("\n\n") if held.isdisjoint(runs(block))) for document in train
    )
    return [document for document in kept if document]


def write_rows(path: Path, rows: Iterable[object]) -> str:
    """Write JSON lines; their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return fetch.sha256(path)


def record(name: str, train: list[str], held: list[str], hashes: dict[str, str]) -> dict[str, object]:
    """What sources.json says of a source."""
    source = sources.SOURCES[name]
    package = fetch.PACKAGES[source.package] if source.package else None
    return {
        "name": name,
        "package": f"{package.kind}:{package.name}" if package else None,
        "version": package.version if package else None,
        "package_sha256": package.sha256 if package else None,
        "licence": source.licence,
        "licence_stated_in": source.stated,
        "train": {"documents": len(train), "bytes": sum(map(size, train))},
        "held_out": {"documents": len(held), "bytes": sum(map(size, held))},
        "sha256": hashes,
    }


def gather(out: Path, sets: Path) -> list[dict[str, object]]:
    """Write everything below `out`; one record for each source, then the chats and the tokenizer.

    Raises:
        fetch.FetchError: a package is missing, or has changed.
    """
    folders: sources.Folders = {**fetch.fetch(out), "shared": sets}
    records: list[dict[str, object]] = []
    texts: dict[str, list[str]] = {}
    parts = {name: read(name, folders) for name in sources.SOURCES}
    known = {run for _, held in parts.values() for text in held for run in runs(text)}
    for name, (every, held) in parts.items():
        train = apart(every, known)
        hashes = {
            f"pretrain/{name}.jsonl": write_rows(out / f"pretrain/{name}.jsonl", ({"text": text} for text in train)),
            f"heldout/{name}.jsonl": write_rows(out / f"heldout/{name}.jsonl", ({"text": text} for text in held)),
        }
        records.append(record(name, train, held, hashes))
        texts[name] = train
    spoken, spoken_held = chats.build(folders, texts)
    files = {"instruct/train.jsonl": spoken, "instruct/heldout.jsonl": spoken_held}
    hashes = {path: write_rows(out / path, ({"messages": chat} for chat in rows)) for path, rows in files.items()}
    records.append({"name": "chats", "train": len(spoken), "held_out": len(spoken_held), "sha256": hashes})
    words = (text for documents in texts.values() for text in documents)
    said = (message["content"] for chat in spoken for message in chat)
    tokenizer.train((text for part in (words, said) for text in part), out / "tokenizer")
    hashes = {f"tokenizer/{path.name}": fetch.sha256(path) for path in sorted((out / "tokenizer").iterdir())}
    records.append({"name": "tokenizer", "vocabulary": tokenizer.VOCABULARY, "sha256": hashes})
    (out / "sources.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records


def main() -> int:
    """Parse the command, gather, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shared", type=Path, required=True, help="folder of the shared sets: ../shared/data")
    options = parser.parse_args()
    try:
        records = gather(options.out, options.shared.resolve())
    except fetch.FetchError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    for entry in records:
        print(json.dumps({key: value for key, value in entry.items() if key in ("name", "train", "held_out")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
