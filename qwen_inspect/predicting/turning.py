"""Replays the turns that one request of a folded run stands for, many at once where the allocator does the same in each.

If all requests of a turn get the blocks that they got some turns before, but for the output, which is cut from the free block
behind the last one, further turns do the same as long as that block stays larger than all that requests get instead of it.
The last of them are replayed nevertheless: with the most outputs, they have the highest peak.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from ..results.timeline import Allocate
from .allocator import UNLIMITED_BYTES, Allocator, Block
from .segment_cycles import SegmentCycles
from .token_loops import Turn

LONGEST_CYCLE = 4  # turns after which requests get the same blocks again


class _Placed(NamedTuple):
    """A turn's blocks. fitting_bytes: the largest free block that requests got, of those smaller than the one behind outputs."""

    addresses: tuple[int, ...]
    output: int
    fitting_bytes: int
    reserved_bytes: int


def replay_turns(allocator: Allocator, blocks: dict[int, Block], turn: Turn, count: int) -> list[Block]:
    """Replays so many turns; returns the blocks of their outputs. blocks: in use, by the request's id."""
    outputs: list[Block] = []
    placed: list[_Placed] = []
    settings = allocator.settings
    plain = not settings.expandable_segments and settings.max_split_bytes == UNLIMITED_BYTES
    cycles = SegmentCycles(allocator, turn)
    while count:
        placed.append(_replay(allocator, blocks, turn, outputs))
        count -= 1
        skipped = cycles.skip(blocks[turn.state], outputs, count) if plain and cycles.has_taken_segment() else 0
        if skipped:
            count -= skipped
            placed.clear()
        elif count and plain and (many := _alike(placed, outputs[-1], count)):
            outputs.append(_cut(allocator, outputs[-1], turn.output.size_bytes, many))
            count -= many
            placed.clear()
    return outputs


def _replay(allocator: Allocator, blocks: dict[int, Block], turn: Turn, outputs: list[Block]) -> _Placed:
    now = {turn.before: blocks[turn.state]}
    addresses: list[int] = []
    behind = outputs[-1].next if outputs else None
    most = 0 if behind is None or behind.in_use else behind.size_bytes
    fitting = 0
    for event in turn.events:
        if not isinstance(event, Allocate):
            allocator.free(now.pop(event.id))
            continue
        block = now[event.id] = allocator.allocate(event.size_bytes)
        if event.id == turn.output.id:
            outputs.append(block)
        else:
            rest = block.next
            size = block.size_bytes if rest is None or rest.in_use else block.size_bytes + rest.size_bytes
            fitting = max(fitting, size) if size < most else fitting
            addresses.append(block.address)
    blocks[turn.state] = now[turn.state]
    return _Placed(tuple(addresses), outputs[-1].address, fitting, allocator.reserved_bytes)


def _alike(placed: list[_Placed], output: Block, most: int) -> int:
    """How many turns, of at most so many, do the same as the last ones."""
    last = placed[-1]
    for cycle in range(1, min(LONGEST_CYCLE, len(placed) - 1) + 1):
        turns = placed[-cycle - 1 :]
        cut = all(after.output - before.output == output.size_bytes for before, after in pairwise(turns))
        if turns[0].addresses == last.addresses and turns[0].reserved_bytes == last.reserved_bytes and cut:
            least = max(max(turn.fitting_bytes for turn in turns[1:]) + 1, output.pool.smallest_rest_bytes)
            behind = 0 if output.next is None or output.next.in_use else output.next.size_bytes
            return max(0, min((behind - least) // output.size_bytes, most) // cycle - 1) * cycle
    return 0


def _cut(allocator: Allocator, output: Block, size_bytes: int, count: int) -> Block:
    """The blocks of so many outputs behind the last one, as one block."""
    block = output.next
    assert block is not None
    block.pool.take(block)
    block.pool.add(block.cut(count * output.size_bytes))
    block.in_use, block.requested_bytes = True, count * size_bytes
    allocator.allocated_bytes += block.size_bytes
    allocator.requested_bytes += block.requested_bytes
    return block
