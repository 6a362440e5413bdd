"""What fits a card, what it takes by term, and what to change where it does not. `None` means unknown, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..errors import QwenInspectError
    from ..language import Message
    from .memory import Run
    from .model import Report

Origin = Literal["usable", "reported", "nominal", "given", "here"]
Bound = Literal["memory", "model", "search"]
Change = Literal[
    "context", "batch", "cache", "weights", "checkpointing", "lora", "tensor_parallel", "fsdp", "layers", "gpu"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published figure as it was printed, and where."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card. memory_bytes: the nominal size, or what the user or the driver named.

    reported_bytes: the total of nvidia-smi. usable_bytes: the total that CUDA tells a process (torch's `total_memory`), which is
    less. free_bytes: what is free now, of a card of this machine. compute_capability: (major, minor). kind: "datacentre",
    "workstation", "consumer", "given" (a size), "here" (NVML). device_names: as torch names it. figures: what the table has of
    it, by name, with the sources.
    """

    name: str
    kind: Literal["datacentre", "workstation", "consumer", "given", "here"]
    memory_bytes: int
    reported_bytes: int | None = None
    usable_bytes: int | None = None
    free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    aliases: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()
    figures: tuple[tuple[str, Published], ...] = ()

    @property
    def available_bytes(self) -> int:
        """The smallest that is known: what a process can have of it."""
        return self.usable_bytes or self.reported_bytes or self.memory_bytes

    @property
    def room_bytes(self) -> int:
        """The same less what other processes hold of it now."""
        return self.available_bytes if self.free_bytes is None else min(self.available_bytes, self.free_bytes)

    @property
    def origin(self) -> Origin:
        """Which of them that is: "usable", "reported" or "nominal"; "given" by the user, "here" by the driver."""
        if self.kind in ("given", "here"):
            return self.kind
        return "usable" if self.usable_bytes else "reported" if self.reported_bytes else "nominal"

    def supports(self, dtype: str) -> bool | None:
        """Whether its tensor cores compute in "bfloat16" (from 8.0 on) or "fp8" (from 8.9 on).

        Source: NVIDIA, parallel thread execution ISA 8.7, mma: .bf16 needs sm_80, .e4m3 needs sm_89
        """
        first = {"bfloat16": (8, 0), "fp8": (8, 9)}.get(dtype)
        return None if self.compute_capability is None or first is None else self.compute_capability >= first


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What a run takes of a card, in bytes. terms: of allocator or engine; they add up to `held_bytes`.

    context_low_bytes, context_high_bytes: outside, two equal figures where it was measured. whole: False where more is needed
    that is not known, so that the sum is a lower bound. more_bytes: what may come on top of it at most, where that is known.
    """

    terms: tuple[tuple[str, int], ...]
    context_low_bytes: int
    context_high_bytes: int
    whole: bool = True
    more_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self.terms)

    @property
    def low_bytes(self) -> int:
        return self.held_bytes + self.context_low_bytes

    @property
    def high_bytes(self) -> int:
        return self.held_bytes + self.context_high_bytes

    @property
    def most_bytes(self) -> int | None:
        """What is required at most; None where nothing bounds it."""
        more = 0 if self.whole else self.more_bytes
        return None if more is None else self.high_bytes + more


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest batch or context that fits: it does, and one more does not. 0 where not even one does.

    value: None where only a lower bound of what is needed is known; `at_most` is then what certainly is the most, None where
    nothing that is known ends the search.
    bound: what one more is too much for: "memory", "model" (its own limit), "search" (no larger one was looked for).
    """

    value: int | None
    at_most: int | None
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Answers for one end of the range of the context's size. fits: None where it is not certain that it does."""

    required_bytes: int
    fits: bool | None
    margin_bytes: int
    context: Largest
    batch: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The largest batch for a context, at the cautious end of the range."""

    context_tokens: int
    batch: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change and what is needed then, at the cautious end: at least, where not `whole`, and `fits` is then False or None.

    bounded: whether even the most that may be needed has room, although less is certain.
    kind: "context", "batch", "cache", "weights", "checkpointing", "lora", "tensor_parallel", "fsdp" or "gpu".
    """

    kind: Change
    change: Message
    required_bytes: int
    fits: bool | None
    whole: bool = True
    bounded: bool = False

    @property
    def likely(self) -> bool | None:
        """As of a `CardAnswer`."""
        return True if self.bounded else self.fits


@dataclass(frozen=True, slots=True, kw_only=True)
class CardAnswer:
    """What one card gives. high, low: with the context at the larger and at the smaller end of its range.

    passes_by_release: whether a run that does not fit would end all the same, because the allocator gives cached segments back
    where it finds no room; None where nobody needs to know, or it is not known. cache_tokens: at the largest context.
    notices: what of the card is in use, and what it does otherwise than is counted.
    """

    gpu: Gpu
    available_bytes: int
    requirement: Requirement
    high: Ends
    low: Ends
    cache_tokens: int | None
    calibrated: bool
    passes_by_release: bool | None
    curve: tuple[CurvePoint, ...]
    suggestions: tuple[Suggestion, ...] = ()
    notices: tuple[Message, ...] = ()

    @property
    def likely(self) -> bool | None:
        """Whether it fits as far as bounds tell: where even the most does, although that is not certain; None between them."""
        most = self.requirement.most_bytes
        if self.high.fits is None and most is not None and most <= self.available_bytes:
            return True
        return self.high.fits


def deciding(verdicts: Sequence[bool | None]) -> int:
    """Which of several cards decides for all: the first that has not the room, else the first of which it is not known."""
    return min(range(len(verdicts)), key=lambda index: (False, None, True).index(verdicts[index]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """A model on one or more cards, each for itself: it fits where it fits every one. refusal: why only a lower bound is known,
    where that is so.
    """

    report: Report
    run: Run
    engine: str
    cards: tuple[CardAnswer, ...]
    assumptions: tuple[Message, ...]
    refusal: QwenInspectError | None = None

    @property
    def deciding(self) -> int:
        """The index of the card that decides for all."""
        fits = [card.high.fits for card in self.cards]
        index = deciding(fits)
        # Of several of which it is not certain, the first of which it is not even likely.
        unlikely = [at for at, card in enumerate(self.cards) if card.likely is None]
        return unlikely[0] if fits[index] is None and unlikely else index

    @property
    def fits(self) -> bool | None:
        return self.cards[self.deciding].high.fits

    @property
    def likely(self) -> bool | None:
        return self.cards[self.deciding].likely


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFit:
    """Whether a run with this context fits, at the cautious end. required_bytes: at least, where `fits` is None.

    Both are None for a context past the model's own limit.
    """

    context_tokens: int
    required_bytes: int | None
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReach:
    """How far a model goes on one card, for contexts side by side with other models'; `largest` at the run's batch."""

    gpu: Gpu
    available_bytes: int
    contexts: tuple[ContextFit, ...]
    largest: Largest
