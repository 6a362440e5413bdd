"""Parses PYTORCH_CUDA_ALLOC_CONF into Settings; refuses options that are not modelled."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import UnsupportedError, UsageError
from ...language import Message
from ...standard import re
from .allocator import (
    INTERVALS,
    LARGE_SEGMENT_BYTES,
    MIB,
    OWN_SEGMENT_BYTES,
    UNLIMITED_BYTES,
    Settings,
)

# CUDAAllocatorConfig::getKeys and AcceleratorAllocatorConfig::getMutableKeys, torch 2.13: options that change no size on
# the device. The collector runs only if the memory fraction is below 1 (malloc, allowed_memory_maximum), which is refused.
IDLE_SETTINGS = (
    "garbage_collection_threshold", "graph_capture_record_stream_reuse", "pinned_free_catch_all", "pinned_max_cached_size_mb",
    "pinned_max_round_threshold_mb", "pinned_num_register_threads", "pinned_reserve_segment_size_mb",
    "pinned_use_background_threads", "pinned_use_cuda_host_register", "release_lock_on_cudamalloc",
)  # fmt: skip
# The only value of each option that is modelled.
FIXED_SETTINGS = {"backend": "native", "per_process_memory_fraction": "1.0", "throw_on_cudamalloc_oom": "False"}
SIZE_SETTINGS = (
    "expandable_segments", "large_segment_size_mb", "max_non_split_rounding_mb", "max_split_size_mb", "roundup_power2_divisions",
)  # fmt: skip
KNOWN_SETTINGS = sorted((*SIZE_SETTINGS, *FIXED_SETTINGS, *IDLE_SETTINGS))


def read_settings(text: str) -> Settings:
    """The value of PYTORCH_CUDA_ALLOC_CONF. UsageError for what torch refuses, UnsupportedError for what is not modelled here.

    Stricter than torch, which takes "25abc" for 25. Source: AcceleratorAllocatorConfig::parseArgs, c10/core/AllocatorConfig.cpp
    """
    if not text.strip():
        return Settings()
    entries = re.split(r",(?![^\[]*\])", "".join(text.split()).removesuffix(","))  # commas outside brackets
    values = {name: value for name, _, value in (entry.partition(":") for entry in entries)}
    for name, value in values.items():
        if name in FIXED_SETTINGS and value != FIXED_SETTINGS[name]:
            raise UnsupportedError("alloc_not_modelled", setting=f"{name}:{value}")
        if name not in KNOWN_SETTINGS:
            raise UsageError("alloc_unknown", found=name, known=", ".join(KNOWN_SETTINGS))
    # The parser's lower limits: above kMinLargeAlloc for the segment, and the segment's size for the other two.
    segment = _megabytes(values, "large_segment_size_mb", least=OWN_SEGMENT_BYTES // MIB + 1) or LARGE_SEGMENT_BYTES
    least = segment // MIB
    return Settings(
        large_segment_bytes=segment,
        max_split_bytes=_megabytes(values, "max_split_size_mb", least=least) or UNLIMITED_BYTES,
        max_non_split_rounding_bytes=_megabytes(values, "max_non_split_rounding_mb", least=least) or segment,
        roundup_divisions=_divisions(values.get("roundup_power2_divisions", "[]")),
        expandable_segments=_switch(values.get("expandable_segments", "False")),
    )


def _bad_value(name: str, value: str, expected: Message) -> UsageError:
    return UsageError("alloc_bad_value", setting=f"{name}:{value}", expected=expected)


def _megabytes(values: Mapping[str, str], name: str, *, least: int) -> int | None:
    """The option in bytes; None if it is not set."""
    value = values.get(name)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
        raise _bad_value(name, value, Message("alloc_expects_megabytes", least=least))
    return int(value) * MIB


def _switch(value: str) -> bool:
    if value not in ("True", "False"):
        raise _bad_value("expandable_segments", value, Message("alloc_expects_switch"))
    return value == "True"


def _divisions(value: str) -> tuple[int, ...]:
    """One number for all intervals, or [MiB:number,...,>:number]: parseRoundUpPower2Divisions.

    The first entry also applies below its MiB, unlisted intervals have no divisions, and ">" means all above the last.
    """
    if _is_power_of_2(value):
        return (int(value),) * INTERVALS
    entries = re.findall("([0-9]+|>):([0-9]+)", value)
    well_formed = all(
        (bound == ">" or _is_power_of_2(bound)) and (parts == "0" or _is_power_of_2(parts)) for bound, parts in entries
    )
    if not well_formed or value != "[" + ",".join(f"{bound}:{parts}" for bound, parts in entries) + "]":
        raise _bad_value("roundup_power2_divisions", value, Message("alloc_expects_divisions"))
    divisions = [0] * INTERVALS
    last, named = 0, False
    for bound, parts in entries:
        if bound == ">":
            begin, end = last + 1, INTERVALS
        else:
            last = min(int(bound).bit_length() - 1, INTERVALS - 1)
            begin, end = last if named else 0, last + 1
            named = True
        divisions[begin:end] = [int(parts)] * (end - begin)
    return tuple(divisions)


def _is_power_of_2(text: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None and int(text).bit_count() == 1
