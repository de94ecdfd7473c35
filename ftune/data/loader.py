"""A loader hook: rows of any shape, from a function of the user's own, which a recipe names as `module:function`.

    def rows(path: Path) -> Iterator[dict]:
        for line in path.open(encoding="utf-8"):
            yield {"text": line.strip(), "label": "good"}

Its module is a file beside the recipe, or installed. It runs because the recipe names it; nothing in data can.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ftune.data.streams import Fault, Item
from ftune.errors import DataError, suggestion


def module_file(loader: str, folder: Path) -> Path | None:
    """The file that a loader's module is in, without running it; None if there is none.

    Args:
        loader: `module:function`.
        folder: the recipe's.
    """
    module = loader.partition(":")[0]
    beside = folder.joinpath(*module.split(".")).with_suffix(".py")
    if beside.is_file():
        return beside
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def load_rows(loader: str, path: Path, folder: Path) -> Iterator[Item]:
    """What the function yields for `path`, numbered from 1.

    Args:
        loader: `module:function`.
        path: a file or a folder, which the function is called with.
        folder: the recipe's.

    Raises:
        DataError: there is no such function, or it fails.
    """
    function = _found(loader, folder)
    number = 0
    try:
        given = function(path)
        if not hasattr(given, "__iter__") or isinstance(given, (str, bytes, dict)):
            raise DataError(f"loader {loader}: expected rows, received {type(given).__name__}. Yield one dict a row.")
        for number, values in enumerate(given, start=1):
            yield number, _fault(values) or values
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        where = _place(error, module_file(loader, folder))
        what = f"{type(error).__name__}: {error}".rstrip(".: ")
        raise DataError(f"loader {loader} failed at {where} after {number} rows of {path}: {what}.") from error


def _fault(values: Any) -> Fault | None:
    """What makes a yielded value no row."""
    if not isinstance(values, dict):
        return Fault(f"expected a dict of columns from the loader, received {type(values).__name__}.")
    wrong = next((key for key in values if not isinstance(key, str)), None)
    if wrong is not None:
        return Fault(f"expected text as the name of a column, received {type(wrong).__name__}: {wrong!r}.")
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return Fault("holds half of a surrogate pair.")
    except (TypeError, ValueError, RecursionError) as error:
        return Fault(f"holds a value that is no text, number, list or dict: {error}.")
    return None


def _found(loader: str, folder: Path) -> Callable[[Path], Any]:
    name, _, attribute = loader.partition(":")
    module = _imported(loader, name, folder)
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"loader {loader}: {name} has no function '{attribute}'.{suggestion(attribute, own)}")
    found: Callable[[Path], Any] = function
    return found


def _imported(loader: str, name: str, folder: Path) -> ModuleType:
    file = module_file(loader, folder)
    if file is None:
        raise DataError(f"loader {loader}: no module '{name}' beside the recipe ({folder}) and none installed.")
    try:
        with _importable(folder):
            if not file.is_relative_to(folder):
                return importlib.import_module(name)
            spec = importlib.util.spec_from_file_location(f"ftune_loader_{name.replace('.', '_')}", file)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module  # where dataclasses look for the module of a class
                spec.loader.exec_module(module)
                return module
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}".rstrip(".: ")
        raise DataError(f"loader {loader}: {_place(error, file)} cannot be imported: {what}.") from error
    raise DataError(f"loader {loader}: {file} is no module of Python.")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Files beside the recipe can be imported by the hook while it is itself imported."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))


def _place(error: BaseException, file: Path | None) -> str:
    """`file:line` of the user's code, the innermost that is on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [] if file is None else traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if file and Path(frame.filename).resolve() == file.resolve()]
    return f"{file}:{own[-1]}" if own else str(file)
