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
    from collections import namedtuple

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

    class _NamedTupleType(type):
        def __new__(cls, name, bases, namespace):
            fields = [*namespace.get("__annotations__", ())]
            defaults = [namespace[field] for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            made.__annotations__ = namespace.get("__annotations__", {})
            for key, value in namespace.items():
                if key not in fields and key not in OWN_TO_CLASSES:
                    setattr(made, key, value)
            return made

    class _NamedTupleForm:
        """Its subclass is a class that `namedtuple` makes, with the methods of the subclass."""

        made = type.__new__(_NamedTupleType, "NamedTuple", (), {})

        def __mro_entries__(self, bases):
            return (self.made,)

    NamedTuple = _NamedTupleForm()
