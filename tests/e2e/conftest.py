"""Runs that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import ftune, write_recipe


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    ftune("train", write_recipe(folder), "--quiet", cwd=folder)
    return folder
