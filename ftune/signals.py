"""SIGINT, SIGTERM and SIGUSR1 set a flag; work looks at it between batches. A second SIGINT leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

from ftune.errors import Interrupted


class StopFlag:
    """Whether the user or the machine asked for an end, or for a checkpoint."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.save_asked = False

    def install(self) -> None:
        """Take over the signals of this process. Call from the main thread, before anything slow."""
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self._save)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            os._exit(128 + number)  # every durable write is whole or absent, so nothing can be torn
        self.signal_number = number

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save_asked = True

    @property
    def set(self) -> bool:
        """Whether an end was asked for."""
        return self.signal_number is not None

    def check(self) -> None:
        """End here if that was asked for.

        Raises:
            Interrupted: outside of training, where nothing has to be saved.
        """
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, "interrupted; nothing is lost. The same command goes on.")
