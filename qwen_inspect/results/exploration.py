"""A run for any batch and lengths: its allocator requests with symbolic sizes, for an HTML page that replays them."""

from __future__ import annotations

from ..values import dataclass
from .timeline import Stage

GROWTHS = 64  # cache growths that stand for all decoding steps


def grown_tokens(steps: int, growth: int) -> int:
    """Tokens added to the cache after growth number `growth` of GROWTHS, with `steps` steps before the last."""
    return steps * growth // GROWTHS


def grown_bytes(before: int, after: int, steps: int, growth: int) -> int:
    """Bytes of a part of the cache after a growth. A window, which shrinks, has its final size from the first step on."""
    if steps == 0 or after <= before:
        return after if steps else before
    return before + (after - before) * grown_tokens(steps, growth) // steps


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Bytes of a request: `coefficients` times 1, P, P², T, and B times each, for batch B, prompt P, tokens at the end T.

    most_tokens: T is capped at this. half: 0 the whole, 1 its half rounded down, 2 the rest. growth: which of GROWTHS on the
    way from `before` to `coefficients`, 0 for none; a growth that adds no token is skipped, and the previous storage is kept.
    """

    coefficients: tuple[int, ...]
    most_tokens: int | None = None
    half: int = 0
    before: tuple[int, ...] = ()
    growth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Turns of so many events each, alike, of which the first begins at `first_event`."""

    first_event: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """A run's requests. requests: (index of size, index of term) of each. order: events; index i >= 0 makes request i, -1 - i
    frees it. method: "trace", or "formula", which knows only the run's end. allocator: PYTORCH_CUDA_ALLOC_CONF's text.
    loops: over the chunks of a prompt; `order` has a few turns of each. low, scratch: beside a formula, the run whose peak is the
    lower end of this one's, and the most that may be added to it (`PeakRange` for any workload).
    """

    method: str
    terms: tuple[str, ...]
    sizes: tuple[RequestSize, ...]
    requests: tuple[tuple[int, int], ...]
    order: tuple[int, ...]
    stages: tuple[Stage, ...]
    allocator: str
    least_new_tokens: int
    loops: tuple[Loop, ...] = ()
    low: Exploration | None = None
    scratch: RequestSize | None = None
