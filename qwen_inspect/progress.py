"""What is being worked on, for who waits: said where the work is slow, shown by who asked to be told, else by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count

from .language import Message

Show = Callable[[Message | None], None]  # None: it is over
_listener: ContextVar[tuple[Show, Iterator[int]] | None] = ContextVar("listener", default=None)
_purpose: ContextVar[Message | None] = ContextVar("purpose", default=None)


@contextmanager
def told_to(show: Show) -> Iterator[None]:
    """Everything slow within is told to `show`, numbered from 1."""
    token = _listener.set((show, count(1)))
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def purpose(message: Message) -> Iterator[None]:
    """What the work within is done for."""
    token = _purpose.set(message)
    try:
        yield
    finally:
        _purpose.reset(token)


@contextmanager
def working(key: str, **values: object) -> Iterator[None]:
    """Something slow: `key` is said with its `number`, its `purpose` and the values."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    show, numbers = listener
    show(Message(key, number=next(numbers), purpose=_purpose.get() or Message("purpose_run"), **values))
    try:
        yield
    finally:
        show(None)
