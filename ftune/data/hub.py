"""Rows of a data set of the hub, through `datasets`, which keeps them on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftune.errors import DataError, MachineError
from ftune.quantities import Slice
from ftune.recipe import Source


def hub_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of the range that `source.split` names; a label that the set keeps as a number has its name.

    Raises:
        MachineError: it cannot be had.
        DataError: it has no such split or subset, or the range is empty.
    """
    table = _loaded(source)
    start, stop = Slice.parse(source.split).bounds(len(table))
    if start == stop:
        raise DataError(f"{source.path}: the range {source.split!r} holds none of its {len(table)} rows.")
    names = {column: found for column, feature in table.features.items() if (found := _names_of(feature)) is not None}
    for number, row in enumerate(table.select(range(start, stop)), start=start + 1):
        for column, known in names.items():
            row[column] = _named(row[column], known)
        yield number, row


def split_of(source: Source) -> str:
    """The split that is read."""
    return Slice.parse(source.split).name or "train"


def _loaded(source: Source) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source.path, name=source.subset, split=split_of(source), revision=source.revision)
    except (*HfHubHTTPError.__bases__, datasets.exceptions.DatasetNotFoundError, OSError) as error:
        raise MachineError(
            f"data set '{source.path}' is no file here and cannot be had from the hub: {_first_line(error)}. "
            "Check the name, or download it first and name the file."
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # no such split, a script, bad files
        raise DataError(f"data set '{source.path}': {_said(error)}.") from error


def _names_of(feature: Any) -> list[str] | None:
    """Names of a label that is kept as a number, or of a list of such."""
    feature = getattr(feature, "feature", feature)
    feature = feature[0] if isinstance(feature, list) and feature else feature
    found = getattr(feature, "names", None)
    return found if isinstance(found, list) else None


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None  # -1: not labelled


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _said(error: Exception) -> str:
    """What is wrong, with the names of the subsets where one must be chosen: `datasets` puts them on a second line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Config name is missing" in lines[0] and len(lines) > 1:
        return f"has several subsets. Choose one with subset: {lines[1].rpartition(':')[2].strip() or lines[1]}"
    return lines[0].rstrip(".")
