"""What a short command seldom needs of the standard library, imported at its first use, or in a form that is quick to import.

`re`, `json`, `signal` and `enum` would take a seventh of such a command. JSON is read by the compiled scanner that `json` has
itself. To mypy they are the modules.
"""

from __future__ import annotations

import sys

from .typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import json as json
    import re as re
    import signal as signal
    from enum import Enum as Enum
    from importlib import import_module as import_module

    def compiled(pattern: str) -> re.Pattern[str]: ...
else:

    class _Module:
        """A module that is imported when something of it is asked for."""

        def __init__(self, name):
            self._name = name

        def __getattr__(self, attribute):
            value = getattr(import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    class _Pattern:
        """A regular expression that is compiled when something of it is asked for."""

        def __init__(self, text):
            self._text = text

        def __getattr__(self, attribute):
            value = getattr(re.compile(self._text), attribute)
            setattr(self, attribute, value)
            return value

    def compiled(text):
        """`re.compile`, at the first use."""
        return _Pattern(text)

    def import_module(name, package=""):
        """`importlib.import_module`, of a module of `package` if the name begins with a dot."""
        name = package + name if name.startswith(".") else name
        __import__(name)
        return sys.modules[name]

    json, re = _Module("json"), _Module("re")
    try:
        import _signal as signal  # `signal` without its enumerations, for which it takes four times as long
    except ImportError:
        signal = _Module("signal")

    class _Members(type):
        """Makes an instance of a class for each of its constants, as `enum.EnumType` does."""

        def __new__(cls, name, bases, namespace):
            values = {key: value for key, value in namespace.items() if key.isupper() and not key.startswith("_")}
            made = type.__new__(cls, name, bases, {key: value for key, value in namespace.items() if key not in values})
            made._members = {}
            for key, value in values.items():
                member = made._members[key] = object.__new__(made)
                member.name, member.value = key, value
                member.__init__(*value)
                setattr(made, key, member)
            return made

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __getitem__(cls, name):
            return cls._members[name]

    class Enum(metaclass=_Members):
        """As `enum.Enum`, for constants that are tuples."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __copy__(self):
            return self

        def __deepcopy__(self, memo):
            return self

        def __reduce__(self):
            return getattr, (type(self), self.name)


SPACES = " \t\n\r"


class _Defaults:
    """As a `json.JSONDecoder` says how it reads."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": -float("inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__


READING: Any = _Defaults


def raw_decode(text: str, begin: int) -> Any:
    """The JSON value that begins there, whatever follows."""
    try:
        from _json import make_scanner
    except ImportError:
        return json.JSONDecoder().raw_decode(text, begin)[0]
    return make_scanner(READING)(text, begin)[0]


def loads(text: str | bytes) -> Any:
    """`json.loads`."""
    try:
        from _json import make_scanner

        written = text.decode("utf-8") if isinstance(text, bytes) else text
        value, end = make_scanner(READING)(written, len(written) - len(written.lstrip(SPACES)))
        if not written[end:].strip(SPACES):
            return value
    except (ImportError, StopIteration, UnicodeDecodeError):
        pass
    return json.loads(text)  # which tells what is wrong
