"""Tests for the modules that a `quantization_config` names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from ..results.quantisation import ModuleTest
from .pattern_syntax import Node, Position
from .patterns import first_match

HEAD, SHARED_GATE = "lm_head", "shared_expert_gate"

DIGITS = frozenset("0123456789")
NO_LETTERS = str.maketrans("", "", "_.-")
ZEROS = str.maketrans("123456789", "000000000")


def every_module(module: str) -> bool:
    return True


def is_literal(name: str) -> bool:
    """Whether a name has only letters, digits and `_`, `.` and `-`, so that it is no pattern."""
    return bool(name) and (name.translate(NO_LETTERS) or "0").isalnum()


def skipped_by(names: Sequence[str]) -> ModuleTest:
    """A test for skipped modules by transformers' rule.

    A name or pattern must match from the start of a module's name up to a dot or the end, or a name must be its end.

    Source: transformers 5.23, quantizers_utils.should_convert_module.
    """
    named = frozenset(name for name in names if is_literal(name))
    ends = tuple(named)
    patterns = [name.removeprefix("re:") for name in names if name not in named]
    first = first_match(patterns, after=Position("module edge"))

    def test(module: str) -> bool:
        return module.endswith(ends) or not named.isdisjoint(_ancestors(module)) or first(module) is not None

    return _once_a_layer(test, names)


def rule_tests(rules: Iterable[tuple[Sequence[str], Sequence[str]]], *, before: Node | None = None) -> list[ModuleTest]:
    """A test for each rule of (names, patterns); where several take a module, only the first one's is sure to be true.

    The patterns of all rules are matched at once, each from a name's start, after `before`.
    """
    named: list[frozenset[str]] = []
    owners: list[int] = []
    patterns: list[str] = []
    for number, (names, own_patterns) in enumerate(rules):
        named.append(frozenset(names))
        patterns += own_patterns
        owners += [number] * len(own_patterns)
    first = lru_cache(maxsize=4)(first_match(patterns, before=before))

    def test(number: int) -> ModuleTest:
        def takes(module: str) -> bool:
            index = first(module)
            return module in named[number] or (index is not None and owners[index] == number)

        return takes

    sources = [*patterns, *(name for names in named for name in names)]
    return [_once_a_layer(test(number), sources) for number in range(len(named))]


def _once_a_layer(test: ModuleTest, sources: Iterable[str]) -> ModuleTest:
    """`test`, asked once for all modules whose names differ in digits alone, if none of its names and patterns has a digit.

    Such a pattern takes every digit where it takes one: so does a range of characters between two that are no digits.
    """
    if any(not DIGITS.isdisjoint(source) for source in sources):
        return test
    answer = cache(test)
    return lambda module: answer(module.translate(ZEROS))


def _ancestors(module: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
