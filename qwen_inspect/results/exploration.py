"""A run for any batch and any lengths: its requests with sizes as formulas, for a page that replays them where it is read."""

from __future__ import annotations

from dataclasses import dataclass

from .timeline import Stage

GROWTHS = 64  # that stand for all steps of decoding


def grown_tokens(steps: int, growth: int) -> int:
    """By how many tokens the cache is longer after one of GROWTHS growths, for so many steps before the last."""
    return steps * growth // GROWTHS


def grown_bytes(before: int, after: int, steps: int, growth: int) -> int:
    """The size of a part of the cache after a growth; what is smaller after it, a window, is so from the first step on."""
    if steps == 0 or after <= before:
        return after if steps else before
    return before + (after - before) * grown_tokens(steps, growth) // steps


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Bytes of a request: `coefficients` times 1, P, P², T, and B times each, for batch B, prompt P, tokens at the end T.

    most_tokens: T is no more than this. half: 0 the whole, 1 its half rounded down, 2 the rest. growth: which of GROWTHS on the
    way from `before` to `coefficients` it is, 0 for none; where it is as long as the one before, it is not made, nor that freed.
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
    """Requests with the index of each one's size and term; an entry of `order` that is not negative is the index of the request
    made then, -1 - index frees it. method: "trace", or "formula", of which only the end is known.
    allocator: PYTORCH_CUDA_ALLOC_CONF's text. loops: over the chunks of a prompt, of which `order` has a few turns.
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
