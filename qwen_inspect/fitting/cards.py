"""The cards that a command names."""

from __future__ import annotations

from itertools import chain

from ..errors import UsageError
from ..loaders import gpus
from ..results.fit import Gpu
from ..values import replace


def cards(names: str | None, memory: tuple[str, int] | None = None) -> tuple[Gpu, ...]:
    """The cards of comma-separated `names` ("auto": this machine's), or a card of which only the memory is given (text, bytes).

    UsageError for a name that matches no card or several, or a card named twice; UnavailableError if this machine reports none.
    """
    if (names is None) == (memory is None):
        raise UsageError("fit_needs_card" if names is None else "fit_card_twice")
    if memory is not None:
        text, size_bytes = memory
        return (Gpu(name=text, kind="given", memory_bytes=size_bytes),)
    assert names is not None
    groups = [_named(name.strip()) for name in names.split(",")]
    if repeated := [group[0].name for index, group in enumerate(groups) if group in groups[:index]]:
        raise UsageError("fit_card_named_twice", name=repeated[0])
    return tuple(chain.from_iterable(groups))


def _named(name: str) -> tuple[Gpu, ...]:
    if name != "auto":
        return (gpus.find(name),)
    from ..measuring.nvml import cards_here

    return tuple(map(_with_usable_bytes, cards_here()))


def _with_usable_bytes(card: Gpu) -> Gpu:
    """`card` with the smallest known usable size: the driver's, or the table's, which CUDA reported (CUDA reserves some)."""
    same_model = (
        row for row in gpus.table() if card.name in row.device_names and row.reported_bytes == card.reported_bytes
    )
    usable = [row.usable_bytes for row in (card, *same_model) if row.usable_bytes is not None]
    return replace(card, usable_bytes=min(usable, default=None))
