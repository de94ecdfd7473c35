"""What may be installed beside ftune: no version with a known hole in what it opens."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
LOWEST = {
    "torch": (2, 10),  # GHSA-63cw-57p8-fm3p: memory corruption in torch.load of weights only, up to 2.9.1
    "transformers": (5, 0),  # CVE-2026-1839: a pickle in the state of random numbers
    "jinja2": (3, 1, 6),  # CVE-2025-27516: a way out of the sandbox through attr
    "pyarrow": (14, 0, 1),  # CVE-2023-47248: code in an extension type
    "safetensors": (0, 4),
    "pyyaml": (5, 4),  # CVE-2020-14343: code in a tag
}


@pytest.mark.parametrize("package", LOWEST)
def test_no_version_with_a_known_hole_is_allowed(package: str) -> None:
    asked = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    [bound] = [found for line in asked if (found := re.fullmatch(rf"{package}(\[.+\])?>=([0-9.]+)", line))]
    assert tuple(map(int, bound[2].split("."))) >= LOWEST[package]
