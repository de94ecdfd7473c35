"""What all verbs share: options, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from ftune.signals import StopFlag

Verb = TypeVar("Verb", bound=Callable[..., None])

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)]
TargetPath = Annotated[
    Path,
    typer.Argument(
        metavar="TARGET", help="A run folder, a checkpoint, a model folder, or a recipe (then its base model).",
        show_default=False,
    ),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. train.batch_size=8; ~KEY drops it. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what libraries log, and tracebacks.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network.")]


OUT_OF_MEMORY = "out of memory. Lower train.micro_batch_size, --batch-size or data.max_length; the run is not harmed."
TORCH_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch's allocators say, outside of a training step, which knows more."""
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
"""What torch's process groups say of one that has ended: it, not this one, knows why."""
_DRIVING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters that JSON leaves as they are: the other set, and those that turn the direction of writing."""
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f]|{_DRIVING.pattern}")


def plain(text: str) -> str:
    """`text` for a screen or a file: no character of it drives a terminal, and no URL in it holds a password."""
    from ftune.errors import without_passwords

    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], without_passwords(text))


def guarded(verb: Verb) -> Verb:
    """Turn every failure of `verb` into a message on stderr and its exit code."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        from ftune.errors import FtuneError, exit_code_of

        try:
            verb(*arguments, **options)
        except FtuneError as error:
            if options.get("verbose"):
                print(plain(traceback.format_exc()), file=sys.stderr)
            fail(str(error), exit_code_of(error))
        except KeyboardInterrupt:
            fail("interrupted.", 130)
        except MemoryError:
            fail(OUT_OF_MEMORY, 9)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of stdout has left
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # of the machine, or a bug of ours
            if options.get("verbose"):
                print(plain(traceback.format_exc()), file=sys.stderr)
            fail(*_explained(error))

    return run  # type: ignore[return-value]


def fail(message: str, code: int) -> None:
    """Print `message` and leave with `code`."""
    message = plain(message)
    rank = os.environ.get("RANK", "0")
    if rank == "0" or code not in (130, 143):
        print(message if rank == "0" else f"rank {rank}: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say of an error that is none of ours by name, and the exit code."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_OUT_OF_MEMORY):
        return OUT_OF_MEMORY, 9
    if "RANK" in os.environ and any(words in str(error) for words in PEER_IS_GONE):
        return "another process of this run has ended. Its own message, if it had time for one, says why.", 8
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the output'} cannot be written: {error.strerror}.", 5
    return _bug_report(error), 1


def _bug_report(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="ftune-crash-", suffix=".txt", delete=False) as file:
        file.write(plain("".join(traceback.format_exception(error))))
    line = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {line}\nThis is a bug of ftune: please report it with {file.name}"


def print_json(value: Any) -> None:
    """One JSON object on stdout, in which no character drives a terminal."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-") == "utf-8"
    text = json.dumps(value, indent=2, ensure_ascii=not unicode, allow_nan=True)
    print(_DRIVING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def prepare_process(*, offline: bool, verbose: bool) -> None:
    """Before anything heavy is imported: no telemetry, no network if asked, quiet libraries."""
    from ftune.allocator import ask_for_huge_pages

    ask_for_huge_pages(os.environ)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by `deterministic: true`, before CUDA starts
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes would load it; undone where a run compiles
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    if not verbose:
        import logging
        import warnings

        warnings.simplefilter("ignore")
        logging.captureWarnings(True)
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses a kernel we do not use
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def begin(*, offline: bool, verbose: bool) -> StopFlag:
    """First thing in a verb that may take long: signals set a flag from here on, and the process is prepared."""
    from ftune.signals import StopFlag

    stop = StopFlag()
    stop.install()
    prepare_process(offline=offline, verbose=verbose)
    return stop


def quiet_libraries() -> None:
    """After transformers can be imported: progress bars and warnings of libraries stay off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
