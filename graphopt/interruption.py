"""Ctrl-C that cannot get lost: native code and its callbacks may swallow the exception that a signal raises."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # exit status of a command that SIGTERM ended


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt on SIGINT, and again whenever the yielded function is called after one.

    SIGTERM raises SystemExit, so that temporary folders are removed. Outside of the main thread, where Python allows
    no handlers, signals keep theirs.
    """
    pressed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
