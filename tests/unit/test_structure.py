"""The shape of the code: imports point one way, files and functions stay small, cold verbs stay cold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ftune
import ftune.errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ftune"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors"},
    {
        "lookup",
        "hook",
        "allocator",
        "quantities",
        "file_formats",
        "targets",
        "metrics",
        "layers",
        "quantisation",
        "int8",
        "virtual",
        "prefix_attention",
        "shrink",
    },
    {"attention", "cross_entropy"},
    {"compiled"},
    {"methods", "objectives"},
    {"recipe"},
    {"explain", "consistency", "yaml_file"},
    {"overlay"},
    {"load"},
    {"manifest", "disk"},
    {"store"},
    {"checkpoints"},
    {"data", "facts", "builtin", "signals"},
    {"memory"},
    {"disk_need"},
    {"plan"},
    {"micro_batch"},
    {"decide"},
    {"evidence", "muon"},
    {"base", "optim", "device", "state", "flops", "meter"},
    {"model", "loss_trial"},
    {"start"},
    {"ahead"},
    {"prefix_cache", "stop_text", "shots", "options"},
    {"loop", "evaluation", "features", "stopping"},
    {"generation"},
    {"target", "listener", "locking", "label_predictions"},
    {"data_report", "run_files"},
    {"page"},
    {"page_plots"},
    {"prepare", "report", "drift"},
    {"report_pictures"},
    {"report_page", "report_diff"},
    {"report_files", "report_diff_page"},
    {"data_view", "data_page", "data_packs"},
    {"provenance"},
    {"session", "resuming"},
    {"finish", "profile_view", "in_context"},
    {"scoring"},
    {"as_language_model"},
    {"few_shot"},
    {"prompted"},
    {"begin", "out_of_memory"},
    {"run"},
    {"witness", "answering", "predicting", "launch", "lr_find"},
    {"compare", "benchmark"},
    {"merging"},
    {"smoke"},
    {"cli"},
    {"__main__", "__init__"},
]
"""From the bottom up: a file may import its own layer's files and those below."""
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "scipy", "matplotlib", "pyarrow",
         "sklearn", "datasketch", "sacrebleu", "rouge_score", "nervaluate", "nltk",
         "lm_eval"}  # fmt: skip
LONGER_FILES = {
    "recipe.py": "every key and what it means are in one file on purpose",
    "store.py": "all durable writes are in one file on purpose",
}


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def runtime_imports(tree: ast.Module, *, module_level: bool) -> set[str]:
    """Modules imported at run time: not under TYPE_CHECKING, and at module level only if asked."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if module_level and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = top(path)
    for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8")), module_level=False):
        parts = name.split(".")
        if parts[0] != "ftune" or len(parts) < 2 or own == "__init__":
            continue
        if any(parts[1] in names for names in LAYERS):
            assert layer_of(parts[1]) <= layer_of(own), f"{path.name} imports {name}, which is above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_heavy_at_import(path: Path) -> None:
    imported = {name.split(".")[0] for name in runtime_imports(ast.parse(path.read_text()), module_level=True)}
    assert not imported & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name not in LONGER_FILES:
        assert text.count("\n") <= 320, "split the file, or name the reason in LONGER_FILES"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and "cli" not in path.parts:
            assert node.end_lineno - node.lineno <= 60, f"{node.name} is too long"


def test_only_our_exceptions_are_raised() -> None:
    """Users meet FtuneError; LookupError, ValueError and AssertionError stay inside."""
    inside = {"LookupError", "ValueError", "NotImplementedError", "AssertionError", "AttributeError", "SystemExit",
              "Damaged"}  # fmt: skip
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                name = node.exc.func.id
                known = (
                    name in inside
                    or name.islower()
                    or hasattr(ftune.errors, name)
                    or path.name in ("store.py", "train.py")
                )
                assert known, f"{path.name}:{node.lineno} raises {name}"


UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm",
                  "copyreg", "code", "codeop", "runpy", "telnetlib", "xmlrpc", "tarfile", "zipfile"}  # fmt: skip
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input", "os.system", "os.popen", "yaml.load",
                "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load",
                "pd.read_pickle", "pandas.read_pickle", "np.fromfile", "np.save", "np.savez",
                "tempfile.mktemp"}  # fmt: skip
UNSAFE_ENDS = {"extractall", "unpack_archive", "read_pickle", "to_pickle", "tofile", "load_module"}
UNSAFE_KEYWORDS = {"allow_pickle", "shell"}


def unsafe(text: str) -> list[str]:
    """What in a program's text unpickles, evaluates, unpacks archives or starts a shell."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in whole if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] * (name in UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_ENDS)
            for keyword in node.keywords:
                harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                found += [f"{name}({keyword.arg})"] * (keyword.arg in UNSAFE_KEYWORDS and not harmless)
                weights = keyword.arg == "weights_only" and ast.unparse(keyword.value) != "True"
                found += [f"{name}({keyword.arg})"] * weights
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_pickled_or_evaluated(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "import torch.serialization, marshal", "from torch import load",
     "eval('1')", "yaml.load(x, Loader=y)", "np.load(x, allow_pickle=True)", "subprocess.run(x, shell=yes)",
     "tarfile.open(x).extractall()", "torch.load(x, weights_only=False)", "frame.read_pickle(x)",
     "from os import system"],
)  # fmt: skip
def test_what_is_unsafe_is_seen(text: str) -> None:
    assert unsafe(text)


def test_only_run_and_store_write() -> None:
    """Below the verbs, files are opened for writing in the store, or inside a folder the store gave."""
    allowed = {
        "store.py",
        "locking.py",
        "begin.py",
        "run.py",
        "finish.py",
        "_peft.py",
        "adapter.py",
        "qlora.py",
        "report.py",
        "profile_view.py",
        "common.py",
        "recipes.py",
    }
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                writes = node.func.attr in ("write_text", "write_bytes", "rmtree", "unlink", "rename")
                on_store = ast.unparse(node.func.value).split(".")[-1] in ("store", "disk") or "Store(" in ast.unparse(
                    node
                )
                assert not writes or on_store or path.name in allowed, f"{path.name}:{node.lineno}"


COLD = {
    "--help": ["--help"],
    "train --help": ["train", "--help"],
    "data --help": ["data", "--help"],
    "check": ["check", "recipes/quickstart.yaml"],
    "recipes": ["recipes", "ls"],
    "methods": ["methods"],
    "a bad recipe": ["train", "tests/data/bad_recipes/none.yaml"],
}


@pytest.mark.parametrize("arguments", COLD.values(), ids=COLD.keys())
def test_cold_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from ftune.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout


def test_public_door() -> None:
    assert sorted(ftune.__all__) == sorted(ftune._DOOR)
    for name in ftune.__all__:
        assert getattr(ftune, name) is not None
    with pytest.raises(AttributeError):
        _ = ftune.nothing
    program = "import ftune, sys; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
