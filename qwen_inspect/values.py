"""`dataclass`: the standard library's, made fast to import.

The standard decorator compiles six methods a class, some 0.4 ms of each start, and a command has a hundred such classes. Here
only `__init__` is compiled; comparison, hash and repr are shared. To mypy it is the standard decorator, so that assigning to a
frozen class is an error there; at run time nothing stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses
    from operator import attrgetter

    def dataclass(made=None, /, *, frozen=False, eq=True, **options):
        """`dataclasses.dataclass` with its options, but for `order`."""
        if made is None:
            return lambda made: dataclass(made, frozen=frozen, eq=eq, **options)
        made = dataclasses.dataclass(made, **{**options, "eq": False, "repr": False})
        if eq:
            compared = [field.name for field in dataclasses.fields(made) if field.compare]
            _compare(made, attrgetter(*compared) if compared else lambda instance: (), hashed=frozen)
        if options.get("repr", True):
            made.__repr__ = _shown
        return made

    def _compare(made, values, *, hashed):
        def equal(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        def hash_of(self):
            return hash(values(self))

        made.__eq__, made.__hash__ = equal, hash_of if hashed else None

    def _shown(self):
        named = [field.name for field in dataclasses.fields(self) if field.repr]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in named)})"
