"""What an engine is asked: what it takes of a card, what else could be asked of it, and what it takes for granted.

An engine implements `demand`; the rest has answers for one of which no more is known. `fitting` searches and tries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from ..errors import UnsupportedError
from ..language import Message
from ..results.cache import CacheEngine, EngineCache

if TYPE_CHECKING:
    from ..results.fit import CardAnswer, Change, Gpu, Requirement
    from ..results.model import Report
    from ..results.serving import Reserve
    from ..structure.kv_cache import CacheFormat

RANKS = (2, 4, 8)  # that are suggested
SCHEMES = ("fp8", "awq-int4", "gptq-int4")


class AnyRequest(Protocol):
    """What every engine is asked for. A context is what the engine means by it: its `--context`; None: the model's limit."""

    @property
    def batch(self) -> int: ...

    @property
    def context_tokens(self) -> int | None: ...


Asked = TypeVar("Asked", bound=AnyRequest)


@dataclass(frozen=True, slots=True)
class Alternative(Generic[Asked]):
    """The model, the request and the card after a change. kind: as of a `Suggestion`.

    required: what is known without asking the engine, a lower bound where the engine can be asked. report: None where it cannot.
    """

    kind: Change
    change: Message
    report: Report | None
    asked: Asked
    gpu: Gpu
    required: Requirement | None = None


@dataclass(frozen=True, slots=True)
class Choice(Generic[Asked]):
    """Alternatives that belong together. shown: "all", those "until" one fits, or the "first" that fits, else the last."""

    shown: Literal["all", "until", "first"]
    alternatives: Iterable[Alternative[Asked]]


class Demand(ABC):
    """What a request takes of any card, for any batch and context. Where figures are formulas, `requirement` is enough.

    most_context_tokens: the model's own limit on a context, None where there is none. context_step: the largest context is looked
    for among multiples of it.
    """

    most_context_tokens: int | None
    context_step: int = 1

    @abstractmethod
    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        """By term."""

    @property
    def quick(self) -> bool:
        """Whether an answer takes milliseconds, so that a whole curve can be asked for."""
        return True

    def held_bytes(self, batch: int, context_tokens: int) -> int:
        """`requirement(...).held_bytes`, as fast as it can be had."""
        return self.requirement(batch, context_tokens).held_bytes

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool:
        """Whether `held_bytes` is within `room_bytes`, as fast as it can be said: a search asks many times."""
        return self.held_bytes(batch, context_tokens) <= room_bytes

    def least_bytes(self, batch: int, context_tokens: int) -> int:
        """A lower bound of `held_bytes`, at once."""
        return 0

    def passes(self, batch: int, context_tokens: int, capacity_bytes: int) -> bool | None:
        """Whether a run that holds more would end within `capacity_bytes` all the same; None where that is not known."""
        return None

    def available_bytes(self, gpu: Gpu) -> int:
        """What of a card the engine may take, its context included."""
        return gpu.room_bytes

    def cache_tokens(self, batch: int, context_tokens: int) -> int | None:
        """Tokens of all sequences that the cache holds then."""
        return batch * context_tokens

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> Reserve:
        """What the engine takes of a card, for its own page; here the requirement by term."""
        from ..results.serving import Reserve, Reserved

        required = self.requirement(batch, context_tokens)
        terms = [(name, size_bytes, size_bytes) for name, size_bytes in required.terms]
        if required.context_high_bytes:
            terms.append(("context", required.context_low_bytes, required.context_high_bytes))
        return Reserve(
            terms=tuple(Reserved(name=name, least_bytes=least, most_bytes=most) for name, least, most in terms),
            cache_tokens=self.cache_tokens(batch, context_tokens),
        )


Taken = TypeVar("Taken", bound=Demand)


class Engine(ABC, Generic[Asked, Taken]):
    """One engine in one version. smaller: messages that suggest a shorter context and a smaller batch."""

    name: str
    version: str
    smaller = "suggest_sequence", "suggest_sequences"

    def reads(self, report: Report) -> Report:
        """The model as the engine reads it, such as with its own limit of the context."""
        return report

    @abstractmethod
    def demand(self, report: Report, asked: Asked, gpu: Gpu) -> Taken:
        """What `asked` takes of a card. QwenInspectError for what the engine does not serve, or what is not known of it."""

    def changes(self, report: Report, asked: Asked, gpu: Gpu) -> Iterator[Choice[Asked]]:
        """What could be asked for in place of what does not fit the card, the cheapest to the user first."""
        yield self.larger_cards(report, asked, gpu)

    def assumptions(
        self, report: Report, asked: Asked, answers: Sequence[tuple[Taken, CardAnswer]]
    ) -> Iterator[Message]:
        """What the answers take for granted, in sentences."""
        yield from ()

    def caches(self, report: Report) -> Iterator[EngineCache]:
        """The cache of the report's workload in each format that is shown side by side with other engines'."""
        yield from ()

    def larger_cards(self, report: Report, asked: Asked, gpu: Gpu) -> Choice[Asked]:
        from ..loaders import gpus

        cards = gpus.larger(gpu)
        return Choice("first", (Alternative("gpu", card_message(card), report, asked, card) for card in cards))


def card_message(gpu: Gpu) -> Message:
    return Message("suggest_gpu", name=gpu.name)


def schemes(gpu: Gpu) -> list[str]:
    """Schemes of weights in fewer bits that a card computes in."""
    return [scheme for scheme in SCHEMES if scheme != "fp8" or gpu.supports("fp8") is not False]


def cache_rows(
    engine: CacheEngine, formats: Iterable[CacheFormat], size_bytes: Callable[[CacheFormat], int]
) -> Iterator[EngineCache]:
    """The cache in each format; None, with the reason, where `size_bytes` raises that the engine has no such cache."""
    for cache_format in formats:
        try:
            yield EngineCache(engine=engine, format=cache_format.name, size_bytes=size_bytes(cache_format))
        except UnsupportedError as error:
            yield EngineCache(engine=engine, format=cache_format.name, size_bytes=None, reason=error.message)
