"""The peers at fixed versions, each set in an environment of its own, and the allocator that everyone runs with.

torch comes first and alone: later packages then keep the build that is there, on a machine without a GPU the small one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
PINS = {
    "stock": ("transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "trl==1.16.0", "datasets"),
    "llamafactory": ("llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0"),
}
SHOWN = ("torch", "transformers", "peft", "accelerate", "trl", "llamafactory", "datasets")
_STUB = '"""Stands in for torchaudio, whose wheel does not load beside torch for CPU."""\n__version__ = "0"\n'
_TCMALLOC = "libtcmalloc_minimal.so.4"


class InstallError(Exception):
    """An environment could not be made; the message has the end of what the installer said."""


def python_of(name: str, cache: Path) -> Path:
    """The interpreter of an environment, which is made first if it is not there or was cut off.

    Raises:
        InstallError: the installer failed.
    """
    folder = cache / "venvs" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join((TORCH, *PINS[name]))
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", folder], [*pip, TORCH], [*pip, TORCH, *PINS[name]]):
        _run([str(word) for word in command])
    if name == "llamafactory":
        _mend(python)
    ready.write_text(wanted, encoding="utf-8")
    return python


def _mend(python: Path) -> None:
    """Take out what does not load beside torch for CPU: torchvision is not needed, torchaudio only imported."""
    _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio"])
    packages = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    (Path(packages) / "torchaudio.py").write_text(_STUB, encoding="utf-8")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command[:6])} ...: {done.stderr.strip()[-600:]}")
    return done.stdout


def versions_of(python: Path) -> dict[str, str]:
    """Versions of the packages that matter, as the interpreter has them."""
    program = (
        "import json, sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try: found[name] = version(name)\n    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(_run([str(python), "-c", program, *SHOWN]))
    return found


def find_tcmalloc(cache: Path) -> Path | None:
    """tcmalloc of the system, else of its Debian package, unpacked in the cache, not installed; None without both."""
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout if os.name == "posix" else ""
    for line in listed.splitlines():
        if _TCMALLOC in line:
            return Path(line.split("=>")[1].strip())
    folder = (cache / "tcmalloc").absolute()
    if not list(folder.rglob(_TCMALLOC)):
        folder.mkdir(parents=True, exist_ok=True)
        fetch = "apt-get download libtcmalloc-minimal4 && dpkg-deb -x libtcmalloc-minimal4*.deb ."
        subprocess.run(fetch, shell=True, cwd=folder, capture_output=True)
    return next(iter(folder.rglob(_TCMALLOC)), None)
