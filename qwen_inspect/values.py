"""`dataclass`, `field`, `fields`, `is_dataclass` and `replace`: the standard library's, made fast to import.

The standard module imports `inspect` and its decorator compiles six methods a class: together a quarter of a short command. Here
only `__init__` is compiled, when several instances are made; comparison, hash and repr are shared. The classes are dataclasses to
the standard functions too, such as `dataclasses.asdict`. To mypy it is the standard module, so that assigning to a
frozen class is an error there; at run time nothing stops it.
"""

from __future__ import annotations

from .typed import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import MISSING as MISSING
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import is_dataclass as is_dataclass
    from dataclasses import replace as replace
else:
    from operator import attrgetter

    MISSING = object()

    class Field:
        """What a class says of one of its fields."""

        __slots__ = ("compare", "default", "default_factory", "kw_only", "name", "repr")

        def __init__(self, name=None, default=MISSING, default_factory=MISSING, compare=True, repr=True, kw_only=None):  # noqa: A002
            self.name, self.default, self.default_factory = name, default, default_factory
            self.compare, self.repr, self.kw_only = compare, repr, kw_only

        def standard(self):
            """The same as `dataclasses.Field`."""
            import dataclasses

            default = dataclasses.MISSING if self.default is MISSING else self.default
            factory = dataclasses.MISSING if self.default_factory is MISSING else self.default_factory
            made = dataclasses.field(
                default=default, default_factory=factory, compare=self.compare, repr=self.repr, kw_only=self.kw_only
            )
            made.name, made._field_type = self.name, dataclasses._FIELD
            return made

    class _StandardFields:
        """`__dataclass_fields__`, by which the standard functions know a dataclass."""

        def __get__(self, instance, owner):
            return {name: entry.standard() for name, entry in owner._fields_by_name.items()}

    class _StandardParams:
        """`__dataclass_params__`: to `pprint`, the `repr` is the class's own."""

        init = eq = True
        repr = order = unsafe_hash = frozen = False

    _STANDARD_FIELDS = _StandardFields()

    def field(*, default=MISSING, default_factory=MISSING, compare=True, repr=True, kw_only=None):  # noqa: A002
        """`dataclasses.field` with those of its options that are used here."""
        return Field(None, default, default_factory, compare, repr, kw_only)

    def fields(made):
        """`dataclasses.fields` of a class that `dataclass` made, or of its instance."""
        return tuple(made._fields_by_name.values())

    def is_dataclass(value):
        """Whether `dataclass` made the class, or the instance's class."""
        return hasattr(value, "_fields_by_name")

    def replace(instance, /, **changes):
        """`dataclasses.replace` of an instance of a class that `dataclass` made."""
        return type(instance)(**{**instance._values_by_name(), **changes})

    def dataclass(made=None, /, *, frozen=False, eq=True, repr=True, kw_only=False, slots=False):  # noqa: A002
        """`dataclasses.dataclass` with those of its options that are used here."""
        if made is None:
            return lambda made: dataclass(made, frozen=frozen, eq=eq, repr=repr, kw_only=kw_only, slots=slots)
        by_name = _fields(made, kw_only)
        if slots:
            made = _with_slots(made, by_name)
        made._fields_by_name = by_name
        made.__dataclass_fields__, made.__dataclass_params__ = _STANDARD_FIELDS, _StandardParams
        made.__match_args__ = tuple([name for name, entry in by_name.items() if not entry.kw_only])
        made.__init__ = _compiled_when_called(made)
        made._values_by_name = _values_by_name(tuple(by_name))
        made.__replace__ = replace
        if eq:
            compared = [name for name, entry in by_name.items() if entry.compare]
            _compare(made, attrgetter(*compared) if compared else lambda instance: (), hashed=frozen)
        if repr:
            made.__repr__ = _shown
        return made

    def _fields(made, kw_only):
        """The fields by name, those of the bases first; a default stays in the class, a `field()` goes from it."""
        by_name = {}
        for base in made.__mro__[-1:0:-1]:
            by_name.update(base.__dict__.get("_fields_by_name", {}))
        for name, annotation in made.__annotations__.items():
            if str(annotation).startswith("ClassVar"):
                continue
            value = made.__dict__.get(name, MISSING)
            if not isinstance(value, Field):
                entry = Field(name, value, kw_only=kw_only)
            else:
                entry, value.name = value, name
                entry.kw_only = kw_only if entry.kw_only is None else entry.kw_only
                if entry.default is MISSING:
                    delattr(made, name)
                else:
                    setattr(made, name, entry.default)
            by_name[name] = entry
        return by_name

    def _with_slots(made, by_name):
        """The class again, with a slot for each field that no base has."""
        inherited = {slot for base in made.__mro__[1:-1] for slot in base.__dict__.get("__slots__", ())}
        namespace = {name: value for name, value in made.__dict__.items() if name not in by_name}
        namespace.pop("__dict__", None)
        namespace.pop("__weakref__", None)
        namespace["__slots__"] = tuple([name for name in by_name if name not in inherited])
        again = type(made)(made.__name__, made.__bases__, namespace)
        again.__qualname__ = made.__qualname__
        return again

    FEW = 8  # instances, in which a compiled `__init__` does not pay

    def _compiled_when_called(made):
        """An `__init__` that interprets the fields for a few instances, then compiles itself; of arguments that do not fit at
        once, for Python's own message."""
        count, entries = 0, made._fields_by_name
        needed = {name for name, one in entries.items() if one.default is MISSING and one.default_factory is MISSING}

        def __init__(self, *values, **named):
            nonlocal count
            count += 1
            given = {**dict(zip(made.__match_args__, values, strict=False)), **named}
            is_each_once = len(given) == len(values) + len(named)
            if count > FEW or not (is_each_once and needed <= given.keys() <= entries.keys()):
                made.__init__ = _init(made)
                made.__init__(self, *values, **named)
                return
            for name, entry in entries.items():
                if name in given:
                    value = given[name]
                else:
                    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
                setattr(self, name, value)
            if hasattr(made, "__post_init__"):
                self.__post_init__()

        return __init__

    def _init(made):
        """`__init__` with a parameter for each field: `default_X` is X's default, `make_X` makes it."""
        names, parameters, lines = {"UNSET": object()}, {False: [], True: []}, []
        for name, entry in made._fields_by_name.items():
            parameter, value = name, name
            if entry.default is not MISSING:
                names[f"default_{name}"], parameter = entry.default, f"{name}=default_{name}"
            elif entry.default_factory is not MISSING:
                names[f"make_{name}"], parameter = entry.default_factory, f"{name}=UNSET"
                value = f"make_{name}() if {name} is UNSET else {name}"
            parameters[entry.kw_only].append(parameter)
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

    def _values_by_name(names):
        """A method that gives the fields' values by name."""
        if len(names) < 2:  # of which `attrgetter` makes no tuple
            return lambda instance: {name: getattr(instance, name) for name in names}
        values = attrgetter(*names)
        return lambda instance: dict(zip(names, values(instance), strict=True))

    def _compare(made, values, *, hashed):
        def equal(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        def hash_of(self):
            return hash(values(self))

        made.__eq__, made.__hash__ = equal, hash_of if hashed else None

    def _shown(self):
        named = [name for name, entry in self._fields_by_name.items() if entry.repr]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in named)})"
