"""A layered run's peak, and what is alive then and at its end: equal to `quick_replay` of all its events."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...results.exploration import GROWTHS, grown_bytes, grown_tokens
from ...results.timeline import Allocate
from ...typed import NamedTuple
from ..allocation.allocator import Settings
from ..allocation.on_device import GROWN_IDS, grows
from ..allocation.reserved import ADDRESS_BITS
from .layered_pools import LARGEST_SMALL, NO_POOL, Pools, Program
from .layered_run import OTHER, Doing, LayeredRun, Made, NotLayered, Piece, Target

PIECE_IDS = 1 << 32  # times the piece's number, added to a request's number


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
    """Of a living request. entry: as in `layered_pools`, 0 if it takes none."""

    entry: int
    requested_bytes: int


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


class _Replayed:
    """allocated, rounding: bytes now; most, at_peak: at the peak, which is in a piece when a request is made; if the cache grows
    then, in this step, and the request is a part of the cache."""

    def __init__(self, run: LayeredRun, settings: Settings, new_tokens: int) -> None:
        self.run, self.growth = _growth(run)
        self.settings, self.steps = settings, new_tokens - 2
        self.allocator = Pools(settings)
        self.most = self.allocated = self.rounding = self.at_peak = 0
        self.peak_piece = self.peak_request = self.peak_step = 0
        self.programs: dict[tuple[int, tuple[int, ...]], Program] = {}
        self.located: dict[tuple[int, ...], _Located] = {}
        self.blocks: dict[Target, _Block] = {}  # of what is alive and was not loaded
        self.before_peak: list[Target] = []  # what was alive when its piece began
        self.kept: dict[Target, Target] = {}  # of parts of a cache that does not grow, those that they still are
        self.grown_at: list[int] = []  # steps of the growth

    def replay(self) -> None:
        growth = self.growth
        for number, piece in enumerate(self.run.pieces):
            if growth is not None and number == growth.begin:
                self._grow(growth)
            if piece.doing.order and not (growth is not None and growth.begin <= number < growth.end):
                self._play(number, piece)

    def _play(self, number: int, piece: Piece) -> None:
        before = [*self.blocks]
        targets = [self.blocks.pop(target) for target in piece.targets]
        pools = tuple([NO_POOL if not entry else int(entry > LARGEST_SMALL) for entry, _ in targets])
        program = self.programs.get((id(piece.doing), pools))
        if program is None:
            program = self.programs[id(piece.doing), pools] = Program(piece.doing, pools, self.settings)
        blocks = [*[0] * len(program.requested), *[entry for entry, _ in targets]]
        self.allocator.play(program, blocks)
        sizes = [entry >> ADDRESS_BITS for entry in blocks]
        requested = [size for _, size in targets]
        key = (id(program), *sizes, *requested)
        located = self.located.get(key)
        if located is None:
            located = self.located[key] = _located(program.orders[2], sizes, [*program.requested, *requested])
        if self.allocated + located.most_bytes > self.most:
            self.most, self.at_peak = self.allocated + located.most_bytes, self.rounding + located.rounding_bytes
            self.peak_piece, self.peak_request, self.peak_step = number, located.request, 0
            self.before_peak = before
        self.allocated += located.end_bytes
        self.rounding += located.end_rounding_bytes
        for request in program.outliving if number else ():
            self.blocks[Target(number, request)] = _Block(blocks[request], program.requested[request])

    def _grow(self, growth: _Growth) -> None:
        """As `on_device.growing`, whose steps are all alike but for sizes."""
        if not all(self.blocks[old].entry for old in growth.olds):
            raise NotLayered
        if not self.steps:  # no token is added before the last one
            self.kept = dict(zip(growth.news, growth.olds, strict=True))
            news = dict(zip(growth.olds, growth.news, strict=True))
            self.blocks = {news.get(target, target): block for target, block in self.blocks.items()}
            return
        alive = [*self.blocks]
        held, requested = map(list, zip(*map(self.blocks.pop, growth.olds), strict=True))
        ends = self._ends(growth)
        held_bytes = sum([entry >> ADDRESS_BITS for entry in held])
        for step in range(1, GROWTHS + 1):
            if grown_tokens(self.steps, step) == grown_tokens(self.steps, step - 1):
                continue
            by_ends = {end: grown_bytes(*end, self.steps, step) for end in set(ends)}
            blocks_of = {end: self.settings.block_bytes(size) for end, size in by_ends.items()}
            olds, held = held, self.allocator.grow(list(map(blocks_of.__getitem__, ends)), held)
            before, requested = requested, list(map(by_ends.__getitem__, ends))
            olds_bytes, held_bytes = held_bytes, sum([entry >> ADDRESS_BITS for entry in held])
            if self.allocated + held_bytes > self.most:  # never is more than this allocated
                self._find_most(growth.begin, step, (held, requested), (olds, before), alive)
            self.allocated += held_bytes - olds_bytes
            self.rounding += held_bytes - sum(requested) - olds_bytes + sum(before)
            self.grown_at.append(step)
        self.blocks.update(zip(growth.news, map(_Block, held, requested), strict=True))

    def _find_most(
        self,
        piece: int,
        step: int,
        new: tuple[list[int], list[int]],
        old: tuple[list[int], list[int]],
        alive: list[Target],
    ) -> None:
        """The peak in a step of the growth; new, old: each part's block, and bytes as requested. alive: before the growth."""
        allocated, rounding = self.allocated, self.rounding
        for part, (block, requested, old_block, old_requested) in enumerate(zip(*new, *old, strict=True)):
            size = block >> ADDRESS_BITS
            allocated += size
            rounding += size - requested
            if allocated > self.most:
                self.most, self.at_peak = allocated, rounding
                self.peak_piece, self.peak_request, self.peak_step = piece, part, step
                self.before_peak = alive
            old_size = old_block >> ADDRESS_BITS
            allocated -= old_size
            rounding -= old_size - old_requested

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
        storages = {whole.id: count for whole, count in self._loaded()}
        loaded = [whole for whole, _ in self._loaded()]
        return LayeredPeak(
            stage=[name for name, first in self.run.stages if first <= self.peak_piece][-1],
            at_peak=self._at_peak(loaded, uses),
            at_end=[*loaded, *[self._allocated(target, uses) for target in self.blocks]],
            uses=uses,
            storages=storages,
            rounding_bytes=self.at_peak,
            end_rounding_bytes=self.rounding,
            reserved_bytes=self.allocator.reserved_bytes,
        )

    def _at_peak(self, loaded: Sequence[Allocate], uses: dict[int, str]) -> list[Allocate]:
        """What is alive then; adds their uses."""
        number, piece = self.peak_piece, self.run.pieces[self.peak_piece]
        alive: dict[Hashable, Allocate] = {target: self._allocated(target, uses) for target in self.before_peak}
        if self.peak_step:
            assert self.growth is not None
            self._add_grown(self.growth, alive, uses, self.peak_request)
            return [*loaded, *alive.values()]
        order = piece.doing.order[: piece.doing.order.index(self.peak_request) + 1]
        for entry in order:
            if entry >= 0:
                alive[Target(number, entry)] = self._allocated(Target(number, entry), uses)
            else:
                del alive[piece.targets[OTHER - entry] if entry <= OTHER else Target(number, -1 - entry)]
        return [*(loaded if number else ()), *alive.values()]

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

    def _add_grown(self, growth: _Growth, alive: dict[Hashable, Allocate], uses: dict[int, str], part: int) -> None:
        """Adds the cache as it is when this part of it was made at the peak."""
        steps = [step for step in self.grown_at if step <= self.peak_step]
        parts = len(growth.olds)
        for old in growth.olds[: parts if len(steps) > 1 else part]:
            del alive[old]
        ends = self._ends(growth)
        if len(steps) > 1:
            for number in range(part, parts):
                alive["before", number] = self._grown(growth.news[number], ends[number], steps[-2], uses)
        for number in range(part + 1):
            alive[growth.news[number]] = self._grown(growth.news[number], ends[number], steps[-1], uses)

    def _grown(self, target: Target, ends: tuple[int, int], step: int, uses: dict[int, str]) -> Allocate:
        whole = self._allocated(target, uses)
        identity = whole.id if step == GROWTHS else whole.id + step * GROWN_IDS
        return whole._replace(id=identity, size_bytes=grown_bytes(*ends, self.steps, step))

    def _allocated(self, target: Target, uses: dict[int, str]) -> Allocate:
        target = self.kept.get(target, target)
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
        made = run.pieces[target.piece].doing.requests[target.number]
        if not grows(made.module, made.operator):
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
