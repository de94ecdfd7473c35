"""A hook: a function of the user's own, which a recipe names as `module:function`.

Its module is a file beside the recipe, or installed. It runs because the recipe names it; nothing in data can.
`hook_problem` looks at the file without running it, `load_hook` imports it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ftune.errors import suggestion


def is_hook(text: str) -> bool:
    """Whether `text` names a function of the user's own rather than something of ours."""
    return ":" in text


def hooks_in(recipe: Any) -> list[str]:
    """Every `module:function` in the plain values of a recipe: loaders and metrics."""
    if not isinstance(recipe, (dict, list)):
        return []
    found = []
    for key, value in recipe.items() if isinstance(recipe, dict) else enumerate(recipe):
        names = [value] if key == "loader" else value if key == "metrics" and isinstance(value, list) else []
        found += [name for name in names if isinstance(name, str) and is_hook(name)] or hooks_in(value)
    return found


def parse_hook(text: str) -> str:
    """Check that `text` is `module:function`.

    Raises:
        ValueError: it is not.
    """
    module, _, function = text.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"expected 'module:function', such as 'my_code:my_function', received {text!r}")
    return text


def module_file(hook: str, folder: Path) -> Path | None:
    """The file that a hook's module is in, without running it; None if there is none.

    Args:
        hook: `module:function`.
        folder: the recipe's.
    """
    module = hook.partition(":")[0]
    beside = folder.joinpath(*module.split(".")).with_suffix(".py")
    if beside.is_file():
        return beside
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def source_of(module: str) -> Path | None:
    """The file of an installed module, found without running it or the packages that it is in."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None and spec.has_location else None
    stems = [Path(root, *rest) for root in spec.submodule_search_locations or ()]
    files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def hook_problem(hook: str, folder: Path, num_arguments: int) -> str | None:
    """What is wrong with a hook, as far as its source tells; None where nothing is.

    Args:
        hook: `module:function`.
        folder: the recipe's.
        num_arguments: how many the function is called with.
    """
    module, _, name = hook.partition(":")
    package = module.partition(".")[0]
    beside = folder.joinpath(*module.split(".")).with_suffix(".py").is_file()
    if not beside and package != module and importlib.util.find_spec(package) is not None:
        return None  # finding a module inside a package would run the package
    file = module_file(hook, folder)
    if file is None:
        return _no_module(module, folder)
    if file.suffix != ".py":
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        return f"{_place(error, file)} cannot be read: {type(error).__name__}: {error}.".replace("..", ".")
    if any(isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names) for node in tree.body):
        return None
    names = {name for node in tree.body for name in _defined(node)}
    if name not in names:
        own = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        return f"{file} has no function '{name}'.{suggestion(name, own)}"
    found = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if found is not None and not found.decorator_list and not _takes(found.args, num_arguments):
        return f"{file}:{found.lineno} {name} is called with {num_arguments} arguments, and does not take them."
    return None


def _no_module(module: str, folder: Path) -> str:
    return f"no module '{module}' beside the recipe ({folder}) and none installed."


def _defined(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module may bind."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
            yield inner.name
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in inner.names)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id


def _takes(arguments: ast.arguments, number: int) -> bool:
    most = len(arguments.posonlyargs) + len(arguments.args)
    by_name_only = sum(default is None for default in arguments.kw_defaults)
    fits = most - len(arguments.defaults) <= number and (arguments.vararg is not None or number <= most)
    return fits and not by_name_only


def load_hook(hook: str, folder: Path) -> Callable[..., Any]:
    """The function, from a module that is run anew where it is a file beside the recipe.

    Raises:
        LookupError: there is no such function, or its module fails.
    """
    name, _, attribute = hook.partition(":")
    module = _imported(name, folder, module_file(hook, folder))
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise LookupError(f"{name} has no function '{attribute}'.{suggestion(attribute, own)}")
    found: Callable[..., Any] = function
    return found


def _imported(name: str, folder: Path, file: Path | None) -> ModuleType:
    if file is None:
        raise LookupError(_no_module(name, folder))
    try:
        with _importable(folder):
            if not file.is_relative_to(folder):
                return importlib.import_module(name)
            spec = importlib.util.spec_from_file_location(f"ftune_hook_{name.replace('.', '_')}", file)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module  # where dataclasses look for the module of a class
                spec.loader.exec_module(module)
                return module
    except (Exception, SystemExit) as error:
        raise LookupError(f"{_place(error, file)} cannot be imported: {what_failed(error)}.") from error
    raise LookupError(f"{file} is no module of Python.")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Files beside the recipe can be imported by the hook while it is itself imported."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))


def place_of(error: BaseException, hook: str, folder: Path) -> str:
    """`file:line` of the user's code, the innermost that is on the way to the error."""
    return _place(error, module_file(hook, folder))


def what_failed(error: BaseException) -> str:
    """An error of the user's code, in one line without a full stop."""
    return f"{type(error).__name__}: {error}".rstrip(".: ")


def _place(error: BaseException, file: Path | None) -> str:
    if isinstance(error, SyntaxError) and (error.filename or file):
        return f"{error.filename if error.filename and error.filename != '<unknown>' else file}:{error.lineno}"
    frames = [] if file is None else traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if file and Path(frame.filename).resolve() == file.resolve()]
    return f"{file}:{own[-1]}" if own else str(file)
