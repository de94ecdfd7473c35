"""Secrets of the environment, of URLs and of the home folder: none is found in anything that a verb says or writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ROOT, write_recipe
from laws import python

SECRETS = {name: f"CANARY{number:02d}x9Z" for number, name in enumerate((
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABASE_URL",
))}  # fmt: skip
URL = "https://user:CANARY98x9Z@127.0.0.1:9/x"
CRASH = "import ftune.loop; ftune.loop.train_steps = lambda *a, **k: 1 / 0\n"
"""A bug of ours, in the middle of a run."""
PROGRAM = "import os, sys; sys.argv[0] = 'ftune'; {}from ftune.__main__ import main; main()"


def home(folder: Path) -> dict[str, str]:
    """A home folder and an environment with a secret in every usual place."""
    (folder / ".netrc").write_text("machine 127.0.0.1 login user password CANARY97x9Z\n")
    (folder / ".netrc").chmod(0o600)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "token").write_text("CANARY96x9Z")
    (folder / "tmp").mkdir()
    return {**SECRETS, "HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}  # fmt: skip


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file but those that held a secret before, as bytes: the metadata of safetensors is plain text in them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".netrc", "token", "recipe.yaml") or path.match("run*/**/recipe.yaml"):
            yield str(path), path.read_bytes()


VERBS = {
    "train": (["train", "recipe.yaml", "--verbose"], 0),
    "eval": (["eval", "run", "--verbose"], 0),
    "merge": (["merge", "run", "--verbose"], 0),
    "report": (["report", "run"], 0),
    "data": (["data", "recipe.yaml", "--verbose"], 0),
    "a model that is a URL": (["train", "recipe.yaml", "--set", f"model={URL}", "--verbose"], 2),
    "rows that are a URL": (["plan", "recipe.yaml", "--set", f"data.train={URL}.jsonl"], 2),
    "a target that is a URL": (["eval", URL, "--verbose"], 10),
    "a recipe that is a URL": (["train", f"{URL}.yaml", "--verbose"], 2),
    "an output that is a URL": (["train", "recipe.yaml", "--output-dir", URL], 2),
    "a hub that does not answer": (["train", "recipe.yaml", "--set", "model=acme/tiny", "--verbose",
                                    "--output-dir", "other"], 10),
    "a crash": (["train", "recipe.yaml", "--output-dir", "run2"], 1),
    "a crash that is shown": (["train", "recipe.yaml", "--output-dir", "run3", "--verbose"], 1),
}  # fmt: skip
FAST = ("a target that is a URL", "rows that are a URL", "an output that is a URL")


def check(folder: Path, names: list[str]) -> None:
    write_recipe(folder, output_dir="run", tracking=["tensorboard"])
    environment = home(folder)
    for name in names:
        words, code = VERBS[name]
        program = PROGRAM.format(CRASH if "crash" in name else "")
        done = python("-c", f"import os; os.chdir({str(folder)!r})\n{program}", *words, environment=environment)
        assert done.returncode == code, f"{name}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "CANARY" not in done.stdout + done.stderr, name
        assert not [path for path, data in texts(folder) if b"CANARY" in data], name
    crashes = list((folder / "tmp").glob("ftune-crash-*"))
    assert len(crashes) == sum("crash" in name for name in names)


def test_nothing_says_or_writes_the_password_of_a_url(tmp_path: Path) -> None:
    check(tmp_path, [*FAST])


@pytest.mark.crash
def test_no_verb_says_or_writes_a_secret(tmp_path: Path) -> None:
    check(tmp_path, [*VERBS])


@pytest.mark.crash
def test_a_recipe_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    for sections in ({"model": URL}, {"data": {"train": f"{URL}.jsonl"}}, {"output_dir": URL},
                     {"data": {"train": "rows.jsonl", "template": f"see {URL} {{{{ prompt }}}}"}}):  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_recipe(folder, **sections)
        done = python("-c", PROGRAM.format(""), "check", str(folder / "recipe.yaml"))
        assert done.returncode == 2 and "CANARY" not in done.stdout + done.stderr
        assert "holds a URL with a password" in done.stderr
