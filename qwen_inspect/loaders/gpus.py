"""The table of GPUs: each card's memory as sold, as nvidia-smi shows it and as CUDA reports it to a process, with sources.

A figure without a public source is absent from the table, and None here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..results.fit import Gpu, Published
from ..units import GIB, MIB

TABLE = Path(__file__).parent.parent / "catalog" / "gpus.json"
MAKERS_WORDS = re.compile(r"nvidia|geforce|tesla|quadro|generation|[^a-z0-9]")
MOST_NAMES = 5
MOST_CHARACTERS = 80  # of a name repeated in a message


@cache
def table() -> tuple[Gpu, ...]:
    """Every card, in the table's order."""
    written: Mapping[str, Mapping[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(_gpu(name, entry) for name, entry in written.items())


def _gpu(name: str, entry: Mapping[str, Any]) -> Gpu:
    figures = {
        key: Published(**entry[key])
        for key in ("memory", "reported", "usable", "compute_capability")
        if entry.get(key) is not None
    }
    major, _, minor = figures["compute_capability"].text.partition(".")
    return Gpu(
        name=name,
        kind=entry["kind"],
        # "80 GB" on a card means GiB: 80 GB cards report 81,559 MiB or 81,920 MiB.
        memory_bytes=int(figures["memory"].text.removesuffix(" GB")) * GIB,
        reported_bytes=int(figures["reported"].text.removesuffix("MiB")) * MIB if "reported" in figures else None,
        usable_bytes=_least_bytes(figures["usable"].text) if "usable" in figures else None,
        compute_capability=(int(major), int(minor)),
        aliases=tuple(entry.get("aliases", ())),
        device_names=tuple(entry.get("device_names", ())),
        figures=tuple(figures.items()),
    )


def _least_bytes(text: str) -> int:
    """The least size printed as `text`: llama.cpp rounds "81151 MiB" down, torch rounds "23.52 GiB" to the nearest."""
    number, unit = text.split()
    if unit == "MiB":
        return int(number) * MIB
    return (2 * int(number.replace(".", "")) - 1) * GIB // 200


def find(name: str) -> Gpu:
    """The card called `name`, or with that alias, ignoring case, spaces and dashes; UsageError lists the nearest names."""
    wanted, name = _folded(name), name[:MOST_CHARACTERS]
    if not wanted:
        raise UsageError("gpu_empty", name=name)
    cards_by_alias: dict[str, list[Gpu]] = {}
    for gpu in table():
        for alias in {_folded(alias) for alias in (gpu.name, *gpu.aliases, *gpu.device_names)}:
            cards_by_alias.setdefault(alias, []).append(gpu)
    cards = cards_by_alias.get(wanted, [])
    if len(cards) == 1:
        return cards[0]
    if cards:
        raise UsageError("gpu_ambiguous", name=name, nearest=_names(cards))
    partial = [gpu for gpu in table() if wanted in _folded(gpu.name)]
    if len(partial) > 1:
        raise UsageError("gpu_ambiguous", name=name, nearest=_names(partial))
    similar = [
        cards_by_alias[alias][0] for alias in get_close_matches(wanted, cards_by_alias, n=2 * MOST_NAMES, cutoff=0.5)
    ]
    raise UsageError("gpu_unknown", name=name, nearest=_names([*partial, *similar]) or "–")


def larger(gpu: Gpu) -> list[Gpu]:
    """Cards with more available memory than `gpu`, smallest first."""
    cards = (card for card in table() if card.available_bytes > gpu.available_bytes)
    return sorted(cards, key=lambda card: card.available_bytes)


def compute_capability(name: str) -> tuple[int, int] | None:
    """Compute capability of a card by its name in the table or in torch, or of "sm_90"; None for an unknown card."""
    if written := re.fullmatch(r"sm_?(\d+)(\d)", name, re.IGNORECASE):
        return int(written[1]), int(written[2])
    named = (gpu for gpu in table() if name in (gpu.name, *gpu.device_names))
    return next((gpu.compute_capability for gpu in named), None)


def supports(name: str, dtype: str) -> bool | None:
    """`Gpu.supports` for a card by name; None if its compute capability is unknown."""
    return Gpu(name=name, kind="given", memory_bytes=0, compute_capability=compute_capability(name)).supports(dtype)


def _folded(name: str) -> str:
    return MAKERS_WORDS.sub("", name.casefold())


def _names(gpus: list[Gpu]) -> str:
    return ", ".join(list(dict.fromkeys(gpu.name for gpu in gpus))[:MOST_NAMES])
