"""The command, and `python -m qwen_inspect`: an interrupt during the imports ends it quietly."""

from __future__ import annotations

from typing import NoReturn

from .interrupts import leave, on_interrupt


def script() -> NoReturn:
    on_interrupt(leave)
    from .cli import script as run

    run()


if __name__ == "__main__":
    script()
