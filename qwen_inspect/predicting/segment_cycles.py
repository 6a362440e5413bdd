"""Turns of a loop that do in further segments what earlier turns did in theirs, done at once.

A turn leaves an output behind, so that the allocator is never in the same state twice. But two states are alike if the segments
from which requests may be served have the same blocks in the same order of addresses. If the turns between took free segments,
further turns take the next ones likewise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..results.timeline import Allocate
from .allocator import OWN_SEGMENT_BYTES, Allocator, Block
from .token_loops import Turn

FREE, OUTPUTS, STATE = range(3)
Layout = tuple[tuple[int, int, int], ...]  # size, requested bytes and kind of each block; outputs side by side are one


class _Moment(NamedTuple):
    """Between two turns. turns: still to do. segments: from which requests may be served, and which have the state. free: whole
    segments. All by address."""

    turns: int
    segments: list[int]
    free: list[int]
    reserved_bytes: int


class SegmentCycles:
    """Follows a loop in the pool of its outputs."""

    def __init__(self, allocator: Allocator, turn: Turn) -> None:
        self._allocator = allocator
        self._pool, self._other_pool = allocator.pools_for(turn.output.size_bytes)
        requested = [event.size_bytes for event in turn.events if isinstance(event, Allocate)]
        in_pool = [size for size in requested if allocator.pools_for(size)[0] is self._pool]
        sizes = list(map(allocator.settings.block_bytes, in_pool))
        self._requests = len(requested)
        self._least_bytes = min(sizes)
        self._segment_bytes = allocator.settings.segment_bytes(self._least_bytes)
        self._seen: dict[object, _Moment] = {}
        self._fewest_free = 0
        self._shares_segments = max(sizes) < OWN_SEGMENT_BYTES

    def has_taken_segment(self) -> bool:
        """Whether fewer segments are free than ever, new ones counted as taken. Not of requests with segments of their own."""
        free = self._pool.free
        segments = len(free) - bisect_left(free, (self._segment_bytes,))
        segments -= self._allocator.reserved_bytes // self._segment_bytes
        is_less = segments < self._fewest_free
        self._fewest_free = min(segments, self._fewest_free)
        return is_less and self._shares_segments

    def skip(self, state: Block, outputs: list[Block], turns: int) -> int:
        """Does some of the next `turns` turns, if they do what earlier turns did; returns how many."""
        alike, now = self._moment(state, turns)
        before = self._seen.setdefault(alike, now)
        if before is now:
            return 0
        segments = self._passed(before, now)
        taken = len(segments) - len(now.segments)
        if not taken or not self._are_of_loop(now.segments, state, outputs):
            return 0
        cycles = (
            min(turns // (before.turns - turns), self._room(now) // taken) - 1
        )  # the last one is replayed, for its peak
        if cycles <= 0:
            return 0
        self._repeat(segments, taken, cycles, now, state, outputs)
        self._seen.clear()
        return cycles * (before.turns - turns)

    def _moment(self, state: Block, turns: int) -> tuple[object, _Moment]:
        blocks = self._pool.free
        begin, end = bisect_left(blocks, (self._least_bytes,)), bisect_left(blocks, (self._segment_bytes,))
        partly = [block for _, _, block in blocks[begin:end]] + [state] * (state.pool is self._pool)
        segments = sorted({_first(block).address for block in partly})
        free = [address for size, address, _ in blocks[end:] if size == self._segment_bytes]
        others = tuple([(size, address) for size, address, _ in self._other_pool.free])
        layouts = tuple([_layout(self._allocator.blocks_at(address), state) for address in segments])
        place = None if state.pool is self._pool else state.address
        return (layouts, place, others), _Moment(turns, segments, free, self._allocator.reserved_bytes)

    def _passed(self, before: _Moment, now: _Moment) -> list[int]:
        """The segments of a moment and those taken since, in order of addresses; those of `now` alone if the last of them are not
        the segments of `now`.
        """
        if before.free:
            taken = before.free[: len(before.free) - len(now.free)]
            is_regular = before.free == taken + now.free and before.reserved_bytes == now.reserved_bytes
        else:
            taken = [address for address in now.segments if address not in before.segments]
            new_bytes = now.reserved_bytes - before.reserved_bytes
            is_regular = not now.free and new_bytes == len(taken) * self._segment_bytes
        passed = before.segments + taken
        is_regular = is_regular and passed == sorted(passed) and passed[len(taken) :] == now.segments
        return passed if is_regular else now.segments

    def _are_of_loop(self, segments: Sequence[int], state: Block, outputs: Sequence[Block]) -> bool:
        of_loop = {id(state), *map(id, outputs)}
        blocks = (block for address in segments for block in self._allocator.blocks_at(address))
        return all(not block.in_use or id(block) in of_loop for block in blocks)

    def _room(self, now: _Moment) -> int:
        """How many segments further turns may take that lie above all others."""
        if now.free:
            return len(now.free) - self._requests  # which a turn may take and give back
        return self._allocator.room_above(now.segments[-1], self._segment_bytes) if now.segments else 0

    def _repeat(
        self, segments: list[int], taken: int, cycles: int, now: _Moment, state: Block, outputs: list[Block]
    ) -> None:
        """Moves the last segments' blocks so many cycles on, and leaves the first ones' behind in each."""
        allocator, more = self._allocator, cycles * taken
        layouts = [_layout(allocator.blocks_at(address), state) for address in segments]
        further = now.free[:more] or [allocator.add_segment(self._pool, self._least_bytes) for _ in range(more)]
        last = len(segments) + more - len(now.segments)  # where the last segments come to stand
        rebuilt = list(enumerate(segments + further))[taken:]
        gone = {id(block) for _, address in rebuilt for block in allocator.take_apart(address)}
        outputs[:] = [block for block in outputs if id(block) not in gone]
        for number, address in rebuilt:
            layout = layouts[number - more if number >= last else number % taken]
            blocks = [
                state
                if kind == STATE
                else Block(self._pool, 0, size, requested_bytes=requested, in_use=kind == OUTPUTS)
                for size, requested, kind in layout
            ]
            allocator.put_together(address, blocks)
            outputs += [block for block in blocks if block.in_use and block is not state]


def _first(block: Block) -> Block:
    while block.previous is not None:
        block = block.previous
    return block


def _layout(blocks: Iterable[Block], state: Block) -> Layout:
    layout: list[tuple[int, int, int]] = []
    for block in blocks:
        kind = STATE if block is state else OUTPUTS if block.in_use else FREE
        size, requested = block.size_bytes, block.requested_bytes
        if layout and layout[-1][2] == kind == OUTPUTS:
            before, requested_before, _ = layout.pop()
            size, requested = before + size, requested_before + requested
        layout.append((size, requested, kind))
    return tuple(layout)
