"""`values.dataclass` makes what the standard library's decorator makes."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest

import qwen_inspect
from qwen_inspect import values
from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.values import dataclass


def pair(library: Any) -> Any:
    @library.dataclass(frozen=True, slots=True, kw_only=True)
    class Pair:
        first: int
        second: tuple[str, ...] = ("b",)
        note: str = library.field(default="n", compare=False, repr=False)

    return Pair


@pytest.mark.parametrize("library", [values, dataclasses])
def test_values_compare_hash_and_show_as_the_standard_librarys(library: Any) -> None:
    made, other = pair(library), pair(library)
    assert made(first=1) == made(first=1, note="x") != made(first=2)
    assert made(first=1) != other(first=1)  # of another class
    assert len({made(first=1), made(first=1, note="x"), made(first=2)}) == 2
    assert repr(made(first=1)) == f"{made.__qualname__}(first=1, second=('b',))"
    assert dataclasses.asdict(made(first=1)) == {"first": 1, "second": ("b",), "note": "n"}
    assert dataclasses.replace(made(first=1), first=2) == made(first=2)
    assert pformat([made(first=1)]) == f"[{made(first=1)!r}]"
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


@pytest.mark.parametrize("library", [values, dataclasses])
def test_values_are_made_with_defaults_factories_and_keywords(library: Any) -> None:
    @library.dataclass(slots=True)
    class Written:
        first: int
        second: list[int] = library.field(default_factory=list)
        third: int = library.field(default=3, kw_only=True)
        total: int = 0

        def __post_init__(self) -> None:
            self.total += self.first + self.third

    class Below(Written):
        pass

    made: Any = Written
    below: Any = Below
    assert dataclasses.astuple(made(1)) == (1, [], 3, 4)
    assert dataclasses.astuple(made(1, [2], 5, third=4)) == (1, [2], 4, 10)
    assert made(1).second is not made(1).second
    assert dataclasses.astuple(below(1)) == dataclasses.astuple(dataclasses.replace(made(9), first=1, total=0))
    too_few: list[Any] = []
    for arguments in (too_few, [1, [], 0, 4]):
        with pytest.raises(TypeError):
            made(*arguments)


def test_no_module_imports_what_values_and_typed_make_fast() -> None:
    """Beside what these do not have, and the generator of the schema, which no command imports."""
    for path in Path(qwen_inspect.__file__).parent.rglob("*.py"):
        if path.name in ("values.py", "typed.py") or path.parent.name == "schema":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module in ("dataclasses", "typing"):
                assert {alias.name for alias in node.names} <= {"asdict", "cast", "get_args"}, path
            assert not isinstance(node, ast.Import) or node.names[0].name not in (
                "argparse",
                "dataclasses",
                "typing",
            ), path


def test_light_names_of_typing_do_what_the_modules_here_ask_of_them() -> None:
    """In an interpreter that has not imported `typing`: as by its own names, and no import of it."""
    script = """
import sys
sys.modules.pop("typing", None)
from qwen_inspect.typed import Any, Generic, Literal, NamedTuple, Protocol, TypedDict, TypeVar
from collections.abc import Callable, Sequence

class Pair(NamedTuple):
    "Two."
    first: int
    second: str = "b"
    @property
    def both(self): return f"{self.first}{self.second}"
    @staticmethod
    def of(first): return Pair(first)
    def __add__(self, other): return Pair(self.first + other.first)

made = Pair(1)
assert (made, made.both, Pair.of(2) + made, made._replace(first=5)) == ((1, "b"), "1b", Pair(3), Pair(5, "b"))
assert (Pair.__doc__, Pair.__name__, Pair.__module__, repr(made)) == ("Two.", "Pair", "__main__", "Pair(first=1, second='b')")
match made:
    case Pair(first=1, second=text):
        assert text == "b"
T = TypeVar("T", bound=int)
class Box(Generic[T]): pass
class Reads(Protocol): pass
class Keys(TypedDict, total=False): pass
assert issubclass(Box, Generic) and Box[int] is not None and Keys(a=1) == {"a": 1}
Kind, Reader = Literal["a", "b"] | None, Callable[[str], T] | Sequence[tuple[str, Any]]
assert "typing" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
