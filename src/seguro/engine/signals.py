"""Being asked to stop: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from seguro.core.errors import SeguroError


class Stopped(SeguroError):
    """Training was asked to stop (signal); a checkpoint was saved, the same command goes on."""

    exit_code = 130


@contextmanager
def answered(ask: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `ask` answer SIGTERM and Ctrl-C. No effect off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Turn SIGTERM and the first Ctrl-C into `stop`; the second stops now. No effect off the main thread."""

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    with answered(ask):
        yield
