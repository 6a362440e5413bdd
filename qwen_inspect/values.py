"""`dataclass`: the standard library's, made fast to import.

The standard decorator compiles six methods a class, some 0.4 ms of each start, and a command has a hundred such classes. Here
only `__init__` is compiled, when the first instance is made; comparison, hash and repr are shared. To mypy it is the standard
decorator, so that assigning to a frozen class is an error there; at run time nothing stops it.
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
        made = dataclasses.dataclass(made, **{**options, "init": False, "eq": False, "repr": False})
        made.__init__ = _compiled_when_called(made)
        if eq:
            compared = [field.name for field in dataclasses.fields(made) if field.compare]
            _compare(made, attrgetter(*compared) if compared else lambda instance: (), hashed=frozen)
        if options.get("repr", True):
            made.__repr__ = _shown
        return made

    def _compiled_when_called(made):
        def __init__(self, *values, **named):
            made.__init__ = _init(made)
            made.__init__(self, *values, **named)

        return __init__

    def _init(made):
        """`__init__` with a parameter for each field: `default_X` is X's default, `make_X` makes it."""
        names, parameters, lines = {"UNSET": object()}, {False: [], True: []}, []
        for field in dataclasses.fields(made):
            name, parameter, value = field.name, field.name, field.name
            if field.default is not dataclasses.MISSING:
                names[f"default_{name}"], parameter = field.default, f"{name}=default_{name}"
            elif field.default_factory is not dataclasses.MISSING:
                names[f"make_{name}"], parameter = field.default_factory, f"{name}=UNSET"
                value = f"make_{name}() if {name} is UNSET else {name}"
            parameters[field.kw_only].append(parameter)
            lines.append(f" self.{name} = {value}")
        if hasattr(made, "__post_init__"):
            lines.append(" self.__post_init__()")
        keywords = ["*", *parameters[True]] if parameters[True] else []
        exec(
            f"def __init__({', '.join(['self', *parameters[False], *keywords])}):\n" + "\n".join(lines or [" pass"]),
            names,
        )
        names["__init__"].__qualname__ = f"{made.__qualname__}.__init__"
        return names["__init__"]

    def _compare(made, values, *, hashed):
        def equal(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        def hash_of(self):
            return hash(values(self))

        made.__eq__, made.__hash__ = equal, hash_of if hashed else None

    def _shown(self):
        named = [field.name for field in dataclasses.fields(self) if field.repr]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in named)})"
