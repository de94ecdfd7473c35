"""`python -m ftune`; also what the launcher starts on each device."""

import signal


def main() -> None:
    """Run the command line. Until a verb listens to signals, they end the process without a word: nothing has begun."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks for a checkpoint, and there is nothing to save
    from ftune.cli import app

    app()


if __name__ == "__main__":
    main()
