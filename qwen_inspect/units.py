"""Formats and parses counts, sizes and shares. GiB is 2^30 bytes, GB 10^9."""

from __future__ import annotations

from collections.abc import Sequence

from .standard import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNKNOWN = "–"


def count(value: int | None) -> str:
    """1234567 -> "1,234,567"."""
    return UNKNOWN if value is None else f"{value:,}"


def short_count(value: int | None) -> str:
    """596049920 -> "596.05M": two decimals of the largest of K, M, B, T that leaves a whole part."""
    if value is None:
        return UNKNOWN
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if value >= size:
            return f"{value / size:.2f}{letter}"
    return str(value)


def mib(size_bytes: int | None) -> str:
    """Bytes in MiB with two decimals and no unit, for columns with the unit in their heading."""
    return UNKNOWN if size_bytes is None else f"{size_bytes / MIB:,.2f}"


def size(size_bytes: int | None) -> str:
    """Bytes with the largest binary unit that leaves a whole part: "1.11 GiB", "112.00 KiB", "640 B"."""
    if size_bytes is None:
        return UNKNOWN
    for unit_bytes, unit in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:,.2f} {unit}"
    return f"{size_bytes} B"


def seconds(value: float) -> str:
    """0.01234 -> "12.3 ms", 4.5 -> "4.50 s"."""
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def shares(values: Sequence[int]) -> list[int]:
    """Each value's share of their sum in basis points (0.01 %), adding up to 10,000 by the largest remainder method."""
    total = sum(values)
    if total == 0:
        return [0] * len(values)
    floors = [value * 10_000 // total for value in values]
    by_remainder = sorted(range(len(values)), key=lambda index: -(values[index] * 10_000 % total))
    for index in by_remainder[: 10_000 - sum(floors)]:
        floors[index] += 1
    return floors


def percent(basis_points: int) -> str:
    """2610 -> "26.10%"."""
    return f"{basis_points // 100}.{basis_points % 100:02d}%"


def parse_tokens(text: str) -> int:
    """ "32768" or "32k" (k = 1024, m = 1024 x 1024) as a positive number of tokens; ValueError otherwise."""
    digits, factor = text, 1
    if text[-1:].lower() in ("k", "m"):
        digits, factor = text[:-1], KIB if text[-1].lower() == "k" else MIB
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12 or int(digits) == 0:
        raise ValueError(text)
    return int(digits) * factor


SIZE_UNITS = {
    "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


def parse_size(text: str) -> int:
    """ "16GiB", "15.5 GiB" or "16GB" in whole bytes, rounded down; ValueError otherwise. The unit is required."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([A-Za-z]{1,3})", text)
    if match is None or match[3].lower() not in SIZE_UNITS:
        raise ValueError(text)
    decimals = match[2] or ""
    size_bytes: int = int(match[1] + decimals) * SIZE_UNITS[match[3].lower()] // 10 ** len(decimals)
    if size_bytes == 0:
        raise ValueError(text)
    return size_bytes


def signed(value: int) -> str:
    """-1234 -> "-1,234", 5 -> "+5", 0 -> "0"."""
    return f"{value:+,}" if value else "0"


def signed_size(size_bytes: int) -> str:
    """`size`, with a minus sign below zero: "−524.64 MiB"."""
    return f"−{size(-size_bytes)}" if size_bytes < 0 else size(size_bytes)
