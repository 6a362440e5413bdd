"""A layered run's peak, and what is alive then and at its end: equal to `quick_replay` of all its events.

What a stretch of requests does in a pool depends on where the blocks are that it frees, and on the free blocks that it takes or
merges with. It takes the same ones whatever else is free, as long as no other free block fits a request better and none touches
what is freed. Then they are left as they were after an earlier such stretch, and nothing is replayed. Between stretches are the
requests that outlive their piece, and the frees of those of earlier pieces: the cache lies elsewhere in each layer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import groupby, repeat

from ..results.exploration import GROWTHS, grown_bytes, grown_tokens
from ..results.timeline import Allocate
from ..typed import Any, NamedTuple
from .allocator import ROUNDING_BYTES, SMALL_BYTES, UNLIMITED_BYTES, Driver, Settings
from .layered_run import OTHER, Doing, LayeredRun, Made, NotLayered, Piece, Target
from .on_device import GROWN_IDS
from .reserved import ADDRESS, ADDRESS_BITS, QuickAllocator, Stream

PIECE_IDS = 1 << 32  # times the piece's number, added to a request's number
NO_POOL = 2  # of a request of 0 bytes
FEWEST_ENTRIES = 6  # of a stretch that is remembered
MOST_MISSES = 12  # of one that is, beyond the times that it was known


class LayeredPeak(NamedTuple):
    """The first moment at which most is allocated. stage: its stage. at_peak, at_end: what is alive, in the order of its
    requests; what is loaded as one for each operator. uses, storages: by id, and how many it stands for. rounding: as in
    `quick_replay.Peak`."""

    stage: str
    at_peak: Sequence[Allocate]
    at_end: Sequence[Allocate]
    uses: dict[int, str]
    storages: dict[int, int]
    rounding_bytes: int
    end_rounding_bytes: int
    reserved_bytes: int


class _Block(NamedTuple):
    """Where a living request is. size_bytes: of its block, 0 if it takes none."""

    start: int
    size_bytes: int
    requested_bytes: int


class _Memory(NamedTuple):
    """What a stretch did. needed: the start and bytes of free blocks that it took or merged with. gone, come: free blocks that
    there are no longer, and new ones, as entries of a pool. better: the ranges of entries that would have been taken instead.
    no_after, no_before: where no free block may start and end, unless it is needed. starts, wholes: as those of a
    `_Stretch`, and the blocks that are larger than was asked for, with their bytes."""

    needed: frozenset[int]
    gone: Sequence[int]
    come: Sequence[int]
    better: Sequence[tuple[int, int]]
    no_after: frozenset[int]
    no_before: frozenset[int]
    starts: Sequence[tuple[int, int]]
    wholes: Sequence[tuple[int, int]]


class _Stretch:
    """Entries of a program's order in one pool. freed: requests from before that it frees. memories: by where those are; None if
    nothing is to be remembered."""

    __slots__ = ("freed", "memories", "misses", "order")

    def __init__(self, order: list[int], *, is_remembered: bool) -> None:
        self.order, self.misses = order, 0
        made = {entry for entry in order if entry >= 0}
        self.freed = [-1 - entry for entry in order if entry < 0 and -1 - entry not in made]
        self.memories: dict[tuple[int, ...], list[_Memory]] | None = {} if is_remembered else None


class _Program:
    """What pieces do whose targets are in the same pools. orders: the entries in the small pool, in the large one, and in both.
    stretches: of each of the first two. outliving: the requests that are left. blocks: bytes of each request's, then 0 for each
    target."""

    __slots__ = ("blocks", "located", "orders", "outliving", "requested", "stretches")

    def __init__(self, doing: Doing, target_pools: Sequence[int], settings: Settings) -> None:
        requests = len(doing.requests)
        self.requested = [request.size_bytes for request in doing.requests]
        by_size = {size: settings.block_bytes(size) if size else 0 for size in set(self.requested)}
        self.blocks = [*map(by_size.__getitem__, self.requested), *[0] * len(target_pools)]
        pools = [NO_POOL if not size else int(size > SMALL_BYTES) for size in self.blocks[:requests]] + [*target_pools]
        self.orders: tuple[list[int], list[int], list[int]] = ([], [], [])
        freed = set()
        made = []
        for entry in doing.order:
            if entry >= 0:
                number = entry
                made.append(entry)
            else:
                number = requests + OTHER - entry if entry <= OTHER else -1 - entry
                entry = -1 - number
                freed.add(number)
            if (pool := pools[number]) != NO_POOL:
                self.orders[pool].append(entry)
                self.orders[2].append(entry)
        self.outliving = [number for number in made if number not in freed]
        apart = {*self.outliving, *range(requests, len(pools))}
        self.stretches = [list(_stretches(order, apart)) for order in self.orders[:2]]
        self.located: dict[Any, _Located] = {}


def _stretches(order: Sequence[int], apart: Collection[int]) -> Iterator[_Stretch]:
    """apart: requests that belong to no stretch that is remembered."""
    for is_apart, entries in groupby(order, key=lambda entry: max(entry, -1 - entry) in apart):
        stretch = list(entries)
        yield _Stretch(stretch, is_remembered=not is_apart and len(stretch) >= FEWEST_ENTRIES)


class _Located(NamedTuple):
    """Within a piece: at most so much more is allocated than before it, first with this request, and so much more by rounding;
    and how much more there is at its end."""

    most_bytes: int
    request: int
    rounding_bytes: int
    end_bytes: int
    end_rounding_bytes: int


class _Growth(NamedTuple):
    """The cache's way to its last length. begin, end: of the pieces instead of which it is. olds, news: its parts before and
    after."""

    begin: int
    end: int
    olds: Sequence[Target]
    news: Sequence[Target]


def layered_peak(run: LayeredRun, settings: Settings, new_tokens: int) -> LayeredPeak:
    """NotLayered for sizes that exceed the address space, and for a cache that takes none."""
    replayed = _Replayed(run, settings, new_tokens)
    replayed.replay()
    return replayed.peak()


class _NeedsSegmentError(Exception):
    """In the small pool, before the large one is replayed."""


class _NoDriver(Driver):
    def place(self, size_bytes: int) -> int:
        raise _NeedsSegmentError


class _Pools(QuickAllocator):
    """Both pools, for one program after the other."""

    def __init__(self, settings: Settings) -> None:
        super().__init__((), Stream((), ()), settings)

    def play(self, program: _Program, addresses: list[int], sizes: list[int]) -> None:
        """addresses, sizes: of the blocks of the program's requests, then of its targets."""
        self.begin(program.blocks, addresses, sizes)
        if not self.reserved_bytes:  # all that is loaded takes new segments
            self._play(program.orders[2], UNLIMITED_BYTES)
            self._check_size()
            return
        driver, small, before = self._driver, tuple(self._small), (addresses.copy(), sizes.copy())
        try:
            # Segments are asked for in the order of both pools' requests: one pool alone may not ask.
            self._driver = _NoDriver() if program.orders[1] else driver
            self._play_stretches(0, program)
            self._driver = driver
            self._play_stretches(1, program)
        except _NeedsSegmentError:
            self._driver = driver
            for entry in self._small:
                start, size = entry & ADDRESS, entry >> ADDRESS_BITS
                del self._size_at[start], self._start_of[start + size]
            for entry in small:
                start, size = entry & ADDRESS, entry >> ADDRESS_BITS
                self._size_at[start], self._start_of[start + size] = size, start
            self._small[:] = small
            addresses[:], sizes[:] = before
            self._play(program.orders[2], UNLIMITED_BYTES)
        self._check_size()

    def _check_size(self) -> None:
        if self.reserved_bytes > UNLIMITED_BYTES:
            raise NotLayered

    def begin(self, blocks: list[int], addresses: list[int], sizes: list[int]) -> None:
        self._blocks, self._addresses, self._sizes = blocks, addresses, sizes
        for size in {*blocks}.difference(self._segments):
            self._segments[size] = self.settings.segment_bytes(size)

    def grow(self, order: Sequence[int], blocks: list[int], addresses: list[int], sizes: list[int]) -> None:
        self.begin(blocks, addresses, sizes)
        self._play(order, UNLIMITED_BYTES)
        self._check_size()

    def _play_stretches(self, pool: int, program: _Program) -> None:
        for stretch in program.stretches[pool]:
            if stretch.memories is None:
                self._play(stretch.order, UNLIMITED_BYTES)
                continue
            where = (
                *map(self._addresses.__getitem__, stretch.freed),
                *map(self._sizes.__getitem__, stretch.freed),
            )
            known = stretch.memories.setdefault(where, [])
            for memory in known:
                if self._is_alike(pool, memory):
                    self._repeat_stretch(pool, memory)
                    stretch.misses -= 1
                    break
            else:
                stretch.misses += 1
                if stretch.misses > MOST_MISSES:
                    stretch.memories = None
                    self._play(stretch.order, UNLIMITED_BYTES)
                elif (new := self._remembered(pool, stretch)) is not None:
                    known.insert(0, new)

    def _is_alike(self, pool: int, memory: _Memory) -> bool:
        """Whether the stretch would do now what it did then."""
        free, size_at, start_of, needed = (self._small, self._large)[pool], self._size_at, self._start_of, memory.needed
        for entry in needed:
            if size_at.get(entry & ADDRESS) != entry >> ADDRESS_BITS:
                return False
        for first, last in memory.better:
            begin, end = bisect_left(free, first), bisect_left(free, last)
            if begin < end and not needed.issuperset(free[begin:end]):
                return False
        for start in memory.no_after & size_at.keys():
            if size_at[start] << ADDRESS_BITS | start not in needed:
                return False
        for end_address in memory.no_before & start_of.keys():
            start = start_of[end_address]
            if (end_address - start) << ADDRESS_BITS | start not in needed:
                return False
        return True

    def _repeat_stretch(self, pool: int, memory: _Memory) -> None:
        free, size_at, start_of = (self._small, self._large)[pool], self._size_at, self._start_of
        for entry in memory.gone:
            del free[bisect_left(free, entry)]
            start = entry & ADDRESS
            del start_of[start + size_at.pop(start)]
        for entry in memory.come:
            insort(free, entry)
            start, size = entry & ADDRESS, entry >> ADDRESS_BITS
            size_at[start], start_of[start + size] = size, start
        for number, start in memory.starts:
            self._addresses[number] = start
        for number, whole in memory.wholes:
            self._sizes[number] = whole

    def _remembered(self, pool: int, stretch: _Stretch) -> _Memory | None:
        """Does what `_play` does in one pool; None if it needed a segment."""
        free, size_at, start_of = (self._small, self._large)[pool], self._size_at, self._start_of
        blocks, addresses, sizes = self._blocks, self._addresses, self._sizes
        smallest_rest = SMALL_BYTES + 1 if pool else ROUNDING_BYTES
        before, needed = {*free}, set()
        ranges: list[tuple[int, int]] = []
        no_after, no_before = set(), set()
        for place, entry in enumerate(stretch.order):
            if entry >= 0:
                size = blocks[entry]
                wanted = size << ADDRESS_BITS
                index = bisect_left(free, wanted)
                if index == len(free):
                    self._play(stretch.order[place:], UNLIMITED_BYTES)
                    return None
                best_fit = free.pop(index)
                if best_fit in before:
                    needed.add(best_fit)
                ranges.append((wanted, best_fit))
                start, whole = best_fit & ADDRESS, best_fit >> ADDRESS_BITS
                del size_at[start]
                rest = whole - size
                if rest >= smallest_rest:
                    after = start + size
                    size_at[after] = rest
                    start_of[start + whole] = after
                    insort(free, rest << ADDRESS_BITS | after)
                else:
                    del start_of[start + whole]
                    sizes[entry] = whole
                addresses[entry] = start
                continue
            start = addresses[-1 - entry]
            end = start + sizes[-1 - entry]
            if after_bytes := size_at.pop(end, 0):
                merged = after_bytes << ADDRESS_BITS | end
                del free[bisect_left(free, merged)]
                if merged in before:
                    needed.add(merged)
                end += after_bytes
            else:
                no_after.add(end)
            first = start_of.pop(start, None)
            if first is not None:
                merged = (start - first) << ADDRESS_BITS | first
                del free[bisect_left(free, merged)]
                if merged in before:
                    needed.add(merged)
                start = first
            else:
                no_before.add(start)
            size_at[start] = end - start
            start_of[end] = start
            insort(free, (end - start) << ADDRESS_BITS | start)
        made = [entry for entry in stretch.order if entry >= 0]
        return _Memory(
            needed=frozenset(needed),
            gone=[*needed.difference(free)],
            come=[*set(free) - before],
            better=_united(ranges),
            no_after=frozenset(no_after),
            no_before=frozenset(no_before),
            starts=[(number, addresses[number]) for number in made],
            wholes=[(number, sizes[number]) for number in made if sizes[number] != blocks[number]],
        )


def _united(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that do not overlap, with the same numbers."""
    united: list[tuple[int, int]] = []
    for first, last in sorted(set(ranges)):
        if united and first <= united[-1][1]:
            united[-1] = united[-1][0], max(united[-1][1], last)
        else:
            united.append((first, last))
    return united


class _Replayed:
    """allocated, rounding: bytes now; most, at_peak: at the peak, which is in a piece when a request is made; if the cache grows
    then, in this step, and the request is a part of the cache."""

    def __init__(self, run: LayeredRun, settings: Settings, new_tokens: int) -> None:
        self.run, self.growth = _growth(run)
        self.settings, self.steps = settings, new_tokens - 2
        self.allocator = _Pools(settings)
        self.most = self.allocated = self.rounding = self.at_peak = 0
        self.peak_piece = self.peak_request = self.peak_step = 0
        self.programs: dict[tuple[int, tuple[int, ...]], _Program] = {}
        self.blocks: dict[Target, _Block] = {}  # of what is alive
        self.grown_at: list[int] = []  # steps of the growth

    def replay(self) -> None:
        growth = self.growth
        for number, piece in enumerate(self.run.pieces):
            if growth is not None and number == growth.begin:
                self._grow(growth)
            if piece.doing.order and not (growth is not None and growth.begin <= number < growth.end):
                self._play(number, piece)

    def _play(self, number: int, piece: Piece) -> None:
        blocks = self.blocks
        targets = [blocks.pop(target) for target in piece.targets]
        pools = tuple([NO_POOL if not size else int(size > SMALL_BYTES) for _, size, _ in targets])
        program = self.programs.get((id(piece.doing), pools))
        if program is None:
            program = self.programs[id(piece.doing), pools] = _Program(piece.doing, pools, self.settings)
        requests = len(program.requested)
        addresses = [*[0] * requests, *[start for start, _, _ in targets]]
        sizes = [*program.blocks[:requests], *[size for _, size, _ in targets]]
        self.allocator.play(program, addresses, sizes)
        requested = [size for _, _, size in targets]
        key = (*sizes, None, *requested)
        located = program.located.get(key)
        if located is None:
            located = program.located[key] = _located(program.orders[2], sizes, [*program.requested, *requested])
        if self.allocated + located.most_bytes > self.most:
            self.most, self.at_peak = self.allocated + located.most_bytes, self.rounding + located.rounding_bytes
            self.peak_piece, self.peak_request, self.peak_step = number, located.request, 0
        self.allocated += located.end_bytes
        self.rounding += located.end_rounding_bytes
        for request in program.outliving:
            blocks[Target(number, request)] = _Block(addresses[request], sizes[request], program.requested[request])

    def _grow(self, growth: _Growth) -> None:
        """As `on_device.growing`, whose steps are all alike but for sizes."""
        parts = len(growth.olds)
        olds = [self.blocks.pop(old) for old in growth.olds]
        starts, held, requested = ([block[field] for block in olds] for field in range(3))
        if not all(held):
            raise NotLayered
        order = [entry for part in range(parts) for entry in (part, -1 - (parts + part))]
        ends, none = self._ends(growth), [0] * parts
        for step in range(1, GROWTHS + 1):
            if grown_tokens(self.steps, step) == grown_tokens(self.steps, step - 1):
                continue
            by_ends = {end: grown_bytes(*end, self.steps, step) for end in set(ends)}
            blocks_of = {end: self.settings.block_bytes(size) for end, size in by_ends.items()}
            blocks = list(map(blocks_of.__getitem__, ends))
            addresses, sizes = [*none, *starts], [*blocks, *held]
            self.allocator.grow(order, [*blocks, *held], addresses, sizes)
            asked = list(map(by_ends.__getitem__, ends))
            self._count_grown(growth.begin, step, (sizes[:parts], asked), (held, requested))
            starts, held, requested = addresses[:parts], sizes[:parts], asked
            self.grown_at.append(step)
        self.blocks.update(zip(growth.news, map(_Block, starts, held, requested), strict=True))

    def _count_grown(
        self, piece: int, step: int, new: tuple[list[int], list[int]], old: tuple[list[int], list[int]]
    ) -> None:
        """A step of the growth; new, old: bytes of each part's block, and as requested."""
        most = self.allocated + sum(map(max, map(int.__sub__, new[0], old[0]), repeat(0))) + max(old[0])
        if most <= self.most:  # the sum is no more at any time
            self.allocated += sum(new[0]) - sum(old[0])
            self.rounding += sum(new[0]) - sum(new[1]) - sum(old[0]) + sum(old[1])
            return
        for part, (size, requested, old_size, old_requested) in enumerate(zip(*new, *old, strict=True)):
            self.allocated += size
            self.rounding += size - requested
            if self.allocated > self.most:
                self.most, self.at_peak = self.allocated, self.rounding
                self.peak_piece, self.peak_request, self.peak_step = piece, part, step
            self.allocated -= old_size
            self.rounding -= old_size - old_requested

    def _ends(self, growth: _Growth) -> list[tuple[int, int]]:
        """Bytes of each part of the cache, before and after."""
        return [
            (self._made(old).size_bytes, self._made(new).size_bytes)
            for old, new in zip(growth.olds, growth.news, strict=True)
        ]

    def _made(self, target: Target) -> Made:
        return self.run.pieces[target.piece].doing.requests[target.number]

    # --- what is alive

    def peak(self) -> LayeredPeak:
        uses: dict[int, str] = {}
        return LayeredPeak(
            stage=[name for name, first in self.run.stages if first <= self.peak_piece][-1],
            at_peak=self._alive(self.peak_piece, uses),
            at_end=self._alive(None, uses),
            uses=uses,
            storages={whole.id: count for whole, count in self._loaded()},
            rounding_bytes=self.at_peak,
            end_rounding_bytes=self.rounding,
            reserved_bytes=self.allocator.reserved_bytes,
        )

    def _alive(self, last: int | None, uses: dict[int, str]) -> list[Allocate]:
        """At the peak, which is in the piece of number `last`, or at the end if that is None. Adds their uses."""
        growth, pieces = self.growth, self.run.pieces
        alive: dict[Hashable, Allocate] = {}
        left: dict[int, list[int]] = {}  # by doing
        for number, piece in enumerate(pieces):
            doing = piece.doing
            if growth is not None and number == growth.begin:
                is_peak = number == last and self.peak_step > 0
                self._add_grown(growth, alive, uses, self.peak_request if is_peak else None)
                if is_peak:
                    break
            if growth is not None and growth.begin <= number < growth.end:
                continue
            if number == last:
                for entry in doing.order[: doing.order.index(self.peak_request) + 1]:
                    if entry >= 0:
                        alive[Target(number, entry)] = self._allocated(Target(number, entry), uses)
                    else:
                        del alive[piece.targets[OTHER - entry] if entry <= OTHER else Target(number, -1 - entry)]
                break
            if number == 0:
                alive |= {whole.id: whole for whole, _ in self._loaded()}
                continue
            if id(doing) not in left:
                freed = {-1 - entry for entry in doing.order if entry < 0}
                left[id(doing)] = [entry for entry in doing.order if entry >= 0 and entry not in freed]
            for target in piece.targets:
                del alive[target]
            for entry in left[id(doing)]:
                alive[Target(number, entry)] = self._allocated(Target(number, entry), uses)
        return [*alive.values()]

    def _loaded(self) -> list[tuple[Allocate, int]]:
        """What is loaded and never freed, as one for each operator; and how many that are."""
        doing = self.run.pieces[0].doing
        freed = {-1 - entry for entry in doing.order if entry < 0}
        left = [made for number, made in enumerate(doing.requests) if number not in freed]
        whole = []
        for number, operator in enumerate(dict.fromkeys([made.operator for made in left])):
            sizes = [made.size_bytes for made in left if made.operator == operator]
            whole.append((Allocate(-1 - number, sum(sizes), "", operator), len(sizes)))
        return whole

    def _add_grown(
        self, growth: _Growth, alive: dict[Hashable, Allocate], uses: dict[int, str], part: int | None
    ) -> None:
        """Adds the cache as it is behind its growth, or when this part of it was made at the peak."""
        steps = self.grown_at if part is None else [step for step in self.grown_at if step <= self.peak_step]
        if not steps:  # no token was added before the last one
            renamed: dict[Hashable, Hashable] = dict(zip(growth.olds, growth.news, strict=True))
            held = {renamed.get(target, target): request for target, request in alive.items()}
            alive.clear()
            alive.update(held)
            return
        parts = len(growth.olds)
        gone = parts if part is None or len(steps) > 1 else part
        for old in growth.olds[:gone]:
            del alive[old]
        ends = self._ends(growth)
        if part is not None and len(steps) > 1:
            for number in range(part, parts):
                alive["before", number] = self._grown(growth.news[number], ends[number], steps[-2], uses)
        for number in range(parts if part is None else part + 1):
            alive[growth.news[number]] = self._grown(growth.news[number], ends[number], steps[-1], uses)

    def _grown(self, target: Target, ends: tuple[int, int], step: int, uses: dict[int, str]) -> Allocate:
        whole = self._allocated(target, uses)
        identity = whole.id if step == GROWTHS else whole.id + step * GROWN_IDS
        return whole._replace(id=identity, size_bytes=grown_bytes(*ends, self.steps, step))

    def _allocated(self, target: Target, uses: dict[int, str]) -> Allocate:
        piece, made = self.run.pieces[target.piece], self._made(target)
        identity = target.piece * PIECE_IDS + target.number
        if made.use:
            uses[identity] = made.use
        return Allocate(identity, made.size_bytes, piece.module(made), made.operator)


def _located(order: Sequence[int], sizes: Sequence[int], requested: Sequence[int]) -> _Located:
    """sizes, requested: of the blocks of the order's requests."""
    allocated = rounding = most = at_most = first = 0
    for entry in order:
        if entry >= 0:
            allocated += sizes[entry]
            rounding += sizes[entry] - requested[entry]
            if allocated > most:
                most, at_most, first = allocated, rounding, entry
        else:
            allocated -= sizes[-1 - entry]
            rounding -= sizes[-1 - entry] - requested[-1 - entry]
    return _Located(most, first, at_most, allocated, rounding)


def _growth(run: LayeredRun) -> tuple[LayeredRun, _Growth | None]:
    """What `on_device.leap` finds, None if there is none; and the run without the part of a piece that belongs to it."""
    begin = next((first for name, first in run.stages if name == "decode"), len(run.pieces))
    olds: list[Target] = []
    news: list[Target] = []
    end, place = begin, 0
    while end < len(run.pieces):
        piece = run.pieces[end]
        if place == len(piece.doing.order):
            end, place = end + 1, 0
            continue
        entry = piece.doing.order[place]
        target = piece.targets[OTHER - entry] if entry <= OTHER else Target(end, entry)
        is_made = entry >= 0
        if not (is_made or (entry <= OTHER and target.piece < begin)):
            break
        if not run.pieces[target.piece].doing.requests[target.number].module.endswith("attn"):
            break
        (news if is_made else olds).append(target)
        place += 1
    if not olds or len(olds) != len(news):
        return run, None
    if place:
        pieces = [*run.pieces]
        pieces[end] = _rest(end, pieces[end], place)
        run = run._replace(pieces=pieces)
    return run, _Growth(begin, end, olds, news)


def _rest(number: int, piece: Piece, place: int) -> Piece:
    """What the piece of this number does after so many entries."""
    begun = {entry for entry in piece.doing.order[:place] if entry >= 0}
    order: list[int] = []
    targets: list[Target] = []
    for entry in piece.doing.order[place:]:
        if entry <= OTHER or -1 - entry in begun:
            order.append(OTHER - len(targets))
            targets.append(piece.targets[OTHER - entry] if entry <= OTHER else Target(number, -1 - entry))
        else:
            order.append(entry)
    return Piece(Doing(piece.doing.requests, order, piece.doing.left, len(targets)), piece.layer, targets)
