"""Finds the largest number that passes a test, by bisection."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], limit: int, *, asked: int = 0) -> int:
    """A number from 0 to `limit` that fits while the next does not (0: not even 1 fits); at least `asked` if that fits.

    Memory reserved by a run does not grow strictly with its context, because a freed block may or may not be large enough for
    the next request: larger numbers may fit again, and are not searched. The bisection tests the same numbers for every amount
    of memory until a test differs, so that more memory never gives a smaller result.
    """
    if limit < 1:
        return 0
    fitting, failing = 0, limit
    if 0 < asked < limit and not fits(asked):
        failing = asked
    elif fits(limit):
        return limit
    elif 0 < asked < limit:
        fitting = asked
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting
