"""What modules here take from `typing`, which imports as long as a third of a bare Python's start.

Where something else has imported `typing` the names are its own, as they are to mypy. Else they are just enough to run the
modules: annotations are texts, which nothing evaluates in a plain command.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False

if TYPE_CHECKING or "typing" in sys.modules:
    from typing import Annotated as Annotated
    from typing import Any as Any
    from typing import BinaryIO as BinaryIO
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TextIO as TextIO
    from typing import TypeAlias as TypeAlias
    from typing import TypedDict as TypedDict
    from typing import TypeVar as TypeVar
else:
    from collections import _tuplegetter

    class _Form:
        """A type, alone, with arguments, in a union, or as a base without methods."""

        def __class_getitem__(cls, arguments):
            return type(list[int])(cls, arguments)

    class Annotated(_Form):
        pass

    class Any(_Form):
        pass

    class BinaryIO(_Form):
        pass

    class ClassVar(_Form):
        pass

    class Generic(_Form):
        pass

    class Literal(_Form):
        pass

    class NoReturn(_Form):
        pass

    class Protocol(_Form):
        pass

    class TextIO(_Form):
        pass

    class TypeAlias(_Form):
        pass

    class TypedDict(dict):
        def __init_subclass__(cls, *, total=True):
            """total: for type checkers."""

    class TypeVar:
        def __init__(self, name, *constraints, bound=None, covariant=False, contravariant=False):
            self.__name__ = name

        def __or__(self, other):
            return self

    OWN_TO_CLASSES = frozenset({
        "__module__", "__qualname__", "__annotations__", "__annotate_func__", "__orig_bases__", "__firstlineno__",
        "__static_attributes__", "__classdictcell__",
    })  # fmt: skip

    class _Named(tuple):
        """The methods of `collections.namedtuple`, which makes them again for each class."""

        __slots__ = ()

        @classmethod
        def _make(cls, values):
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, /, **changes):
            made = self._make(map(changes.pop, self._fields, self))
            if changes:
                raise ValueError(f"Got unexpected field names: {list(changes)!r}")
            return made

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            values = ", ".join([f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True)])
            return f"{self.__class__.__name__}({values})"

        def __getnewargs__(self):
            return tuple(self)

    class _NamedTupleType(type):
        def __new__(cls, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            made = {key: value for key, value in namespace.items() if key not in fields and key not in OWN_TO_CLASSES}
            made |= {
                field: _tuplegetter(index, f"Alias for field number {index}") for index, field in enumerate(fields)
            }
            made |= {key: namespace[key] for key in ("__module__", "__qualname__") if key in namespace}
            made |= {"__slots__": (), "_fields": fields, "__match_args__": fields}
            made["_field_defaults"] = {field: namespace[field] for field in fields if field in namespace}
            made["__new__"] = _new_when_called
            made = type(name, (_Named,), made)
            made.__annotations__ = namespace.get("__annotations__", {})
            return made

    def _new_when_called(cls, *values, **named):
        """`__new__` of a class of which nothing was made so far."""
        made = next(base for base in cls.__mro__ if "_fields" in base.__dict__)
        fields = ", ".join(made._fields)
        new = eval(f"lambda cls, {fields}: tuple_new(cls, ({fields},))", {"tuple_new": tuple.__new__})
        new.__defaults__, new.__name__ = tuple(made._field_defaults.values()), "__new__"
        made.__new__ = staticmethod(new)
        return new(cls, *values, **named)

    class _NamedTupleForm:
        """Its subclass is a class like those of `namedtuple`, with the methods of the subclass."""

        made = type.__new__(_NamedTupleType, "NamedTuple", (), {})

        def __mro_entries__(self, bases):
            return (self.made,)

    NamedTuple = _NamedTupleForm()
