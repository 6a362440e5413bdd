"""Which modules belong to a tower, and what a run leaves idle: its weights are held, and it does not run."""

from __future__ import annotations

from ..results.memory import Run
from ..standard import re

TOWERS = "vis", "audio"  # how the names of their modules begin: visual, vision_tower, audio_tower


def is_within(name: str, module: str) -> bool:
    """Whether a part of a module's name, or a word of it, begins with this name."""
    if module.startswith(name) or f".{name}" in module:
        return True
    return name in module and re.search(rf"\b{name}", module) is not None


def is_idle(module: str, run: Run) -> bool:
    """Whether the module belongs to a tower that this run gives nothing to."""
    given = (False, False) if run.media is None else (bool(run.media.items), bool(run.media.clips))
    return any(is_within(name, module) and not runs for name, runs in zip(TOWERS, given, strict=True))


def idle_components(run: Run) -> tuple[str, ...]:
    """The components of a module tree that this run gives nothing to."""
    seen = run.media is not None and run.media.items
    heard = run.media is not None and run.media.clips
    return ("speech", *(() if seen else ("vision",)), *(() if heard else ("audio",)))
