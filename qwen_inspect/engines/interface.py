"""What an engine implements: its demand on a card, alternatives to a request, and its assumptions.

An engine must implement `demand`; the other methods have defaults. `fitting` searches with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import UnsupportedError
from ..language import Message
from ..results.cache import CacheEngine, EngineCache
from ..typed import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar
from ..values import dataclass

if TYPE_CHECKING:
    from ..results.fit import CardAnswer, Change, Gpu, Requirement
    from ..results.model import Report
    from ..results.serving import Reserve
    from ..structure.kv_cache import CacheFormat

RANKS = (2, 4, 8)  # suggested numbers of cards
SCHEMES = ("fp8", "awq-int4", "gptq-int4")


class AnyRequest(Protocol):
    """What every request has. context_tokens: as the engine defines a context; None: the model's limit."""

    @property
    def batch(self) -> int: ...

    @property
    def context_tokens(self) -> int | None: ...


Request = TypeVar("Request", bound=AnyRequest)


@dataclass(frozen=True, slots=True)
class Alternative(Generic[Request]):
    """The model, the request and the card after a change. kind: as in `Suggestion`.

    report: None if the engine cannot compute the change. required: known without the engine; a lower bound if `report` is given.
    """

    kind: Change
    change: Message
    report: Report | None
    request: Request
    gpu: Gpu
    required: Requirement | None = None


@dataclass(frozen=True, slots=True)
class Choice(Generic[Request]):
    """Related alternatives. shown: "all", all "until" one fits, or only the "first" that fits (else the last)."""

    shown: Literal["all", "until", "first"]
    alternatives: Iterable[Alternative[Request]]


class Demand(ABC):
    """What a request needs of a card, for any batch and context. If it is a formula, `requirement` suffices.

    most_context_tokens: the model's own limit, None if it has none. context_step: the largest context is searched among its
    multiples.
    """

    most_context_tokens: int | None
    context_step: int = 1

    @abstractmethod
    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        """The bytes needed, by term."""

    def total(self, batch: int, context_tokens: int) -> Requirement:
        """`requirement` with the same sums, of which the terms do not matter; override with something faster."""
        return self.requirement(batch, context_tokens)

    @property
    def quick(self) -> bool:
        """Whether an answer takes milliseconds, so that a whole curve is affordable."""
        return True

    def held_bytes(self, batch: int, context_tokens: int) -> int:
        """`requirement(...).held_bytes`; override with something faster."""
        return self.requirement(batch, context_tokens).held_bytes

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool | None:
        """Whether `held_bytes` is within `room_bytes`; override with something faster, as a search calls it many times.

        None if only a lower bound is known of this run, and that is.
        """
        return self.held_bytes(batch, context_tokens) <= room_bytes

    def least_bytes(self, batch: int, context_tokens: int) -> int:
        """A lower bound of `held_bytes` that costs nothing."""
        return 0

    def passes(self, batch: int, context_tokens: int, capacity_bytes: int) -> bool | None:
        """Whether a run that holds more would still finish within `capacity_bytes`; None if unknown."""
        return None

    def available_bytes(self, gpu: Gpu) -> int:
        """Bytes of a card that the engine may use, CUDA context included."""
        return gpu.room_bytes

    def cache_tokens(self, batch: int, context_tokens: int) -> int | None:
        """Tokens in the cache, over all sequences; None if unknown."""
        return batch * context_tokens

    def reserve(self, gpu: Gpu, batch: int, context_tokens: int) -> Reserve:
        """What the engine reserves of a card; by default the requirement by term."""
        from ..results.serving import Reserve, Reserved

        required = self.requirement(batch, context_tokens)
        terms = [(name, size_bytes, size_bytes) for name, size_bytes in required.terms]
        if required.context_high_bytes:
            terms.append(("context", required.context_low_bytes, required.context_high_bytes))
        return Reserve(
            terms=tuple(Reserved(name=name, least_bytes=least, most_bytes=most) for name, least, most in terms),
            cache_tokens=self.cache_tokens(batch, context_tokens),
        )


AnyDemand = TypeVar("AnyDemand", bound=Demand)


class Engine(ABC, Generic[Request, AnyDemand]):
    """One version of one engine. smaller: keys of the messages that suggest a shorter context and a smaller batch."""

    name: str
    version: str
    smaller = "suggest_sequence", "suggest_sequences"

    def reads(self, report: Report) -> Report:
        """The model as the engine reads it, for example with its own context limit."""
        return report

    @abstractmethod
    def demand(self, report: Report, request: Request, gpu: Gpu) -> AnyDemand:
        """What `request` needs of a card. QwenInspectError if the engine does not serve it or its needs are unknown."""

    def changes(self, demand: AnyDemand, report: Report, request: Request, gpu: Gpu) -> Iterator[Choice[Request]]:
        """Alternatives to a request that does not fit the card, the cheapest to the user first. demand: the request's."""
        yield self.larger_cards(report, request, gpu)

    def assumptions(
        self, report: Report, request: Request, answers: Sequence[tuple[AnyDemand, CardAnswer]]
    ) -> Iterator[Message]:
        """The assumptions behind the answers, as sentences."""
        yield from ()

    def caches(self, report: Report) -> Iterator[EngineCache]:
        """The cache of the report's workload in each format that is compared between engines."""
        yield from ()

    def larger_cards(self, report: Report, request: Request, gpu: Gpu) -> Choice[Request]:
        from ..loaders import gpus

        cards = gpus.larger(gpu)
        return Choice("first", (Alternative("gpu", card_message(card), report, request, card) for card in cards))


def card_message(gpu: Gpu) -> Message:
    return Message("suggest_gpu", name=gpu.name)


def schemes(gpu: Gpu) -> list[str]:
    """Quantisation schemes that a card supports."""
    return [scheme for scheme in SCHEMES if scheme != "fp8" or gpu.supports("fp8") is not False]


def cache_rows(
    engine: CacheEngine, formats: Iterable[CacheFormat], size_bytes: Callable[[CacheFormat], int]
) -> Iterator[EngineCache]:
    """The cache in each format; its size is None, with the reason, if `size_bytes` raises UnsupportedError."""
    for cache_format in formats:
        try:
            yield EngineCache(engine=engine, format=cache_format.name, size_bytes=size_bytes(cache_format))
        except UnsupportedError as error:
            yield EngineCache(engine=engine, format=cache_format.name, size_bytes=None, reason=error.message)
