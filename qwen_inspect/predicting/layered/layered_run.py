"""A run from a family's trace as pieces, one for each layer and pass: what `segments.compose` writes out event by event.

Pieces of equal layers share what they do, so that whatever is done to events is done once for all of them: sizes for a workload,
kernels' scratch, the turns of a loop. `layered_replay` replays the pieces. A run that does not come apart like this has no
pieces, and is composed in full.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence

from ...results.exploration import Loop
from ...results.memory import Run
from ...tracing.scratch import FLASH_ATTENTION
from ...typed import Any, NamedTuple
from ..allocation.on_device import (
    BIASED_PRODUCT,
    MATRIX_PRODUCT,
    PARAMETER,
    SORT,
    SORT_SCRATCH,
    WORKSPACE,
    is_one_of,
    sort_scratch_bytes,
)
from ..allocation.replay import WARM_UP, warm_up_bytes
from ..allocation.workspaces import LT_WORKSPACE_BYTES, has_cudnn_attention, workspace_of
from ..traces.segments import ANY_LAYER, LOADED, Place, Segment, ends_of
from ..traces.token_loops import REPEATED
from ..traces.turns import ATTENTION, DECAYS, LINEAR, loops_in, missing_turns, with_turns

OTHER = -1 << 40  # an entry of an order from here down frees request `OTHER - entry` of `Piece.targets`


class NotLayered(Exception):
    """A run that is to be composed in full."""


class Made(NamedTuple):
    """A request. module: with ANY_LAYER for the layer's number. use: as in a `segments.Request`."""

    size_bytes: int
    module: str
    operator: str
    use: str = ""


class Doing:
    """What pieces of equal layers do. requests: by number. order: an entry that is not negative makes the request of that number,
    -1 - number frees it; one from OTHER down frees a target. left: the numbers of requests that other pieces may free, as
    `segments.Segment.outliving`.
    """

    __slots__ = ("left", "order", "requests", "targets")

    def __init__(self, requests: list[Made], order: list[int], left: Sequence[int], targets: int) -> None:
        self.requests, self.order, self.left, self.targets = requests, order, left, targets

    @staticmethod
    def of(segment: Segment, bytes_of: Callable[[Any], int]) -> Doing:
        if any(request.summed is not None for request in segment.requests):
            raise NotLayered
        made = [Made(bytes_of(size), module, operator, use) for size, module, operator, use, _ in segment.requests]
        order, following = [], 0
        for entry in segment.order:
            if entry == 0:
                order.append(following)
                following += 1
            else:
                order.append(entry if entry < 0 else OTHER - (entry - 1))
        return Doing(made, order, segment.outliving, len(segment.others))

    def inserted(self, place: int, request: Made) -> Doing:
        """With a request more, after so many entries, that is never freed."""
        order = [*self.order[:place], len(self.requests), *self.order[place:]]
        return Doing([*self.requests, request], order, self.left, self.targets)

    def made(self) -> Iterator[tuple[int, Made]]:
        """Each request with its place in the order."""
        return ((place, self.requests[entry]) for place, entry in enumerate(self.order) if entry >= 0)


class Target(NamedTuple):
    """A request of an earlier piece: its number there."""

    piece: int
    number: int


class Piece(NamedTuple):
    """layer: its number, None outside of the layers. targets: what it frees of other pieces."""

    doing: Doing
    layer: int | None
    targets: Sequence[Target]

    def module(self, request: Made) -> str:
        return request.module.replace(ANY_LAYER, str(self.layer), 1)


class LayeredRun(NamedTuple):
    """stages: each one's name, and its first piece. pieces: the first one loads."""

    stages: Sequence[tuple[str, int]]
    pieces: Sequence[Piece]
    made_by: str = ""

    @property
    def modules(self) -> set[str]:
        """Of every request, with ANY_LAYER for a layer's number."""
        return {request.module for doing in _distinct(self.pieces) for request in doing.requests}

    @property
    def operators(self) -> set[str]:
        return {request.operator for doing in _distinct(self.pieces) for request in doing.requests}


def _distinct(pieces: Sequence[Piece]) -> Collection[Doing]:
    return {id(piece.doing): piece.doing for piece in pieces}.values()


def layered(
    stages: Sequence[tuple[str, int]],
    kinds: Sequence[Hashable],
    segment_at: Callable[[Place], tuple[Segment, Callable[[Any], int]]],
    loaded: Sequence[Made],
) -> LayeredRun:
    """The run of layers of these kinds, as `segments.compose` has it; KeyError or IndexError as from that. NotLayered for sums
    over rows, for a loop that stands for turns, and for a run that frees what it loaded or whose cache is not marked.

    segment_at: a place's segment, and the bytes of its sizes.
    """
    pieces = [Piece(Doing([*loaded], [*range(len(loaded))], (), 0), None, ())]
    begun: dict[tuple[int, int | None], int] = {}  # the piece of each segment
    begins = [("load", 0)]
    doings: dict[Place, tuple[Doing, Segment]] = {}
    ends, part = ends_of(kinds, stages), -1
    for stage, parts in stages:
        begins.append((stage, len(pieces)))
        for number in range(parts):
            part += 1
            for layer in range(len(kinds)) if number % 2 else (None,):
                place = Place(part) if layer is None else Place(part, kinds[layer], ends[layer])
                if place not in doings:
                    segment, bytes_of = segment_at(place)
                    doings[place] = Doing.of(segment, bytes_of), segment
                doing, segment = doings[place]
                begun[part, layer] = len(pieces)
                targets = []
                for other in segment.others:
                    if other.part == LOADED:
                        raise NotLayered
                    end = len(kinds) - 1 if layer is None else layer
                    owner = None if other.layer is None else end + other.layer
                    piece = begun[other.part, owner]
                    left = (pieces[piece] if piece < len(pieces) else Piece(doing, layer, ())).doing.left
                    targets.append(Target(piece, other.number if owner is None else left[other.number]))
                pieces.append(Piece(doing, layer, targets))
    run = LayeredRun(begins, pieces)
    uses = any(request.use for doing, _ in doings.values() for request in doing.requests)
    if not uses or any(operator.endswith(REPEATED) for operator in run.operators):
        raise NotLayered
    return run


def on_device(layered_run: LayeredRun, run: Run) -> LayeredRun:
    """As `turns.with_all_turns` and then `on_device.on_device` of a run on CUDA."""
    changed: dict[int, Doing] = {}
    _turns(layered_run, run, changed)
    operators = layered_run.operators
    sorts = {name for name in operators if name == SORT or name.startswith(f"{SORT}.")}
    without_sums = has_cudnn_attention(run.gpu)
    load, *others = layered_run.pieces
    changed[id(load.doing)] = _laid_out(load.doing, run.loader)
    for doing in _distinct(others):
        now = changed.get(id(doing), doing)
        if without_sums:
            now = _without_log_sum_exps(now)
        if sorts:
            now = _sorting(now, sorts)
        changed[id(doing)] = now
    pieces = [piece._replace(doing=changed[id(piece.doing)]) for piece in layered_run.pieces]
    wanted = [(MATRIX_PRODUCT, workspace_of(run)), (BIASED_PRODUCT, LT_WORKSPACE_BYTES)]
    calls = []
    for number, (names, size_bytes) in enumerate(wanted):
        products = {operator for operator in operators if is_one_of(operator, names)}
        if products and (first := _first(pieces, products)) is not None:
            calls.append((first, number, size_bytes))
    for (piece, place), _, size_bytes in sorted(calls, reverse=True):
        # The product's output is allocated first, then the library is called.
        doing = pieces[piece].doing.inserted(place + 1, Made(size_bytes, "", WORKSPACE))
        pieces[piece] = pieces[piece]._replace(doing=doing)
    return layered_run._replace(pieces=pieces)


def _laid_out(load: Doing, loader: str) -> Doing:
    """As `on_device.laid_out`."""
    weights = [made for made in load.requests if made.operator == PARAMETER]
    others = [made for made in load.requests if made.operator != PARAMETER]
    loaded = [*weights, *others]
    if loader == "per-tensor":
        return Doing(loaded, [*range(len(loaded))], (), 0)
    block = Made(warm_up_bytes(sum([weight.size_bytes for weight in weights])), "", WARM_UP)
    return Doing([block, *loaded], [0, -1, *range(1, len(loaded) + 1)], (), 0)


def _first(pieces: Sequence[Piece], operators: Collection[str]) -> tuple[int, int] | None:
    """The piece and the place in its order where something is first made by these operators."""
    without: set[int] = set()
    for number, piece in enumerate(pieces):
        if not number or id(piece.doing) in without:
            continue
        for place, request in piece.doing.made():
            if request.operator in operators:
                return number, place
        without.add(id(piece.doing))
    return None


def _turns(layered_run: LayeredRun, run: Run, changed: dict[int, Doing]) -> None:
    """Adds the turns that loops of the prompt's pass lack."""
    ends = [first for _, first in layered_run.stages[2:3]] or [len(layered_run.pieces)]
    first_pass = layered_run.pieces[1 : ends[0]]
    loops = {id(doing): tuple(_loops(doing)) for doing in _distinct(first_pass)}
    if not any(loops.values()):
        return
    layers = [piece.layer for piece in first_pass if piece.layer is not None]
    if len(layers) > len({*layers}):  # what is linear in one pass may not look so in another
        raise NotLayered
    turns = missing_turns(run.prompt_tokens, [loop for piece in first_pass for loop in loops[id(piece.doing)]])
    for doing in _distinct(first_pass) if turns else ():
        if loops[id(doing)]:
            order, sources = with_turns(doing.order, len(doing.requests), loops[id(doing)], turns)
            requests = [*doing.requests, *map(doing.requests.__getitem__, sources)]
            changed[id(doing)] = Doing(requests, order, doing.left, doing.targets)


def _loops(doing: Doing) -> Iterable[Loop]:
    """As `turns.loops_of`."""
    modules = {request.module for request in doing.requests}
    linear = {module for module in modules if module.endswith(LINEAR)}
    linear |= {
        request.module
        for request in doing.requests
        if request.operator == DECAYS and request.module.endswith(ATTENTION)
    }
    if not linear:
        return ()
    kinds: dict[object, int] = {}
    kind_of = [kinds.setdefault(request[:3], len(kinds)) for request in doing.requests]
    alike, is_linear = [], []
    for entry in doing.order:
        number = entry if entry >= 0 else -1 - entry
        if entry <= OTHER:
            alike.append(chr(2 * (len(kinds) + OTHER - entry)))
            is_linear.append(False)
        else:
            alike.append(chr(2 * kind_of[number] + (entry >= 0)))
            is_linear.append(doing.requests[number].module in linear)
    return loops_in("".join(alike), is_linear)


def _without_log_sum_exps(doing: Doing) -> Doing:
    """Without those that `on_device` takes out; NotLayered if one outlives its piece."""
    if doing.order and doing.order[0] >= 0 and doing.requests[doing.order[0]].operator == FLASH_ATTENTION:
        raise NotLayered
    gone = set()
    for before, entry in zip(doing.order, doing.order[1:], strict=False):
        if min(before, entry) >= 0:
            output, request = doing.requests[before], doing.requests[entry]
            if request.operator == output.operator == FLASH_ATTENTION and request.module == output.module:
                gone.add(entry)
    if not gone:
        return doing
    freed = {-1 - entry for entry in doing.order if entry < 0}
    if not gone <= freed:
        raise NotLayered
    order = [entry for entry in doing.order if entry not in gone and -1 - entry not in gone]
    return Doing(doing.requests, order, doing.left, doing.targets)


def _sorting(doing: Doing, sorts: Collection[str]) -> Doing:
    """With the scratch of sorts, as `on_device` adds it; NotLayered for a piece that begins with a sort."""
    requests, order = [*doing.requests], []
    before: Made | None = None
    for place, entry in enumerate(doing.order):
        order.append(entry)
        request = doing.requests[entry] if entry >= 0 else None
        if request is not None and request.operator in sorts:
            if place == 0:
                raise NotLayered
            if before is not None and request[:3] == before[:3]:
                number = len(requests)
                sizes = request.size_bytes, sort_scratch_bytes(request.size_bytes)
                requests += [Made(size_bytes, request.module, SORT_SCRATCH) for size_bytes in sizes]
                order += [number, number + 1, -1 - (number + 1), -1 - number]
        before = request
    return Doing(requests, order, doing.left, doing.targets) if len(requests) > len(doing.requests) else doing
