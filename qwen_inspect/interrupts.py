"""Ctrl-C before and after a command's own work, where Python would print a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable

from .standard import signal
from .typed import Any, NoReturn

EXIT_INTERRUPTED = 130


def leave(*_: object) -> NoReturn:
    """Ends the process at once."""
    os._exit(EXIT_INTERRUPTED)


def on_interrupt(handler: Callable[..., Any]) -> None:
    """Has Ctrl-C call `handler`; where interrupts are ignored, as under nohup, they stay so."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, leave):
        signal.signal(signal.SIGINT, handler)
