"""The table of GPUs: each card's memory as sold, as nvidia-smi shows it and as CUDA reports it to a process, with sources.

A figure without a public source is absent from the table, and None here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from ..errors import UsageError
from ..results.gpu import Gpu, Published
from ..standard import loads, re
from ..typed import Any
from ..units import GIB, MIB

FIGURES = (
    *("memory", "reported", "usable", "compute_capability", "multiprocessors", "bandwidth", "tensor_rate"),
    "generation",
)
TABLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "catalog", "gpus.json")
# Patterns are texts, which `re` compiles when they are first used: most commands look no card up.
MAKERS_WORDS = r"nvidia|geforce|tesla|quadro|generation|[^a-z0-9]"
GIGABYTES = r"(?<=\d)g$"
NUMBER = r"\d{2,}"
LOOKALIKE, LETTERS_AS_DIGITS = r"(?<=\d)[oil]", {"o": "0", "i": "1", "l": "1"}
# "2x4090" and "A100 x 8".
SEVERAL = r"(?i)(?P<before>\d{1,2}) ?[x×*] ?(?P<card>\w.+)|(?P<card_first>.+\w) ?[x×*] ?(?P<after>\d{1,2})"
# Apple's, AMD's, Intel's and Huawei's accelerators.
OTHER_MAKERS = (
    r"(?i)\b(apple|radeon|instinct|ryzen|strix|intel|arc|gaudi|ascend|m\d( (pro|max|ultra))?|mi ?\d{2,3}[a-z]?|rx ?\d{4}|"
    r"\d{4} ?xtx?|9[14]0[abc]\d?)\b"
)
# The best known card of each memory size that is sold: what an answer is held against if no card was named.
COMMON = (
    *("RTX 3060 12GB", "T4", "RTX 4090", "RTX 5090", "A100 40GB", "L40S", "A100 80GB"),
    *("H20", "H200", "B200"),
)
MOST_NAMES = 5
MOST_CHARACTERS = 80  # of a name repeated in a message


@cache
def table() -> tuple[Gpu, ...]:
    """Every card, in the table's order."""
    with open(TABLE, encoding="utf-8") as file:
        written: Mapping[str, Mapping[str, Any]] = loads(file.read())
    return tuple(_gpu(name, entry) for name, entry in written.items())


def _gpu(name: str, entry: Mapping[str, Any]) -> Gpu:
    figures = {key: Published(**entry[key]) for key in FIGURES if entry.get(key) is not None}
    major, _, minor = figures["compute_capability"].text.partition(".")
    return Gpu(
        name=name,
        kind=entry["kind"],
        # "80 GB" on a card means GiB: 80 GB cards report 81,559 MiB or 81,920 MiB.
        memory_bytes=int(figures["memory"].text.removesuffix(" GB")) * GIB,
        reported_bytes=int(figures["reported"].text.removesuffix("MiB")) * MIB if "reported" in figures else None,
        usable_bytes=_least_bytes(figures["usable"].text) if "usable" in figures else None,
        compute_capability=(int(major), int(minor)),
        multiprocessors=int(figures["multiprocessors"].text) if "multiprocessors" in figures else None,
        bandwidth=_a_second(figures.get("bandwidth")),
        tensor_rate=_a_second(figures.get("tensor_rate")),
        generation=float(figures["generation"].text.removesuffix(" tokens/s")) if "generation" in figures else None,
        aliases=tuple(entry.get("aliases", ())),
        device_names=tuple(entry.get("device_names", ())),
        figures=tuple(figures.items()),
    )


def _a_second(figure: Published | None) -> int | None:
    """Bytes or operations: of "3.35 TB/s", "936 GB/s" or "989.5 TFLOPS"."""
    if figure is None:
        return None
    number, unit = figure.text.split()
    return round(float(number) * (10**9 if unit == "GB/s" else 10**12))


def _least_bytes(text: str) -> int:
    """The least size printed as `text`: llama.cpp rounds "81151 MiB" down, torch rounds "23.52 GiB" to the nearest."""
    number, unit = text.split()
    if unit in ("B", "MiB"):
        return int(number) * (MIB if unit == "MiB" else 1)
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
    if several := re.fullmatch(SEVERAL, name.strip()):
        number, card = several["before"] or several["after"], several["card"] or several["card_first"]
        raise UsageError("gpu_several", name=name, card=find(card).name.replace(" ", "-"), count=number)
    if re.search(OTHER_MAKERS, name):
        raise UsageError("gpu_other_maker", name=name)
    near = _names([*partial, *_similar(name)])
    raise UsageError("gpu_unknown", name=name, nearest=near) if near else UsageError("gpu_unheard_of", name=name)


def _similar(name: str) -> list[Gpu]:
    """Cards with a similar name, best first: a card of another number is no neighbour, so numbers have to agree."""
    numbers = _numbers(name)
    cards_by_name = {
        _folded(alias): gpu
        for gpu in table()
        for alias in (gpu.name, *gpu.aliases)
        if not numbers or numbers & _numbers(alias)
    }
    from difflib import get_close_matches

    return [cards_by_name[alias] for alias in get_close_matches(_folded(name), cards_by_name, 2 * MOST_NAMES, 0.6)]


def _numbers(name: str) -> set[str]:
    """Its numbers of two digits and more, with letters after a digit read as the digit that they look like: "h10O"."""
    return set(re.findall(NUMBER, re.sub(LOOKALIKE, lambda letter: LETTERS_AS_DIGITS[letter[0]], name.casefold())))


def common() -> list[Gpu]:
    """The cards of `COMMON`, smallest first."""
    return sorted((card for card in table() if card.name in COMMON), key=lambda card: card.available_bytes)


def larger(gpu: Gpu) -> list[Gpu]:
    """Cards with more available memory than `gpu`, smallest first."""
    cards = (card for card in table() if card.available_bytes > gpu.available_bytes)
    return sorted(cards, key=lambda card: card.available_bytes)


def named(name: str) -> Gpu | None:
    """The card of exactly this name in the table or in torch; None if there is none."""
    if _capability_in(name) is not None:
        return None
    return next((gpu for gpu in table() if name in (gpu.name, *gpu.device_names)), None)


def compute_capability(name: str) -> tuple[int, int] | None:
    """Compute capability of a card by its name in the table or in torch, or of "sm_90"; None for an unknown card."""
    if (written := _capability_in(name)) is not None:
        return written
    card = named(name)
    return None if card is None else card.compute_capability


def _capability_in(name: str) -> tuple[int, int] | None:
    """The compute capability that a name such as "sm_90" is; None for any other."""
    digits = name[2:].removeprefix("_")
    if name[:2].lower() != "sm" or len(digits) < 2 or not digits.isdecimal():
        return None
    return int(digits[:-1]), int(digits[-1])


def multiprocessors(name: str) -> int | None:
    """Number of multiprocessors of a card by its name in the table or in torch; None if unknown."""
    card = named(name)
    return None if card is None else card.multiprocessors


def threads_per_multiprocessor(name: str) -> int:
    """Resident threads that one multiprocessor of the card has room for; an unknown card counts as sm_80.

    Source: CUDA C++ programming guide, technical specifications per compute capability
    """
    capability = compute_capability(name)
    return 1024 if capability == (7, 5) else 1536 if capability in ((8, 6), (8, 9), (12, 0), (12, 1)) else 2048


def supports(name: str, dtype: str) -> bool | None:
    """`Gpu.supports` for a card by name; None if its compute capability is unknown."""
    return Gpu(name=name, kind="given", memory_bytes=0, compute_capability=compute_capability(name)).supports(dtype)


def _folded(name: str) -> str:
    return re.sub(GIGABYTES, "gb", re.sub(MAKERS_WORDS, "", name.casefold()))


def _names(gpus: list[Gpu]) -> str:
    return ", ".join(list(dict.fromkeys(gpu.name for gpu in gpus))[:MOST_NAMES])
