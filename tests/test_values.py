"""`values.dataclass` makes what the standard library's decorator makes."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.values import dataclass


def pair(decorator: Any) -> Any:
    @decorator(frozen=True, slots=True, kw_only=True)
    class Pair:
        first: int
        second: tuple[str, ...] = ("b",)
        note: str = field(default="n", compare=False, repr=False)

    return Pair


@pytest.mark.parametrize("decorator", [dataclass, dataclasses.dataclass])
def test_values_compare_hash_and_show_as_the_standard_librarys(decorator: Any) -> None:
    made, other = pair(decorator), pair(decorator)
    assert made(first=1) == made(first=1, note="x") != made(first=2)
    assert made(first=1) != other(first=1)  # of another class
    assert len({made(first=1), made(first=1, note="x"), made(first=2)}) == 2
    assert repr(made(first=1)) == f"{made.__qualname__}(first=1, second=('b',))"
    assert dataclasses.asdict(made(first=1)) == {"first": 1, "second": ("b",), "note": "n"}
    assert dataclasses.replace(made(first=1), first=2) == made(first=2)
    with pytest.raises(TypeError):
        made(1)
    with pytest.raises((AttributeError, TypeError)):  # the standard library's of 3.11 raises the latter
        made(first=1).third = 3  # it has slots


def test_values_that_may_change_have_no_hash() -> None:
    @dataclass(slots=True)
    class Open:
        first: int

    with pytest.raises(TypeError):
        hash(Open(1))


def test_one_field_and_none_compare_too() -> None:
    @dataclass(frozen=True)
    class Single:
        first: int

    @dataclass(frozen=True)
    class Empty:
        pass

    assert (Single(1) == Single(1), Single(1) == Single(2), Empty() == Empty()) == (True, False, True)
    assert hash(Tensor("a", (1,), DType.BF16)) == hash(Tensor("a", (1,), DType.BF16))
