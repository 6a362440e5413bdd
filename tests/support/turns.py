"""Cases of two parameters: each value of the first with one of the second, in turn; the others are in `make exhaustive`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def in_turn(firsts: Iterable[Any], seconds: Sequence[Any]) -> list[Any]:
    return [
        pytest.param(first, second, marks=() if at == number % len(seconds) else pytest.mark.exhaustive)
        for number, first in enumerate(firsts)
        for at, second in enumerate(seconds)
    ]
