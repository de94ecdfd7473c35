"""A loader hook: rows of any shape, from a function of the user's own, which a recipe names as `module:function`.

    def rows(path: Path) -> Iterator[dict]:
        for line in path.open(encoding="utf-8"):
            yield {"text": line.strip(), "label": "good"}

See `ftune.hook`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftune.data.streams import Fault, Item
from ftune.errors import DataError
from ftune.hook import load_hook, place_of, what_failed


def load_rows(loader: str, path: Path, folder: Path) -> Iterator[Item]:
    """What the function yields for `path`, numbered from 1.

    Args:
        loader: `module:function`.
        path: a file or a folder, which the function is called with.
        folder: the recipe's.

    Raises:
        DataError: there is no such function, or it fails.
    """
    try:
        function = load_hook(loader, folder)
    except LookupError as error:
        raise DataError(f"loader {loader}: {error}") from error
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
        where, what = place_of(error, loader, folder), what_failed(error)
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
