"""The largest number that passes a test of which only single answers can be had."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], limit: int, *, asked: int = 0) -> int:
    """A number from 0 to `limit` that fits where the next one does not (0: not even 1 does), no less than `asked` if that fits.

    What a run reserves does not quite grow with its context, for blocks that were freed may or may not be large enough for the
    next request: above the answer there may be islands of larger ones that fit, which are not looked for. The halving asks for
    the same numbers whatever is available until two answers differ, so that more memory never gives a smaller answer.
    """
    if limit < 1:
        return 0
    if fits(limit):
        return limit
    fitting, failing = 0, limit
    if 0 < asked < limit:
        fitting, failing = (asked, limit) if fits(asked) else (0, asked)
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting
