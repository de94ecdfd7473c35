"""The command line in the process of the test, which has torch already, and what it must leave as it was."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from click.testing import Result
from typer.testing import CliRunner

from ftune.cli import app


def invoke(*arguments: object) -> Result:
    """`ftune ARGUMENTS` without drawing and without waiting for the disk."""
    with mock.patch("ftune.report_files.pictures", return_value={}), mock.patch("ftune.store._fsync"):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def content(folder: Path) -> dict[Path, bytes]:
    """Every file but the lock's."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.match(".lock*")}
