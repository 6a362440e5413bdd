"""What fits a card, the requirement by term, and changes that would make it fit. `None` means unknown, never 0."""

from __future__ import annotations

from collections.abc import Sequence

from ..typed import TYPE_CHECKING, Literal
from ..values import dataclass
from .gpu import Gpu as Gpu

if TYPE_CHECKING:
    from ..errors import QwenInspectError
    from ..language import Message
    from .media import Typed, TypedAudio
    from .memory import Run
    from .model import Report

Bound = Literal["memory", "model", "search"]
Change = Literal[
    "context",
    "batch",
    "cache",
    "weights",
    "checkpointing",
    "lora",
    "optimizer",
    "tensor_parallel",
    "fsdp",
    "layers",
    "gpu",
    "max_pixels",
    "total_pixels",
    "fps",
    "media",
]
MediaLimit = Literal["square", "image", "images", "video", "audio"]
MediaBound = Literal["memory", "context", "processor", "search"]

Verdict = Literal["fits", "may_fit", "too_small", "unknown"]


def verdict(available_bytes: int, required: tuple[int, int | None]) -> Verdict:
    """What a requirement between two ends means for a card: it "fits" only if the high end does.

    required: (low, high); high is None if only a lower bound is known, and then nothing "fits".
    """
    low, high = required
    if low > available_bytes:
        return "too_small"
    if high is None:
        return "unknown"
    return "fits" if high <= available_bytes else "may_fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What a run needs of a card, in bytes. terms: of the allocator or engine; they add up to `held_bytes`.

    context_low_bytes, context_high_bytes: outside the allocator; equal if measured. whole: False if an unknown amount is missing,
    so that the sum is a lower bound. more_bytes: the most that may be missing, if known.
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
        """An upper bound of the requirement; None if there is none."""
        more = 0 if self.whole else self.more_bytes
        return None if more is None else self.high_bytes + more


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest batch or context that fits: it does, and one more does not. 0 if not even one does.

    value: None if only a lower bound of the requirement is known; `at_most` is then an upper bound of the answer, None if
    nothing bounds it.
    bound: what stops a larger one: "memory", "model" (its own limit) or "search" (no larger one was tried).
    """

    value: int | None
    at_most: int | None
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Answers for one end of the CUDA context's range. fits: None if that is uncertain."""

    required_bytes: int
    fits: bool | None
    margin_bytes: int
    context: Largest
    batch: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The largest batch for a context, with the larger CUDA context."""

    context_tokens: int
    batch: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReach:
    """What of images, videos or audio fits, with the larger CUDA context. kind: the largest "square" image, the largest
    "image" of the requested one's ratio, the most "images" of it, the longest "video" or the longest "audio".

    count: how many; 0 if not even the smallest fits, and then the rest is None. tokens: of the context. bound: what stops more:
    "memory", the "context", the "processor" (it makes no more tokens of anything larger) or "search" (no more were tried).
    """

    kind: MediaLimit
    count: int
    medium: Typed | TypedAudio | None
    tokens: int | None
    required_bytes: int | None
    bound: MediaBound


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change and its requirement, with the larger CUDA context. Not `whole`: a lower bound, and `fits` is False or None.

    bounded: not `whole`, but even the upper bound of the requirement fits.
    kind: what is changed; "media": the number of images and videos.
    """

    kind: Change
    change: Message
    required_bytes: int
    fits: bool | None
    whole: bool = True
    bounded: bool = False

    @property
    def likely(self) -> bool | None:
        """As in `CardAnswer`."""
        return True if self.bounded else self.fits


@dataclass(frozen=True, slots=True, kw_only=True)
class CardAnswer:
    """The answer for one card. high, low: with the larger and the smaller end of the CUDA context's range.

    calibrated: whether the context was measured. passes_by_release: whether a run that does not fit would still finish, because
    the allocator releases cached segments when it runs out; None if it fits or that is unknown. cache_tokens: at the largest
    context. notices: memory in use on the card, and number formats that it does not support. media: of a run with images or
    videos, whose contexts and batches are not searched.
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
    media: tuple[MediaReach, ...] = ()

    @property
    def likely(self) -> bool | None:
        """`high.fits`, or True if that is None but the upper bound of the requirement fits."""
        most = self.requirement.most_bytes
        if self.high.fits is None and most is not None and most <= self.available_bytes:
            return True
        return self.high.fits


def deciding(verdicts: Sequence[bool | None]) -> int:
    """The index of the card that decides for all: the first that does not fit, else the first that is unknown."""
    return min(range(len(verdicts)), key=lambda index: (False, None, True).index(verdicts[index]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """A model on one or more cards, each separately; it fits if it fits every card. refusal: why only a lower bound is known,
    if so.
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
        # Among uncertain cards, the first that is not even likely to fit.
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
    """Whether a run with this context fits, with the larger CUDA context. required_bytes: a lower bound if `fits` is None.

    Both are None for a context past the model's own limit.
    """

    context_tokens: int
    required_bytes: int | None
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReach:
    """Which contexts of a model fit one card, compared with other models. largest: the largest context at the run's batch."""

    gpu: Gpu
    available_bytes: int
    contexts: tuple[ContextFit, ...]
    largest: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class CardLimits:
    """How far a run goes on a card, with the larger CUDA context: the largest context at its batch, and batch at its context."""

    gpu: Gpu
    available_bytes: int
    context: Largest
    batch: Largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What a change makes of a term of a run's memory: the cache at the run's end, or the weights."""

    kind: Change
    change: Message
    before_bytes: int
    after_bytes: int

    @property
    def saved_bytes(self) -> int:
        return self.before_bytes - self.after_bytes
