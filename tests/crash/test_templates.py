"""Templates that try to leave the sandbox, in a prompt and in a conversation: none reaches Python."""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import TemplateError
from watch import watched

from ftune.data.bounded import LARGEST_TEXT, MOST_BYTES, MOST_SECONDS, BoundedEnvironment, render
from ftune.data.chat_template import FAULTS
from ftune.data.sandbox import chat_environment, prompt_environment

POPEN = ".__globals__.os.popen('touch CANARY').read()"
ESCAPES = {
    "subclasses of object": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subclasses through attr": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "a name in two halves": "{{ ''|attr('__cl' ~ 'ass__')|attr('__ba' ~ 'se__') }}",
    "a name of escapes": r"{{ ''['\x5f\x5fclass\x5f\x5f']['\x5f\x5fmro\x5f\x5f'] }}",
    "an attribute as an item": "{{ ()['__class__']['__base__']['__subclasses__']() }}",
    "globals of a function of Jinja": "{{ cycler.__init__" + POPEN + " }}",
    "globals of a joiner": "{{ joiner.__init__" + POPEN + " }}",
    "globals of a namespace": "{{ namespace.__init__" + POPEN + " }}",
    "globals of what a template may call": "{{ raise_exception.__globals__ }}{{ strftime_now.__self__ }}",
    "builtins of an undefined name": "{{ nothing.__class__.__init__.__globals__['__builtins__'] }}",
    "the template itself": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
    "the context": "{{ self._TemplateReference__context.environment.globals }}",
    "the environment of a filter": "{{ ['x']|map('attr', '__class__')|list }}",
    "a format of a text": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a format of a mapping": "{{ '{x.__class__.__init__.__globals__}'.format_map({'x': messages}) }}",
    "a format that is taken first": "{% set f = '{0.__class__}'.format %}{{ f(f) }}",
    "a format through map": "{{ ['{0.__class__}']|map('format', '')|list }}{{ '%s'|format(''.__class__) }}",
    "a method as a filter": "{{ ([''.format]|first)('{0.__class__}') }}{{ [''.format]|map('__call__')|list }}",
    "code of a function": "{% macro m() %}{% endmacro %}{{ m.__code__ }}{{ m._func.__globals__ }}",
    "frame of a generator": "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "another file": "{% include '/etc/passwd' %}",
    "an imported file": "{% import '/etc/passwd' as x %}{{ x }}",
    "an inherited file": "{% extends '/etc/passwd' %}",
    "a changed list": "{{ messages.append('x') }}{{ messages.clear() }}",
    "a changed mapping": "{{ messages[0].update(x=1) }}{{ messages[0].pop('role') }}",
    "a hidden name in a namespace": "{% set n = namespace(__class__=1) %}{{ n.__class__ }}",
    "the type of dict": "{{ dict.__base__ }}{{ dict.mro() }}",
    "an attribute that is tested": "{{ ''|selectattr('__class__')|list }}{{ ['']|map(attribute='__class__')|list }}",
    "attributes by sort and group": "{{ messages|groupby('__class__') }}{{ messages|sum('__len__') }}",
}
"""Classical ways out, each with more than one try where there is room."""
DOUBLED = "{% set n = namespace(x=START) %}{% for i in range(60) %}{% set n.x = NEXT %}{% endfor %}"
SLOW = ("loops in loops", "a list that doubles itself", "a text that doubles itself")
BOMBS = {
    "loops in loops": "{% for a in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3,
    "a macro that calls itself twice": "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(500) }}",
    "a product of a text": "{{ 'x' * 10 ** 10 }}",
    "a tower of powers": "{{ 9 ** 9 ** 9 }}",
    "a text that is padded": "{{ '%999999999999d' % 1 }}",
    "a text that is filled up": "{{ 'x'.ljust(10 ** 12) }}{{ '{:>999999999999}'.format(1) }}",
    "a text that is indented": "{{ 'x'|center(10 ** 12) }}",
    "a range of everything": "{{ range(10 ** 12)|list }}",
    "a list that doubles itself": DOUBLED.replace("START", "['x']").replace("NEXT", "n.x + n.x"),
    "a text that doubles itself": DOUBLED.replace("START", "'x'").replace("NEXT", "n.x ~ n.x"),
    "a text that replaces itself": DOUBLED.replace("START", "'xx'").replace("NEXT", "n.x|replace('x', n.x)"),
}  # fmt: skip
LEAK = re.compile(r"<class|<function|<built-in|<module|root:|object at 0x|subclasses|f_globals|datetime")
ENVIRONMENTS = {"prompt": prompt_environment, "chat": chat_environment}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out(tmp_path: Path, name: str, kind: str) -> None:
    environment: Callable[[], BoundedEnvironment] = ENVIRONMENTS[kind]
    canary, messages = tmp_path / "canary", [{"role": "user", "content": "x"}]
    with watched() as seen:
        try:
            text = render(
                environment().from_string(ESCAPES[name].replace("CANARY", str(canary))), {"messages": messages}
            )
        except (TemplateError, *FAULTS):
            text = ""
    assert not LEAK.search(text), text
    assert messages == [{"role": "user", "content": "x"}]
    assert not canary.exists() and seen.started + seen.written + seen.connected == []


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.crash] if name in SLOW else []) for name in BOMBS]
)
def test_no_template_takes_the_memory_of_the_machine_or_its_time(name: str) -> None:
    template, before, limits = (
        chat_environment().from_string(BOMBS[name]),
        resident(),
        resource.getrlimit(resource.RLIMIT_AS),
    )
    most, done = [before], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            most.append(resident())

    looking, started = threading.Thread(target=look), time.monotonic()
    looking.start()
    try:
        text = render(template, {"messages": []})
    except (TemplateError, *FAULTS):
        text = ""
    finally:
        done.set()
        looking.join()
    assert len(text) <= LARGEST_TEXT
    assert time.monotonic() - started < MOST_SECONDS + 5
    assert max(most) - before < MOST_BYTES + 2**26
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
