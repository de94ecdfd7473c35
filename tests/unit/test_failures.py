"""What every verb does with failures: a message, an exit code, and a report where the fault is ours."""

from __future__ import annotations

import pytest
import typer

from ftune.cli.common import guarded

GONE = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5022. This is typically caused by"


@pytest.mark.parametrize(
    ("error", "rank", "code", "message"),
    [
        (RuntimeError(GONE), "1", 8, "rank 1: another process of this run has ended"),
        (RuntimeError(GONE), None, 1, "internal error: RuntimeError"),
        (RuntimeError("CUDA out of memory. Tried to"), None, 9, "out of memory. Lower"),
        (RuntimeError("odd"), "1", 1, "This is a bug of ftune"),
        (KeyboardInterrupt(), None, 130, "interrupted."),
    ],
)
def test_failures_have_a_message_and_a_code(
    error: BaseException, rank: str | None, code: int, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    @guarded
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        verb()
    said = capsys.readouterr().err
    assert caught.value.exit_code == code and message in said and "Traceback" not in said
