"""Plug-ins are files: the name in a recipe is the name of a module, found when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TypeVar

from ftune.errors import suggestion

T = TypeVar("T")


def names_in(package: str) -> list[str]:
    """Names of the public modules of `package`, without importing them."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def find(package: str, name: str, attribute: str, base: type[T]) -> type[T]:
    """The class that module `name` of `package`, or the dotted module `name`, offers as `attribute`.

    Raises:
        LookupError: there is no such module, or it does not offer a subclass of `base`.
    """
    kind = attribute.lower()
    if "." not in name:
        if name not in names_in(package):
            raise LookupError(f"unknown {kind} '{name}'.{suggestion(name, names_in(package))}")
        name = f"{package}.{name}"
    elif name.partition(".")[0] in sys.stdlib_module_names:  # to import one may open a window or begin a test
        raise LookupError(f"module '{name}' defines no {attribute} that is ours: it is of Python itself.")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise LookupError(f"{kind} '{name}' cannot be imported: {error}.") from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LookupError(f"module '{name}' defines no {attribute} that is a subclass of {base.__name__}.")
    return found
