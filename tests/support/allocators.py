"""Requests and settings for the allocator's model."""

from __future__ import annotations

from hypothesis import strategies as st

from qwen_inspect.predicting.allocation.allocator import Settings

MIB = 1 << 20

EXPANDABLE = Settings(expandable_segments=True)

BOUNDARIES = [
    limit * unit + extra
    for unit, limit in ((512, 1), (MIB, 1), (MIB, 2), (MIB, 10), (MIB, 20), (MIB, 43))
    for extra in (-1, 0, 1)
]

sizes = st.integers(1, 2 * MIB) | st.integers(1, 100 * MIB) | st.sampled_from(BOUNDARIES)
