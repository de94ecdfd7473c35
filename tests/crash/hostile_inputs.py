"""Rows and recipes that somebody sent: scripts, pickles in tables, bombs, names and texts that drive a terminal."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Sequence

from artefact import TRAIN, Artefact, Place, pickled, recipe, rows, text

MODEL = "model: builtin:tiny-llama\n"
CHECK, DATA = ("check", "recipe.yaml"), ("data", "recipe.yaml", "-n", "1", "--offline")
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def script(place: Place) -> Sequence[str]:
    """A folder with a loading script, as sets of the hub once were."""
    recipe(place.folder, data={"train": "set"})
    (place.folder / "set").mkdir()
    place.code(place.folder / "set" / "set.py")
    return TRAIN


def table(kind: str, code: int) -> Artefact:
    """A table whose metadata holds a pickle, in a column of a type that old versions unpickled."""

    def make(place: Place) -> Sequence[str]:
        import pyarrow
        import pyarrow.parquet

        evil = pickled(place)
        field = pyarrow.field("prompt", pyarrow.string(), metadata={
            "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": evil,
        })  # fmt: skip
        schema = pyarrow.schema([field, ("completion", pyarrow.string())], metadata={
            "pandas": json.dumps({"index_columns": [], "columns": [{"name": "prompt", "pandas_type": "object"}]}),
            "huggingface": json.dumps({"info": {"features": {"prompt": {"_type": "os.system"}}}}), "pickle": evil,
        })  # fmt: skip
        found = pyarrow.table([["a", "b"], ["c", "d"]], schema=schema)
        sink = io.BytesIO()
        if kind == "parquet":
            pyarrow.parquet.write_table(found, sink)
        else:
            with pyarrow.ipc.new_file(sink, schema) as writer:
                writer.write_table(found)
        return rows(f"rows.{kind}", sink.getvalue(), train={"duration": "1 steps"})(place)

    return Artefact(make, code)


def named(name: str, content: str, command: Sequence[str], code: int) -> Artefact:
    """A file of rows of any name."""

    def make(place: Place) -> Sequence[str]:
        rows(name, content)(place)
        return command

    return Artefact(make, code)


def pickled_rows(name: str) -> Artefact:
    return Artefact(lambda place: rows(name, pickled(place))(place), 3)


def words(*command: str, code: int) -> Artefact:
    """A command line beside an ordinary recipe."""

    def make(place: Place) -> Sequence[str]:
        recipe(place.folder)
        return command

    return Artefact(make, code)


def recipe_of(content: str, code: int = 2, command: Sequence[str] = CHECK) -> Artefact:
    return Artefact(text(content, *command), code)


BOMB = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
REACH = "{{ prompt }}{{ cycler.__init__.__globals__.os.system('touch canary') }}"
LINE = b'{"prompt": "' + b"a" * 2**20
INPUTS = {
    "a folder with a script": Artefact(script, 3, alone=True, fast=True),
    "rows that are a pickle": pickled_rows("rows.jsonl")._replace(fast=True),
    "a table that is a pickle": pickled_rows("rows.parquet"),
    "numbers that are a pickle": pickled_rows("rows.npy"),
    "lines that are a pickle of text": Artefact(rows("rows.jsonl", pickle.dumps({"prompt": "a"}, protocol=0)), 3),
    "a pickle in the metadata of parquet": table("parquet", 0)._replace(alone=True),
    "a pickle in the metadata of arrow": table("arrow", 0),
    "rows nested too deep": Artefact(rows("rows.jsonl", '{"prompt":' * 50_000), 3),
    "a list nested too deep": Artefact(rows("rows.json", "[" * 100_000), 3),
    "a line that unpacks to gigabytes": Artefact(rows("rows.jsonl.gz", gzip.compress(LINE * 1, 1) * 3000), 3),
    "a name that drives a terminal": named(f"rows{ESCAPE}.jsonl", "{", TRAIN, 3)._replace(fast=True),
    "rows that drive a terminal": named("rows.jsonl", json.dumps({"prompt": ESCAPE, "completion": ESCAPE}), DATA, 0),
    "a refused row that drives a terminal": named("rows.jsonl", json.dumps({ESCAPE: ESCAPE}), TRAIN, 3),
    "a template that reaches into Python": Artefact(
        rows("rows.jsonl", '{"prompt": "a", "completion": "b"}', data={"template": REACH}), 3
    ),
    "a tag of Python": recipe_of("model: !!python/object/apply:os.system ['TOUCH']\n")._replace(alone=True, fast=True),
    "a tag of Python in --set": words(*CHECK, "--set", "seed=!!python/name:os.system", code=2),
    "aliases that multiply": recipe_of(BOMB),
    "blocks nested too deep": recipe_of("[" * 10_000),
    "a recipe as large as a book": recipe_of("a: " + "x" * 10**6),
    "a number as long as a book": recipe_of(MODEL + f"seed: {'9' * 50_000}\n"),
    "a recipe that extends a secret": recipe_of("extends: SECRET\n" + MODEL),
    "a recipe that extends a device": recipe_of("extends: /dev/zero\n" + MODEL),
    "a method of Python itself": recipe_of(MODEL + "method: os.path\ndata: {train: rows.jsonl}\n"),
    "a method that opens a window": recipe_of(MODEL + "method: {name: idlelib.idle}\ndata: {train: rows.jsonl}\n"),
    "a metric of Python itself": recipe_of(
        MODEL + "eval: {metrics: ['os:system;TOUCH']}\ndata: {train: rows.jsonl, eval: rows.jsonl}\n"
    ),
    "an environment of another tool": words(
        *CHECK, "--set", "output_dir=${oc.env:HF_TOKEN}/x", "--set", "seed=${env:SEED}", code=2
    ),
    "a builtin that leads elsewhere": words(*TRAIN, "--set", "model=builtin:../../etc", code=2),
    "a hub name that leads elsewhere": words(*TRAIN, "--set", "model=../../x", code=10),
    "a hub name with dots inside": words(*TRAIN, "--set", "model=a/../../x", code=10),
    "a model that is a URL": words(*TRAIN, "--set", "model=http://127.0.0.1:9/x", code=10),
    "rows that are a URL": words(*TRAIN, "--set", "data.train=http://127.0.0.1:9/x.jsonl", code=3),
    "rows of a device": words(*TRAIN, "--set", "data.train=/dev/zero", code=3),
    "a code that nothing pins": words(*CHECK, "--set", "model={name: a/b, trust_remote_code: true}", code=2),
    "a code that a branch pins": words(
        *CHECK, "--set", "model={name: a/b, trust_remote_code: true, revision: main}", code=2
    ),
    "an option that drives a terminal": words("check", f"{ESCAPE}.yaml", code=2),
}  # fmt: skip
