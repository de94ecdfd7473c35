"""A sandbox in which no template runs for ever, or makes a text as large as memory.

Jinja's own sandbox keeps templates from Python. It bounds one `range`, but not loops inside loops, macros that call
themselves twice, or `"x" * 10 ** 10`. A template comes with a model that somebody else has published.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.environment import Environment
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SECONDS = 20.0
"""Time for one text. Templates take well under a millisecond."""
LARGEST_TEXT = 10_000_000
"""Characters, or entries of a list, that one product may have."""
LARGEST_EXPONENT = 1_000
MOST_BYTES = 2**29
"""Memory for one text: sums, joins, paddings and replacements are bounded by nothing else."""
_STATUS = Path("/proc/self/statm")
_clock = threading.local()
_bound = threading.Lock()


def render(template: Template, values: Mapping[str, Any]) -> str:
    """`template` with `values`.

    Raises:
        ValueError: it takes too long, or makes too much.
        Anything that a template may raise.
    """
    _clock.deadline = time.monotonic() + MOST_SECONDS
    try:
        with _bounded_memory():
            return template.render(values)
    except MemoryError as error:
        raise ValueError("the template makes more than any text needs memory for") from error
    finally:
        _clock.deadline = None


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process have no more than `MOST_BYTES` above what it has, where the system knows such a bound."""
    if sys.platform != "linux":
        yield
        return
    import resource

    with _STATUS.open("rb", buffering=0) as file:  # for each row: unbuffered, it takes a hundredth of a millisecond
        pages = int(file.read(64).split()[0])
    if not _bound.acquire(blocking=False):  # another thread has set the bound, which is one of the process
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _bound.release()


class Clock(Extension):
    """Looks at the clock in every turn of a loop and every call of a macro. Templates cannot name it."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)

    def tick(self) -> bool:
        """True, as long as there is time."""
        deadline = getattr(_clock, "deadline", None)
        if deadline is not None and time.monotonic() > deadline:
            raise ValueError(f"the template was not done after {MOST_SECONDS:.0f} s, so it may never be")
        return True


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on time and on products."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "extensions": [*options.get("extensions", ()), Clock]})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.body.insert(0, nodes.ExprStmt(_tick(loop)).set_lineno(loop.lineno))
            loop.test = None if loop.test is None else nodes.And(_tick(loop), loop.test).set_lineno(loop.lineno)
        bodies: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for called in bodies:
            called.body.insert(0, nodes.ExprStmt(_tick(called)).set_lineno(called.lineno))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A product or a power, unless it is larger than any template needs."""
        if operator == "**" and isinstance(right, int) and abs(right) > LARGEST_EXPONENT:
            raise ValueError(f"{left!r} ** {right} is more than a template needs")
        for text, times in ((left, right), (right, left)):
            sized = isinstance(text, (str, bytes, list, tuple)) and isinstance(times, int)
            if operator == "*" and sized and len(text) * times > LARGEST_TEXT:
                raise ValueError(f"a text or list of {len(text) * times:,} parts is more than a template needs")
        return super().call_binop(context, operator, left, right)


def _tick(near: nodes.Node) -> nodes.Expr:
    call = nodes.Call(nodes.ExtensionAttribute(Clock.identifier, "tick"), [], [], None, None)
    call.set_lineno(near.lineno)
    return call
