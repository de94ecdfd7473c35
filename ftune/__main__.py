"""`python -m ftune`; also what the launcher starts on each device."""

from ftune.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
