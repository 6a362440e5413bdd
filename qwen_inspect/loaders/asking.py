"""Asks hubs at once for a model, and remembers for some minutes which hub is out of reach."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import Checkpoint
from ..errors import NetworkError, NotFoundError, QwenInspectError
from ..typed import Any
from . import header_cache
from .hub import Hub, Look
from .transfer import Deadline

# A later hub is asked if the one before it has not answered by then. Source: RFC 8305 (Happy Eyeballs), section 5.
HEAD_START_SECONDS = 0.25
REMEMBERED_SECONDS = 300.0
REMEMBERED = "unreachable.json"
# Errors of no connection and of no answer. A hub that refuses, limits the rate or answers with a status is within reach.
NO_ANSWER = ("hub_unreachable", "hub_behind_proxy", "hub_no_answer")

Said = Checkpoint | Look | QwenInspectError


class Asking:
    """Hubs asked for one model, each on a thread of its own by `ask`. The first in order that has the model is the one to read.

    By source: refused: why a hub has not the model or cannot say. answers: what any other hub said, be it an error: a gated
    model is not looked for elsewhere.
    """

    def __init__(self, hubs: Sequence[Hub], ask: Callable[[Hub], Checkpoint | Look]) -> None:
        self.hubs = hubs
        self.answers: dict[str, Said] = {}
        self.refused: dict[str, QwenInspectError] = {}
        self._ask_of = ask
        self._said: queue.SimpleQueue[tuple[Hub, Said | BaseException]] = queue.SimpleQueue()
        self._unasked = list(hubs)

    def first(self, deadline: Deadline) -> Hub | None:
        """The hub to read: the first that has not refused, once it answers. None if all have refused, or if time runs out."""
        while True:
            leading = next((hub for hub in self.hubs if hub.source not in self.refused), None)
            if leading is None or leading.source in self.answers:
                return leading
            if self._unasked and (leading in self._unasked or not self._hear(HEAD_START_SECONDS)):
                self._ask(self._unasked.pop(0))
            elif not self._unasked and not self._hear(deadline.remaining) and deadline.passed:
                return None

    def silent(self, hub: Hub) -> bool:
        """Whether the hub was asked and has said nothing yet."""
        return not (hub in self._unasked or hub.source in self.answers or hub.source in self.refused)

    def _ask(self, hub: Hub) -> None:
        def ask() -> None:
            try:
                self._said.put((hub, self._ask_of(hub)))
            except BaseException as error:  # raised again in the thread that asks
                self._said.put((hub, error))

        threading.Thread(target=ask, daemon=True).start()

    def _hear(self, seconds: float) -> bool:
        """Waits for what a hub says; False if none says anything in time."""
        try:
            hub, said = self._said.get(timeout=seconds)
        except queue.Empty:
            return False
        if isinstance(said, NetworkError | NotFoundError):
            self.refused[hub.source] = said
        elif isinstance(said, BaseException) and not isinstance(said, QwenInspectError):
            raise said
        else:
            self.answers[hub.source] = said
        if is_no_answer(self.refused.get(hub.source)):
            remember(hub)
        else:
            forget(hub)
        return True


def is_no_answer(error: QwenInspectError | None) -> bool:
    return isinstance(error, NetworkError) and error.message.key in NO_ANSWER


def remembered_seconds(hub: Hub) -> float | None:
    """Seconds since the hub was last out of reach; None if it was not in the last minutes."""
    since = _read().get(_key(hub))
    age = time.time() - since if isinstance(since, int | float) else -1.0
    return age if 0 <= age <= REMEMBERED_SECONDS else None


def remember(hub: Hub) -> None:
    _write({**_read(), _key(hub): time.time()})


def forget(hub: Hub) -> None:
    kept = _read()
    if kept.pop(_key(hub), None) is not None:
        _write(kept)


def _key(hub: Hub) -> str:
    return f"{hub.source} {hub.shown_endpoint}"


def _read() -> dict[str, Any]:
    """Hub and endpoint -> when it was out of reach, in seconds since 1970."""
    try:
        kept = json.loads(header_cache.read_named(REMEMBERED) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(kept: Mapping[str, Any]) -> None:
    recent = {
        name: since for name, since in kept.items() if isinstance(since, int | float) and time.time() - since < 3600
    }
    header_cache.write_named(REMEMBERED, json.dumps(recent).encode())
