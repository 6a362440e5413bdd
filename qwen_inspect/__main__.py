"""The command, and `python -m qwen_inspect`: an interrupt during the imports ends it quietly."""

from __future__ import annotations

import gc

from .interrupts import leave, on_interrupt
from .typed import NoReturn


def script() -> NoReturn:
    on_interrupt(leave)
    gc.disable()  # `main` needs no collector, nor do the imports: it would take a twentieth of a short command's time
    from .cli import script as run

    run()


if __name__ == "__main__":
    script()
