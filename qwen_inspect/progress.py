"""Progress messages: slow code announces its work, and a listener, if there is one, shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .language import Message

Show = Callable[[Message | None], None]  # None: the work is done
_listener: ContextVar[tuple[Show, Counter[str]] | None] = ContextVar("listener", default=None)
_current: ContextVar[Message | None] = ContextVar("current", default=None)
_purpose: ContextVar[Message | None] = ContextVar("purpose", default=None)


@contextmanager
def reporting_to(show: Show) -> Iterator[None]:
    """Within it, `show` receives a message for each piece of slow work, numbered from 1 among those of its key."""
    token = _listener.set((show, Counter()))
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def purpose(message: Message) -> Iterator[None]:
    """Within it, messages state `message` as the purpose of the work."""
    token = _purpose.set(message)
    try:
        yield
    finally:
        _purpose.reset(token)


@contextmanager
def working(key: str, **values: object) -> Iterator[None]:
    """Announces slow work: the message `key` with its `number`, its `purpose` and the values. Work may contain other work."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    show, numbers = listener
    numbers[key] += 1
    message = Message(key, number=numbers[key], purpose=_purpose.get() or Message("purpose_run"), **values)
    token = _current.set(message)
    show(message)
    try:
        yield
    finally:
        _current.reset(token)
        show(_current.get())


def stage(key: str, **values: object) -> None:
    """Announces the next stage of the work that `working` has announced, until its next stage or its end."""
    if _current.get() is not None and (listener := _listener.get()) is not None:
        listener[0](Message(key, **values))
