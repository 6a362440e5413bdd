"""The caching allocator's model: PyTorch's rules with literal sizes, and a slow one written another way that must agree."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.predicting.allocation.allocator import (
    DEFAULTS,
    Allocator,
    Block,
    Driver,
    OutOfMemory,
    Settings,
    Usage,
)
from qwen_inspect.predicting.allocation.allocator_settings import read_settings
from qwen_inspect.predicting.allocation.replay import (
    Alive,
    load_from_warm_up_block,
    load_one_by_one,
    replay,
    warm_up_bytes,
)
from qwen_inspect.results.timeline import Allocate, Free, Stage, Timeline

from ..support.allocators import EXPANDABLE, MIB, sizes

# --- the rules, one at a time


@pytest.mark.parametrize(
    ("requested", "allocated", "reserved"),
    [
        # round_size: multiples of 512 B; get_allocation_size: 2 MiB in the small pool
        (1, 512, 2_097_152),
        (512, 512, 2_097_152),
        (513, 1_024, 2_097_152),
        # get_pool: 1 MiB is small, one byte more is large and takes 20 MiB
        (1_048_576, 1_048_576, 2_097_152),
        (1_048_577, 1_049_088, 20_971_520),
        # the workspace of cuBLAS before Hopper: 2 x 4096 KiB + 8 x 16 KiB
        (8_519_680, 8_519_680, 20_971_520),
        # kMinLargeAlloc: below 10 MiB a segment of 20 MiB, from 10 MiB on the request in whole 2 MiB
        (10_485_248, 10_485_248, 20_971_520),
        (10_485_760, 10_485_760, 10_485_760),
        (10_485_761, 10_486_272, 12_582_912),
        # should_split: Qwen2.5-3B's 2048 x 11008 bfloat16 weight, 43 MiB, leaves exactly 1 MiB of 44 and takes it along
        (45_088_768, 46_137_344, 46_137_344),
        (45_088_257, 46_137_344, 46_137_344),
        (45_088_256, 45_088_256, 46_137_344),  # 512 B less leave 1 MiB + 512 B, which are split off
        (33_554_432, 33_554_432, 33_554_432),  # the workspace of cuBLAS on Hopper
        (0, 0, 0),  # NativeCachingAllocator::allocate
    ],
)
def test_a_request_takes(requested: int, allocated: int, reserved: int) -> None:
    allocator = Allocator()
    block = allocator.allocate(requested)
    assert (block.size_bytes, allocator.usage) == (allocated, Usage(allocated, reserved, requested))
    allocator.free(block)
    assert allocator.usage == Usage(0, reserved, 0)
    allocator.empty_cache()
    assert allocator.usage == Usage(0, 0, 0)
    assert allocator.peak == Usage(allocated, reserved, requested)


def test_rounding_of_108_weights_is_108_mib() -> None:
    allocator = Allocator()
    for _ in range(108):
        allocator.allocate(45_088_768)
    assert allocator.usage.rounding_bytes == 113_246_208


def test_a_small_block_is_split_to_the_last_512_bytes() -> None:
    allocator = Allocator()
    first, second = allocator.allocate(1_048_576), allocator.allocate(1_048_064)
    last = allocator.allocate(512)
    # The segment lies at the bottom of the driver's first step of 32 MiB.
    assert [block.address + 32 * MIB for block in (first, second, last)] == [0, 1_048_576, 2_096_640]
    assert allocator.usage.cached_bytes == 0


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = Allocator()
    sizes = (40 * MIB, 24 * MIB, 30 * MIB, 24 * MIB)
    blocks = [allocator.allocate(size) for size in sizes]
    for block in blocks:
        allocator.free(block)
    # 23 MiB fit into both blocks of 24 MiB: the lower one, which is the later, whole, for 1 MiB is no rest.
    assert allocator.allocate(23 * MIB) is blocks[3]
    assert blocks[3].size_bytes == 24 * MIB
    # 25 MiB: out of 30 MiB, and 5 MiB are split off.
    taken = allocator.allocate(25 * MIB)
    assert (taken.address, taken.size_bytes) == (blocks[2].address, 25 * MIB)
    assert allocator.reserved_bytes == 118 * MIB


def test_segments_lie_at_ever_lower_addresses_and_later_ones_in_what_is_left() -> None:
    """As in gen-moe15-4L of benchmarks/recorded: 660 MiB, 330 and, in their 352 MiB, 22; the next 22 lie below."""
    driver = Driver()
    placed = [driver.place(size * MIB) // MIB for size in (660, 330, 22, 22, 2)]
    assert placed == [-672, -672 - 352, -672 - 22, -672 - 352 - 32, -672 - 352 - 32 + 22]


def test_what_is_given_back_is_room_but_not_whole_steps() -> None:
    driver = Driver()
    first, second = driver.place(20 * MIB), driver.place(20 * MIB)
    third = driver.place(2 * MIB)
    assert (second - first, third - second) == (-32 * MIB, 20 * MIB)
    driver.give_back(first, 20 * MIB)  # and with it the 12 MiB beside
    driver.give_back(second, 20 * MIB)
    assert driver.place(12 * MIB) == second  # beside the 2 MiB, at the bottom
    assert driver.place(20 * MIB) == second - 32 * MIB


def test_free_neighbours_merge() -> None:
    allocator = Allocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    for index in (0, 2, 3, 1):
        allocator.free(blocks[index])
    assert allocator.allocate(20 * MIB) is blocks[0]
    assert allocator.reserved_bytes == 20 * MIB


def test_empty_cache_keeps_segments_in_part_use() -> None:
    allocator = Allocator()
    kept, freed = allocator.allocate(4 * MIB), allocator.allocate(4 * MIB)
    whole = allocator.allocate(64 * MIB)
    allocator.free(freed)
    allocator.free(whole)
    allocator.empty_cache()
    assert allocator.usage == Usage(4 * MIB, 20 * MIB, 4 * MIB)
    allocator.free(kept)
    allocator.empty_cache()
    assert list(allocator.segments()) == []


def test_free_segments_go_back_before_memory_runs_out() -> None:
    allocator = Allocator(capacity_bytes=100 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(80 * MIB)
    assert allocator.usage == Usage(80 * MIB, 80 * MIB, 80 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(20 * MIB + 1)
    assert allocator.allocate(20 * MIB).size_bytes == 20 * MIB
    assert allocator.peak.reserved_bytes == 100 * MIB


def test_a_block_is_freed_once() -> None:
    allocator = Allocator()
    block = allocator.allocate(100)
    allocator.free(block)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(block)
    with pytest.raises(ValueError, match="-1 bytes"):
        allocator.allocate(-1)


def test_peaks_are_reset_to_the_present() -> None:
    allocator = Allocator()
    allocator.allocate(1)
    allocator.free(allocator.allocate(3 * MIB))
    assert allocator.peak == Usage(3 * MIB + 512, 22 * MIB, 3 * MIB + 1)
    allocator.reset_peak()
    assert allocator.peak == Usage(512, 22 * MIB, 1)


# --- the rules that settings change


def test_expandable_segments_lose_nothing_to_rounding() -> None:
    allocator = Allocator(EXPANDABLE)
    for _ in range(3):
        allocator.allocate(45_088_768)
    # 129 MiB in pages of 20 MiB (struct ExpandableSegment); without the setting 132 MiB in three segments.
    assert allocator.usage == Usage(135_266_304, 140 * MIB, 135_266_304)
    allocator.allocate(1)
    assert allocator.reserved_bytes == 142 * MIB


def test_expandable_segments_give_back_whole_pages() -> None:
    allocator = Allocator(EXPANDABLE)
    blocks = [allocator.allocate(30 * MIB) for _ in range(3)]  # 100 MiB mapped, 90 in use
    allocator.free(blocks[1])
    allocator.empty_cache()  # of 30 to 60 MiB the page from 40 to 60
    assert allocator.usage == Usage(60 * MIB, 80 * MIB, 60 * MIB)
    assert [sum(block.size_bytes for block in segment) for segment in allocator.segments()] == [40 * MIB, 40 * MIB]
    # 25 MiB fit neither 10 MiB of either side: the hole is mapped again, being the lowest room.
    assert allocator.allocate(25 * MIB).address == blocks[1].address
    assert allocator.reserved_bytes == 100 * MIB


def test_a_block_that_can_grow_is_left_for_last() -> None:
    allocator = Allocator(EXPANDABLE)
    blocks = [allocator.allocate(size * MIB) for size in (18, 4, 10)]  # 40 MiB mapped, the last 8 free and able to grow
    allocator.free(blocks[0])
    assert allocator.allocate(6 * MIB).address == blocks[0].address


def test_blocks_from_max_split_size_on_stay_whole() -> None:
    allocator = Allocator(read_settings("max_split_size_mb:100"))
    large = allocator.allocate(150 * MIB)
    allocator.free(large)
    assert allocator.allocate(90 * MIB).address != large.address  # below the limit: not out of a block above it
    assert (
        allocator.allocate(130 * MIB).address != large.address
    )  # 20 MiB smaller: not within max_non_split_rounding_mb
    assert allocator.allocate(130 * MIB + 1) is large
    assert large.size_bytes == 150 * MIB


def test_whole_blocks_go_back_first_where_memory_runs_out() -> None:
    allocator = Allocator(read_settings("max_split_size_mb:100"), capacity_bytes=400 * MIB)
    blocks = [allocator.allocate(size * MIB) for size in (20, 150, 110, 120)]
    for block in blocks:
        allocator.free(block)
    allocator.allocate(90 * MIB)  # gives back the smallest that is large enough, 110 MiB, and no other
    assert allocator.reserved_bytes == 380 * MIB


def test_all_free_segments_go_back_where_the_whole_blocks_are_not_enough() -> None:
    allocator = Allocator(read_settings("max_split_size_mb:100"), capacity_bytes=400 * MIB)
    for block in [allocator.allocate(size * MIB) for size in (20, 110, 120)]:
        allocator.free(block)
    allocator.allocate(240 * MIB)  # 230 MiB of whole blocks: so the 20 MiB go back too, which would have had room
    assert allocator.reserved_bytes == 240 * MIB


@pytest.mark.parametrize(
    ("text", "requested", "allocated"),
    [
        ("roundup_power2_divisions:4", 1200 * MIB, 1280 * MIB),  # roundup_power2_next_division's own example, in MiB
        ("roundup_power2_divisions:4", 1024 * MIB, 1024 * MIB),
        ("roundup_power2_divisions:4", 2048, 2048),
        ("roundup_power2_divisions:4", 2049, 2560),
        ("roundup_power2_divisions:4", 1500, 1536),  # not above 512 x 4: as without the setting
        ("roundup_power2_divisions:[256:1,512:2,>:4]", 300 * MIB, 300 * MIB),
        ("roundup_power2_divisions:[256:1,512:2,>:4]", 600 * MIB, 768 * MIB),
        ("roundup_power2_divisions:[256:1,512:2,>:4]", 1100 * MIB, 1280 * MIB),
        ("roundup_power2_divisions:[256:8]", 33 * MIB, 36 * MIB),  # the first entry holds below it too
    ],
)
def test_roundup_power2_divisions(text: str, requested: int, allocated: int) -> None:
    assert read_settings(text).block_bytes(requested) == allocated


@pytest.mark.parametrize(
    "text", ["", " ", "backend:native", "garbage_collection_threshold:0.8,pinned_num_register_threads:8"]
)
def test_settings_that_change_no_size_are_read(text: str) -> None:
    assert read_settings(text) == DEFAULTS


def test_sizes_are_read() -> None:
    text = "max_split_size_mb:64 , expandable_segments : True,large_segment_size_mb:32,max_non_split_rounding_mb:40,"
    assert read_settings(text) == Settings(
        large_segment_bytes=32 * MIB,
        max_split_bytes=64 * MIB,
        max_non_split_rounding_bytes=40 * MIB,
        expandable_segments=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:19",
        "large_segment_size_mb:30,max_split_size_mb:25",
        "large_segment_size_mb:10",
        "max_split_size_mb",
        "max_split_size_mb:",
        "max_split_size_mb=64",
        "max_split_size_mb:-1",
        "max_split_size_mb:" + "9" * 5000,
        "max_split_size_mb:30,,",
        "expandable_segments:true",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[256:3]",
        "roundup_power2_divisions:[300:2]",
        "roundup_power2_divisions:[256:2",
        "roundup_power2_divisions:[256:2,512]",
        "roundup_power2_divisions:" + "9" * 5000,
        "no_such_setting:1",
    ],
)
def test_bad_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_settings(text)


@pytest.mark.parametrize(
    "text", ["backend:cudaMallocAsync", "per_process_memory_fraction:0.5", "throw_on_cudamalloc_oom:True"]
)
def test_settings_that_are_not_modelled_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedError):
        read_settings(text)


@given(
    st.lists(st.tuples(st.sampled_from(["16", "256", "512", "65536", ">"]), st.sampled_from("01248")), max_size=4).map(
        lambda entries: "[" + ",".join(f"{bound}:{parts}" for bound, parts in entries) + "]"
    )
    | st.sampled_from(["1", "4", "[3:4]", "[4:3]", "6"])
)
@settings(max_examples=200, deadline=None)
def test_divisions_are_those_that_torch_reads(value: str) -> None:
    torch = pytest.importorskip("torch")
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    mangled = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm"
    if not hasattr(library, mangled):
        pytest.skip("this libc10 has no AcceleratorAllocatorConfig")
    of_size = getattr(library, mangled)
    of_size.argtypes, of_size.restype = [ctypes.c_size_t], ctypes.c_size_t
    text = f"roundup_power2_divisions:{value}"
    try:
        torch._C._accelerator_setAllocatorSettings(text)
    except ValueError:
        with pytest.raises(UsageError):
            read_settings(text)
    else:
        assert read_settings(text).roundup_divisions == tuple(of_size(MIB << index) for index in range(16))
    finally:
        torch._C._accelerator_setAllocatorSettings("")


# --- any sequence


SEVERAL = (
    DEFAULTS,
    EXPANDABLE,
    read_settings("max_split_size_mb:32"),
    read_settings("max_split_size_mb:20,max_non_split_rounding_mb:30,expandable_segments:True"),
    read_settings("roundup_power2_divisions:[4:8,16:4,>:2],large_segment_size_mb:24"),
)
# A size is a request, a fraction frees that one of the blocks in use, None empties the cache. Few sizes, often, as in models.
steps = st.lists(sizes, min_size=1, max_size=8).flatmap(
    lambda few: st.lists(st.sampled_from(few) | st.floats(0, 1, exclude_max=True) | st.none(), min_size=20, max_size=80)
)
capacities = st.none() | st.integers(20 * MIB, 600 * MIB)


class Naive:
    """The same rules, with nothing kept but which bytes have memory and which are taken; all else is found by looking.

    taken: start to (end, requested). memory: the stretches that belong together, as (start, end, small).
    """

    def __init__(self, settings: Settings, capacity: int | None) -> None:
        self.settings = settings
        self.capacity = capacity or 2**64 - 1
        self.taken: dict[int, tuple[int, int]] = {}
        self.segments: list[tuple[int, int, bool]] = []
        self.pages: set[tuple[int, bool]] = set()
        self.steps: list[tuple[int, int]] = []
        self.lowest_step = 0

    def page(self, small: bool) -> int:
        return 2 * MIB if small else self.settings.large_segment_bytes

    def memory(self) -> list[tuple[int, int, bool]]:
        if not self.settings.expandable_segments:
            return self.segments
        runs = []
        for start, small in self.pages:
            page = self.page(small)
            if (start - page, small) not in self.pages:
                end = next(end for end in range(start + page, 2**80, page) if (end, small) not in self.pages)
                runs.append((start, end, small))
        return runs

    def gaps(self) -> list[tuple[int, int, bool]]:
        """Free blocks: (start, end, small)."""
        found = []
        for start, end, small in self.memory():
            inside = sorted((begin, self.taken[begin][0]) for begin in self.taken if start <= begin < end)
            for (_, before), (after, _) in zip([(0, start), *inside], [*inside, (end, 0)], strict=True):
                if before < after:
                    found.append((before, after, small))
        return found

    def usage(self) -> Usage:
        return Usage(
            sum(end - start for start, (end, _) in self.taken.items()),
            sum(end - start for start, end, _ in self.memory()),
            sum(requested for _, requested in self.taken.values()),
        )

    def rounded(self, size: int) -> int:
        power = size.bit_length() - 1
        parts = self.settings.roundup_divisions[0 if power < 20 else 15 if power > 35 else power - 20]
        if parts > 1 and size > 512 * parts:
            return min(
                stop for part in range(parts + 1) if (stop := (1 << power) + part * (1 << power) // parts) >= size
            )
        return size + -size % 512

    def allocate(self, requested: int) -> int:
        size = self.rounded(requested)
        small = size <= MIB
        gap = self.best(size, small) or self.obtain(size, small)
        rest = gap[1] - gap[0] - size
        split = rest >= 512
        if not small and not self.settings.expandable_segments:
            split = rest > MIB and size < self.settings.max_split_bytes
        self.taken[gap[0]] = (gap[0] + size if split else gap[1], requested)
        return gap[0]

    def best(self, size: int, small: bool) -> tuple[int, int, bool] | None:
        fit = sorted(
            (end - start, start) for start, end, of_small in self.gaps() if small == of_small and end - start >= size
        )
        while (
            self.settings.expandable_segments
            and len(fit) > 1
            and self.reach(*fit[1], small) < self.reach(*fit[0], small)
        ):
            fit.pop(0)
        if not fit:
            return None
        length, start = fit[0]
        limit = self.settings.max_split_bytes
        if size < limit <= length or (size >= limit and length >= size + self.settings.max_non_split_rounding_bytes):
            return None
        return start, start + length, small

    def reach(self, length: int, start: int, small: bool) -> float:
        end, page = start + length, self.page(small)
        if not any(stop == end and of_small == small for _, stop, of_small in self.memory()):
            return length
        later = [start for start, of_small in self.pages if of_small == small and start >= end]
        return length + min(later) - end if later else 10**30 * page

    def obtain(self, size: int, small: bool) -> tuple[int, int, bool]:
        get = self.map if self.settings.expandable_segments else self.segment
        gap = get(size, small)
        if gap is None and self.give_back_whole(size, small):
            gap = get(size, small)
        if gap is None:
            self.empty_cache()
            gap = get(size, small)
        if gap is None:
            raise OutOfMemory(size)
        return gap

    def segment(self, size: int, small: bool) -> tuple[int, int, bool] | None:
        if small:
            length = 2 * MIB
        elif size < 10 * MIB:
            length = self.settings.large_segment_bytes
        else:
            length = size + -size % (2 * MIB)
        if self.usage().reserved_bytes + length > self.capacity:
            return None
        start = self.place(length)
        self.segments.append((start, start + length, small))
        return self.segments[-1]

    def place(self, length: int) -> int:
        """The lowest room in the driver's steps that hold something still; else at the bottom of new ones below all before."""
        held = [step for step in self.steps if any(step[0] <= start < step[1] for start, _, _ in self.segments)]
        self.steps = held
        for begin, end in sorted(held):
            inside = sorted((start, stop) for start, stop, _ in self.segments if begin <= start < end)
            for (_, before), (after, _) in zip([(0, begin), *inside], [*inside, (end, 0)], strict=True):
                if after - before >= length:
                    return before
        taken = length + -length % (32 * MIB)
        self.lowest_step -= taken
        self.steps.append((self.lowest_step, self.lowest_step + taken))
        return self.lowest_step

    def give_back_whole(self, size: int, small: bool) -> bool:
        limit = self.settings.max_split_bytes
        if limit == 2**64 - 1 or self.settings.expandable_segments:
            return False
        whole = sorted(
            (end - start, start) for start, end, of_small in self.gaps() if of_small == small and end - start >= limit
        )
        enough = [(length, start) for length, start in whole if length >= size]
        given = 0
        for length, start in [enough[0]] if enough else whole[::-1]:
            if given < max(size, limit):
                given += length
                self.segments.remove((start, start + length, small))
        return given >= max(size, limit)

    def map(self, size: int, small: bool) -> tuple[int, int, bool] | None:
        page = self.page(small)
        base = 0 if small else page * 2**30
        lengths = {start: end - start for start, end, of_small in self.gaps() if of_small == small}
        blocks = {start: self.taken[start][0] - start for start in self.taken if (start < 2 * MIB * 2**30) == small}
        # Every place where a free block, or a stretch without memory, begins; only those before such a stretch may be grown.
        at, places = base, []
        while True:
            if at in blocks:
                at += blocks[at]
            elif at in lengths:
                if at + lengths[at] not in blocks:
                    places.append(at)
                at += lengths[at]
            else:
                places.append(at)
                later = [start for start in (*blocks, *lengths) if start > at]
                if not later:
                    break
                at = min(later)
        start = next(place for place in places if not any(place <= taken < place + size for taken in blocks))
        holes = [at for at in range(start // page * page, start + size, page) if (at, small) not in self.pages]
        while holes:
            run = [at for index, at in enumerate(holes) if at == holes[0] + index * page]
            if self.usage().reserved_bytes + len(run) * page > self.capacity:
                return None
            self.pages |= {(at, small) for at in run}
            holes = holes[len(run) :]
        return next(gap for gap in self.gaps() if gap[0] == start)

    def empty_cache(self) -> None:
        for start, end, small in self.gaps():
            if (start, end, small) in self.segments:
                self.segments.remove((start, end, small))
            page = self.page(small)
            self.pages -= {(at, small) for at in range(start + -start % page, end - page + 1, page)}


def run_both(allocator: Allocator, naive: Naive, sequence: list[int | float | None]) -> Iterator[None]:
    """Take both through the same steps, and stop after each that went through."""
    in_use: list[Block] = []
    for step in sequence:
        if step is None:
            allocator.empty_cache()
            naive.empty_cache()
        elif isinstance(step, float):
            if in_use:
                block = in_use.pop(int(step * len(in_use)))
                allocator.free(block)
                del naive.taken[block.address]
        else:
            try:
                block = allocator.allocate(step)
            except OutOfMemory:
                with pytest.raises(OutOfMemory):
                    naive.allocate(step)
                continue
            in_use.append(block)
            assert naive.allocate(step) == block.address
        yield


@given(st.sampled_from(SEVERAL), capacities, steps)
@settings(max_examples=300, deadline=None)
def test_a_slow_model_agrees(chosen: Settings, capacity: int | None, sequence: list[int | float | None]) -> None:
    allocator, naive = Allocator(chosen, capacity), Naive(chosen, capacity)
    for _ in run_both(allocator, naive, sequence):
        assert allocator.usage == naive.usage()
    stretches = [(segment[0].address, segment[-1].address + segment[-1].size_bytes) for segment in allocator.segments()]
    assert sorted(stretches) == sorted((start, end) for start, end, _ in naive.memory())


def run(allocator: Allocator, sequence: list[int | float | None]) -> Iterator[Block | None]:
    """Each step's block, where it was a request that went through."""
    in_use: list[Block] = []
    for step in sequence:
        if step is None:
            allocator.empty_cache()
            yield None
        elif isinstance(step, float):
            if in_use:
                allocator.free(in_use.pop(int(step * len(in_use))))
            yield None
        else:
            try:
                in_use.append(allocator.allocate(step))
            except OutOfMemory:
                yield None
            else:
                yield in_use[-1]


@given(st.sampled_from(SEVERAL), capacities, steps)
@settings(max_examples=300, deadline=None)
def test_blocks_tile_their_segments_and_sums_agree(
    chosen: Settings, capacity: int | None, sequence: list[int | float | None]
) -> None:
    allocator = Allocator(chosen, capacity)
    peak = allocator.peak
    for _ in run(allocator, sequence):
        stretches = sorted(allocator.segments(), key=lambda segment: segment[0].address)
        blocks = [block for segment in stretches for block in segment]
        for segment in stretches:
            for left, right in pairwise(segment):
                assert left.address + left.size_bytes == right.address
                assert left.in_use or right.in_use  # two free neighbours would have merged
        for left, right in pairwise(blocks):
            assert left.address + left.size_bytes <= right.address
        assert all(
            block.size_bytes % 512 == 0 and block.size_bytes >= max(512, block.requested_bytes) for block in blocks
        )
        allocated, reserved, requested = allocator.usage
        assert allocated == sum(block.size_bytes for block in blocks if block.in_use)
        assert reserved == sum(block.size_bytes for block in blocks)
        assert requested == sum(block.requested_bytes for block in blocks)
        assert (capacity or 2**64) >= reserved >= allocated >= requested >= 0
        assert all(now >= before for now, before in zip(allocator.peak, peak, strict=True))
        assert all(now >= present for now, present in zip(allocator.peak, allocator.usage, strict=True))
        peak = allocator.peak
    for block in [block for segment in allocator.segments() for block in segment if block.in_use]:
        allocator.free(block)
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (0, 0)
    allocator.empty_cache()
    assert allocator.usage == Usage(0, 0, 0)


@given(st.sampled_from(SEVERAL), steps)
@settings(max_examples=50, deadline=None)
def test_equal_sequences_give_equal_results(chosen: Settings, sequence: list[int | float | None]) -> None:
    def result() -> list[Any]:
        allocator = Allocator(chosen)
        blocks = [block and (block.address, block.size_bytes) for block in run(allocator, sequence)]
        return [blocks, allocator.peak, allocator.usage]

    assert result() == result()


# --- a run


def test_a_replay_explains_the_peak() -> None:
    events = (
        Allocate(0, 45_088_768, "model.layers.0.mlp.up_proj", "weight"),
        Allocate(1, 100, "model.norm", "weight"),
        Allocate(2, 3_000_000, "model.layers.0", "mm"),
        Free(2),
        Allocate(3, 3_000_000, "model.layers.1", "mm"),
        Free(3),
        Allocate(4, 1, "lm_head", "mm"),
    )
    stages = (
        Stage(name="load", first_event=0),
        Stage(name="prefill", first_event=2),
        Stage(name="decode", first_event=6),
    )
    result = replay(Timeline(events=events, stages=stages))
    # 44 MiB, 512 B and 3,000,320 B (5,860 x 512); segments of 44, 2 and 20 MiB
    assert result.peak == result.at_peak == Usage(49_138_176, 69_206_016, 48_088_868)
    assert result.at_peak.rounding_bytes == 1_049_308
    assert result.peak_event == 2  # not 4, which only reaches it again
    assert result.alive == (Alive(events[0], 46_137_344), Alive(events[1], 512), Alive(events[2], 3_000_320))
    assert [stage.name for stage in result.stages] == ["load", "prefill", "decode"]
    assert [stage.peak.allocated_bytes for stage in result.stages] == [46_137_856, 49_138_176, 46_138_368]
    assert result.stages[1].end == result.course[5] == Usage(46_137_856, 69_206_016, 45_088_868)
    assert (len(result.course), result.out_of_memory_event) == (7, None)


def test_a_replay_ends_where_memory_does() -> None:
    events = (Allocate(0, 60 * MIB, "", ""), Allocate(1, 50 * MIB, "", ""), Free(0), Allocate(2, 1, "", ""))
    stages = (Stage(name="load", first_event=0), Stage(name="prefill", first_event=2))
    result = replay(Timeline(events=events, stages=stages), Allocator(capacity_bytes=100 * MIB))
    assert result.out_of_memory_event == 1
    assert result.course == (Usage(60 * MIB, 60 * MIB, 60 * MIB),)
    assert [stage.name for stage in result.stages] == ["load"]


def test_nothing_replayed_is_nothing_used() -> None:
    result = replay(Timeline(events=(), stages=(Stage(name="load", first_event=0),)))
    assert (result.peak, result.peak_event, result.alive) == (Usage(0, 0, 0), None, ())


def test_a_replay_continues_on_a_used_allocator() -> None:
    allocator = Allocator()
    allocator.allocate(5 * MIB)
    result = replay(Timeline(events=(Allocate(0, 512, "", ""), Free(0)), stages=()), allocator)
    assert result.peak == Usage(5 * MIB + 512, 22 * MIB, 5 * MIB + 512)
    assert allocator.allocated_bytes == 5 * MIB


# --- loading weights

WEIGHTS = (
    Allocate(1, 45_088_768, "layers.0.mlp.up_proj", "weight"),
    Allocate(2, 4_096, "layers.0.input_layernorm", "weight"),
    Allocate(3, 45_088_768, "layers.0.mlp.gate_proj", "weight"),
)


def test_weights_one_by_one_are_rounded_each() -> None:
    result = replay(Timeline(events=load_one_by_one(WEIGHTS), stages=()))
    assert result.peak == Usage(92_278_784, 94_371_840, 90_181_632)  # 2 x 44 MiB + 4 KiB in 2 x 44 + 2 MiB


def test_weights_out_of_the_warm_up_block_are_not() -> None:
    result = replay(Timeline(events=load_from_warm_up_block(WEIGHTS, block_id=0), stages=()))
    assert result.course[0] == Usage(90_181_632, 92_274_688, 90_181_632)  # the block: all of 86 MiB + 4 KiB, in 88 MiB
    assert result.course[1] == Usage(0, 92_274_688, 0)
    assert result.course[-1] == Usage(90_181_632, 94_371_840, 90_181_632)  # the norm lies in the small pool's 2 MiB


def test_the_warm_up_block_leaves_1_2_gib_of_the_device() -> None:
    assert warm_up_bytes(7_000_000_001) == 7_000_000_000  # float16 has two bytes
    assert warm_up_bytes(10 << 30, total_memory_bytes=8 << 30) == 7_301_444_402  # 8,589,934,592 - 1,288,490,188.8
    assert warm_up_bytes(10 << 30, total_memory_bytes=1 << 30) == 0


@pytest.mark.parametrize("total", [80 << 30, 1_288_600_001])
def test_transformers_takes_the_same_warm_up_block(
    tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, modeling_utils

    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype="bfloat16")
    taken = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (total, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 0)
    monkeypatch.setattr(torch, "empty", lambda count, dtype, **_: taken.append(count * dtype.itemsize))
    modeling_utils.caching_allocator_warmup(model, dict.fromkeys(model.state_dict(), "cuda:0"), None)
    # TINY_QWEN3, its head tied: 256 x 64 + 64 + 2 x (64 x (64 + 32 + 32 + 64) + 3 x 64 x 96 + 2 x 64 + 2 x 16) in bfloat16
    stored = 156_416
    assert taken == [warm_up_bytes(stored, total_memory_bytes=total)]
