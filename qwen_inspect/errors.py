"""The errors: one class for each kind that a caller may handle.

QwenInspectError
├── UsageError          2  the options contradict each other, or the output cannot be written
├── NotFoundError       3  no such model, revision or file
├── AccessError         4  gated, private, bad token
├── NetworkError        5  unreachable, timed out, rate limited
├── MalformedError      6  a model file is damaged or not what its name says
├── UnsupportedError    7  architecture, dtype or quantisation that cannot be answered exactly
│   └── NoModelError       a file that holds no model, such as an adapter
└── UnavailableError    8  a device or an optional package is missing
"""

from __future__ import annotations

from .language import Language, Message
from .typed import ClassVar


class QwenInspectError(Exception):
    """A sentence (what was expected, what was found, where, what to do) and the exit code that scripts read."""

    exit_code: ClassVar[int]

    def __init__(self, key: str, /, **values: object) -> None:
        super().__init__(key)
        self.message = Message(key, **values)

    def __str__(self) -> str:
        return Language("en")(self.message)


class UsageError(QwenInspectError):
    exit_code = 2


class NotFoundError(QwenInspectError):
    exit_code = 3


class AccessError(QwenInspectError):
    exit_code = 4


class NetworkError(QwenInspectError):
    exit_code = 5


class MalformedError(QwenInspectError):
    exit_code = 6


class UnsupportedError(QwenInspectError):
    exit_code = 7


class NoModelError(UnsupportedError):
    pass


class UnavailableError(QwenInspectError):
    exit_code = 8
