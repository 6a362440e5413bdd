"""The fast replay gives to the byte what the allocator's model gives, whether requests come in any order or layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.predicting.allocation.allocator import DEFAULTS, Allocator, Settings
from qwen_inspect.predicting.allocation.allocator_settings import read_settings
from qwen_inspect.predicting.allocation.reserved import (
    QuickAllocator,
    Stream,
    after_loading,
    allocated_after_loading,
    stream_of,
)

from ..support.allocators import EXPANDABLE, MIB, sizes

OTHERS = read_settings("roundup_power2_divisions:[4:8,16:4,>:2],large_segment_size_mb:24")


def by_allocator(order: Sequence[int], requests: Sequence[int], how: Settings) -> tuple[int, int]:
    allocator = Allocator(how)
    blocks = {}
    for entry in order:
        if entry >= 0:
            blocks[entry] = allocator.allocate(requests[entry])
        else:
            allocator.free(blocks.pop(-1 - entry))
    return allocator.reserved_bytes, allocator.allocated_bytes


def quickly(stream: Stream, few: Sequence[int], how: Settings, most_bytes: int | None = None) -> QuickAllocator:
    blocks = [how.block_bytes(size) if size else 0 for size in few]
    quick = QuickAllocator(blocks, stream.of_sizes([bool(size) for size in blocks]), how)
    quick.replay(most_bytes)
    return quick


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """(order, size_of, the distinct sizes): a beginning, layers that are alike and hand something on, and an end."""
    few = draw(st.lists(sizes | st.just(0), min_size=1, max_size=6, unique=True))
    pick = st.tuples(st.integers(0, len(few) - 1), st.floats(0, 1, exclude_max=True), st.booleans())
    order: list[int] = []
    size_of: list[int] = []

    def play(steps: Sequence[tuple[int, float, bool]], alive: list[int]) -> None:
        for size, which, frees in steps:
            if frees and alive:
                order.append(-1 - alive.pop(int(which * len(alive))))
            else:
                order.append(len(size_of))
                alive.append(len(size_of))
                size_of.append(size)

    outside: list[int] = []
    play(draw(st.lists(pick, max_size=20)), outside)
    for _ in range(draw(st.integers(1, 2))):
        layer = draw(st.lists(pick, min_size=48, max_size=70))
        kept = draw(st.integers(0, 2))
        hidden: list[int] = []
        for _ in range(draw(st.integers(1, 40))):
            own: list[int] = []
            play(layer, own)
            order += [-1 - one for one in hidden]  # what the layer before handed on
            hidden, rest = own[:1], own[1:]
            order += [-1 - one for one in rest[kept:]]
            outside += rest[:kept]  # as a cache
        outside += hidden
    play(draw(st.lists(pick, max_size=20)), outside)
    return order, size_of, few


@settings(max_examples=150, deadline=None)
@given(runs(), st.sampled_from((DEFAULTS, OTHERS)), st.floats(0, 1.2))
def test_layers_that_are_alike_need_no_replay_each(
    made: tuple[list[int], list[int], list[int]], how: Settings, part: float
) -> None:
    order, size_of, few = made
    requests = [few[size] for size in size_of]
    quick = quickly(stream_of(order, size_of), few, how)
    reserved, allocated = by_allocator(order, requests, how)
    assert (quick.reserved_bytes, quick.allocated_bytes) == (reserved, allocated)
    most = int(part * reserved)
    partly = quickly(stream_of(order, size_of), few, how, most)
    if reserved <= most:
        assert partly.reserved_bytes == reserved
    else:
        assert most < partly.reserved_bytes <= reserved


@settings(max_examples=60, deadline=None)
@given(
    st.lists(sizes | st.just(0), min_size=1, max_size=60),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from((DEFAULTS, OTHERS, EXPANDABLE, read_settings("max_split_size_mb:32"))),
)
def test_what_loading_takes_is_known_for_all_settings(
    layer: list[int], layers: int, warm_up: bool, how: Settings
) -> None:
    weights = layer * layers
    first = [sum(weights)] if warm_up and any(weights) else []
    order = [0, -1, *range(1, len(weights) + 1)] if first else [*range(len(weights))]
    by_requests = by_allocator(order, [*first, *weights], how)[1]
    assert allocated_after_loading(weights, how, warm_up_bytes=sum(first)) == by_requests


@settings(max_examples=60, deadline=None)
@given(
    runs(),
    st.lists(sizes, min_size=1, max_size=60),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from((DEFAULTS, OTHERS)),
)
def test_a_run_goes_on_where_loading_ended(
    made: tuple[list[int], list[int], list[int]], layer: list[int], layers: int, warm_up: bool, how: Settings
) -> None:
    order, size_of, few = made
    weights = layer * layers
    first = [sum(weights)] if warm_up and weights else []
    begun = len(first) + len(weights)
    loading = [0, -1, *range(1, begun)] if first else [*range(begun)]
    whole = [*loading, *(entry + begun if entry >= 0 else entry - begun for entry in order)]
    blocks = [how.block_bytes(size) if size else 0 for size in few]
    stream = stream_of(order, size_of).of_sizes([bool(size) for size in blocks])
    loaded = after_loading(weights, how, warm_up_bytes=sum(first))
    quick = QuickAllocator(blocks, stream, how, loaded)
    quick.replay()
    reserved, allocated = by_allocator(whole, [*first, *weights, *(few[size] for size in size_of)], how)
    assert (quick.reserved_bytes, quick.allocated_bytes) == (reserved, allocated)


def test_hundreds_of_layers_are_replayed_as_a_few() -> None:
    """A layer takes 3 MiB for itself, of a segment of 20 MiB, and keeps a key and a value of 12 MiB.

    The first key goes where the 3 MiB were, of which 8 MiB are left; the other 599 take segments of their own.
    """
    layer = [0] * 46 + [1, 1]
    order: list[int] = []
    for turn in range(300):
        first = 48 * turn
        for request in range(first, first + 46):
            order += [request, -1 - request]
        order += [first + 46, first + 47]
    stream = stream_of(order, layer * 300)
    played = 0

    class Counted(QuickAllocator):
        def _play(self, order: Sequence[int], most: int) -> None:
            nonlocal played
            played += len(order)
            super()._play(order, most)

    quick = Counted([3 * MIB, 12 * MIB], stream.of_sizes([True, True]), DEFAULTS)
    quick.replay()
    assert quick.reserved_bytes == (20 + 599 * 12) * MIB
    assert quick.allocated_bytes == 300 * 2 * 12 * MIB
    assert played < 0.05 * len(order)
