"""The largest image, the most images, the longest video and audio that fit a card, and what of them to make smaller.

Candidates are traced. Memory is nearly linear in the tokens of images, so the next one to trace is where a line through the two
nearest meets the card's room: a few traces suffice. As for contexts, the answer fits and the next one does not; larger ones may
fit again, because memory that is reserved does not grow strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from ..bisection import largest
from ..engines.interface import Engine
from ..engines.transformers.demand import TransformersDemand
from ..errors import UsageError
from ..language import Message
from ..predicting.predict import predict
from ..progress import purpose
from ..results.fit import CardAnswer, Change, Ends, Gpu, Largest, MediaBound, MediaReach, Requirement, Suggestion
from ..results.media import Media, Request, Typed, TypedAudio
from ..results.memory import Run
from ..results.model import Report
from ..values import dataclass, replace
from . import suggestions

SIDE_STEP = 32  # pixels; of Qwen3-VL's tower, and near that of the others
LONGEST_SIDE = 16_384  # pixels
MOST_IMAGES = 10_000
LONGEST = 4 * 3600  # seconds, of a video or audio
MOST_GROWTH = 4  # times the tokens traced before
MOST_CROSSINGS = 6  # of lines before it halves
FPS_STEPS = 10  # frames per second are tried in tenths
SECONDS = (*range(1, 600), *range(600, LONGEST + 1, 60))
NOT_SEARCHED = Largest(value=None, at_most=None, bound="search")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The images, videos and audio of a run to fit. counted: by the rules of the model's processors. text_tokens: beside them, if
    the whole prompt was not given.
    """

    request: Request
    counted: Callable[[Request], Media]
    prompt_tokens: int | None
    text_tokens: int

    def prompt_of(self, media: Media) -> int:
        return self.prompt_tokens or self.text_tokens + media.context_tokens


@dataclass(frozen=True, slots=True)
class Candidates:
    """Requests numbered from 1 to `most`, whose tokens grow with the number. all: beyond `most` they do not grow."""

    request_of: Callable[[int], Request]
    most: int
    all: bool = False


def answers(
    engine: Engine[Run, TransformersDemand], report: Report, run: Run, cards: Sequence[Gpu], seen: Seen | None
) -> Iterator[tuple[TransformersDemand, CardAnswer]]:
    """For each card the demand and what fits; contexts and batches are not searched, nor images without `seen`."""
    for gpu in cards:
        demand = engine.demand(report, run, gpu)
        required = demand.requirement(run.batch, run.prompt_tokens)
        answer = _answer(gpu, demand.available_bytes(gpu), required)
        if required.whole and seen is not None:
            search = MediaSearch(demand, seen, answer.available_bytes)
            answer = replace(answer, media=tuple(search.reaches()))
            if answer.high.fits is False:
                further = suggestions.changes(engine, demand, report, run, gpu)
                answer = replace(answer, suggestions=(*search.smaller(), *further))
        yield demand, answer


def unsearched(
    engine: Engine[Run, TransformersDemand], report: Report, run: Run, cards: Sequence[Gpu]
) -> Iterator[tuple[TransformersDemand, CardAnswer]]:
    """For each card the demand and whether the run fits, with changes that would make it fit; nothing is searched."""
    for gpu in cards:
        demand = engine.demand(report, run, gpu)
        required = demand.requirement(run.batch, run.prompt_tokens)
        answer = _answer(gpu, demand.available_bytes(gpu), required)
        if answer.high.fits is False:
            answer = replace(answer, suggestions=tuple(suggestions.changes(engine, demand, report, run, gpu)))
        yield demand, answer


def _answer(gpu: Gpu, available: int, required: Requirement) -> CardAnswer:
    high, low = (_ends(available, required, size) for size in (required.high_bytes, required.low_bytes))
    return CardAnswer(
        gpu=gpu,
        available_bytes=available,
        requirement=required,
        high=high,
        low=low,
        cache_tokens=None,
        calibrated=required.context_low_bytes == required.context_high_bytes,
        passes_by_release=None,
        curve=(),
    )


def _ends(available: int, required: Requirement, required_bytes: int) -> Ends:
    enough = required_bytes <= available
    return Ends(
        required_bytes=required_bytes,
        fits=enough if required.whole or not enough else None,
        margin_bytes=available - required_bytes,
        context=NOT_SEARCHED,
        batch=NOT_SEARCHED,
    )


class MediaSearch:
    """Searches what images and videos fit a card, with the larger CUDA context."""

    def __init__(self, demand: TransformersDemand, seen: Seen, available_bytes: int) -> None:
        self._demand, self._seen, self._available_bytes = demand, seen, available_bytes
        self._required: dict[tuple[object, ...], int] = {}  # by shapes
        self._counted: dict[Request, Media] = {}
        self._points: dict[int, int] = {}  # the same by tokens
        self._required_bytes(self._media(seen.request))  # traced already
        limit = demand.most_context_tokens
        self._most_tokens = seen.prompt_tokens or (None if limit is None else limit - seen.text_tokens)

    def reaches(self) -> Iterator[MediaReach]:
        """The largest square image, the largest of the first one's ratio, the most of it; the longest video and audio."""
        typed = self._seen.request.typed
        image = next((item for item in typed if item.kind == "image"), None)
        video = next((item for item in typed if item.kind == "video"), None)
        if image is not None:
            yield self._reach("square", self._sides(replace(image, width=1, height=1)))
            if image.width != image.height:
                yield self._reach("image", self._sides(image))
            yield self._reach("images", self._numbers(image))
        if video is not None:
            yield self._reach("video", self._lengths(video))
        if self._seen.request.audio:
            yield self._reach("audio", self._durations())

    def smaller(self) -> Iterator[Suggestion]:
        """Fewer pixels, fewer frames of a second, fewer images and videos: of each the most that fits."""
        request, items = self._seen.request, self._media(self._seen.request).items
        if not items:
            return
        pixels = [(item.frames or 1) * item.shape.height * item.shape.width for item in items]

        def within(number: int) -> Request:
            return replace(request, max_pixels=number * SIDE_STEP**2)

        def within_all(number: int) -> Request:
            return replace(request, total_pixels=number * SIDE_STEP**2)

        most = max(pixels) // SIDE_STEP**2
        yield from self._smaller("max_pixels", Candidates(within, most), SIDE_STEP**2)
        if any(item.frames for item in items):
            yield from self._smaller("total_pixels", Candidates(within_all, most), SIDE_STEP**2)
            rates = Candidates(lambda number: replace(request, fps=Fraction(number, FPS_STEPS)), 2 * FPS_STEPS)
            yield from self._smaller("fps", rates, Fraction(1, FPS_STEPS))
        if len(items) > 1:
            fewer = Candidates(lambda number: replace(request, typed=request.typed[:number]), len(items) - 1)
            yield from self._smaller("media", fewer, 1)

    def _smaller(self, kind: Change, candidates: Candidates, step: int | Fraction) -> Iterator[Suggestion]:
        with purpose(Message(f"purpose_media_{kind}")):
            number, _ = self._largest(candidates)
        if number:
            media = self._media(candidates.request_of(number))
            value = number * step
            yield Suggestion(
                kind=kind,
                change=Message(f"suggest_{kind}", value=value if isinstance(value, int) else float(value)),
                required_bytes=self._required_bytes(media),
                fits=True,
            )

    def _asked(self, *typed: Typed) -> Request:
        return replace(self._seen.request, typed=typed, audio=())

    def _sides(self, image: Typed) -> Candidates:
        """Images of its ratio by their longer side, up to the first of as many tokens as any."""
        longer = max(image.width, image.height)

        def sized(number: int) -> Request:
            width, height = (max(1, round(number * SIDE_STEP * side / longer)) for side in (image.width, image.height))
            return self._asked(Typed(text=f"{width}x{height}", width=width, height=height))

        return self._growing(sized, range(1, LONGEST_SIDE // SIDE_STEP + 1))

    def _numbers(self, image: Typed) -> Candidates:
        """So many of it, and not many more than the context has room for."""
        each = self._media(self._asked(image)).context_tokens
        most = MOST_IMAGES if self._most_tokens is None else min(MOST_IMAGES, self._most_tokens // each + 1)
        return Candidates(lambda number: self._asked(*[image] * number), most)

    def _lengths(self, video: Typed) -> Candidates:
        """Videos of its size and rate by their seconds."""

        def lasting(number: int) -> Request:
            return self._asked(replace(video, seconds=Fraction(number)))

        return self._growing(lasting, SECONDS)

    def _durations(self) -> Candidates:
        """One audio by its seconds."""

        def lasting(number: int) -> Request:
            return replace(self._asked(), audio=(TypedAudio(text=f"{number}s", samples=number, rate=1),))

        return self._growing(lasting, SECONDS)

    def _growing(self, request_of: Callable[[int], Request], numbers: Sequence[int]) -> Candidates:
        tokens = {number: self._tokens(request_of(number)) or 0 for number in numbers}
        return Candidates(request_of, max(numbers, key=lambda number: tokens[number]), all=True)

    def _tokens(self, request: Request) -> int | None:
        """None for a request that the processor refuses."""
        try:
            return self._media(request).context_tokens
        except UsageError:
            return None

    def _media(self, request: Request) -> Media:
        if request not in self._counted:
            self._counted[request] = self._seen.counted(request)
        return self._counted[request]

    def _reach(self, kind: str, candidates: Candidates) -> MediaReach:
        with purpose(Message(f"purpose_media_{kind}")):
            number, bound = self._largest(candidates)
        media = None if not number else self._media(candidates.request_of(number))
        return MediaReach(
            kind=kind,  # type: ignore[arg-type]  # one of its names
            count=0 if media is None else len(media.items) + len(media.clips),
            medium=None if media is None else media.items[0].typed if media.items else media.clips[0].typed,
            tokens=None if media is None else media.context_tokens,
            required_bytes=None if media is None else self._required_bytes(media),
            bound=bound,
        )

    def _largest(self, candidates: Candidates) -> tuple[int, MediaBound]:
        """The largest candidate that fits while the next does not, and what bounds it; 0 if not even the first fits."""

        def in_context(number: int) -> bool:
            tokens = self._tokens(candidates.request_of(number))
            return tokens is not None and (self._most_tokens is None or tokens <= self._most_tokens)

        first = next(
            (number for number in range(1, candidates.most + 1) if self._tokens(candidates.request_of(number))), 0
        )
        if not first or not in_context(first):
            return 0, "context"
        most = _last(in_context, first, candidates.most)
        within = _last(lambda number: self._least_bytes(candidates, number) <= self._available_bytes, first, most)
        number = self._meeting(candidates, first, within)
        if number < most:
            return number, "memory"
        return number, "context" if most < candidates.most else "processor" if candidates.all else "search"

    def _least_bytes(self, candidates: Candidates, number: int) -> int:
        """A lower bound that costs no trace: weights, the cache, the pixels and the spectrograms."""
        media = self._media(candidates.request_of(number))
        batch = self._demand.run.batch
        held = self._demand.least_bytes(batch, self._seen.prompt_of(media)) + batch * media.input_bytes
        return held + self._demand.context_bytes[1]

    def _meeting(self, candidates: Candidates, first: int, last: int) -> int:
        """The largest that fits, between a candidate that does and one that does not, which come nearer to each other."""
        fitting, failing = first - 1, last + 1
        tries = 0
        while failing - fitting > 1:
            guess = (
                (fitting + failing) // 2 if tries >= MOST_CROSSINGS else self._crossing(candidates, fitting, failing)
            )
            tries += 1
            if self._required_bytes(self._media(candidates.request_of(guess))) <= self._available_bytes:
                fitting = guess
            else:
                failing = guess
        return fitting if fitting >= first else 0

    def _crossing(self, candidates: Candidates, fitting: int, failing: int) -> int:
        """Where a line meets the room: through the traced points next to it on both sides, else through those furthest apart."""
        room, points = self._available_bytes, self._points
        if len(points) == 1:  # and a lower bound
            first = self._tokens(candidates.request_of(fitting + 1)) or 0
            points = {first: self._least_bytes(candidates, fitting + 1), **points}
        below = sorted((tokens for tokens in points if points[tokens] <= room), reverse=True)
        above = sorted(tokens for tokens in points if points[tokens] > room)
        all_points = [*below, *above]
        near = [below[0], above[0]] if below and above else [all_points[0], all_points[-1]]
        rise = points[near[1]] - points[near[0]]
        wanted = near[0] + Fraction((room - points[near[0]]) * (near[1] - near[0]), rise) if rise else None
        if not above:  # a trace far above the room can take minutes
            most = Fraction(MOST_GROWTH * below[0])
            wanted = most if wanted is None else min(wanted, most)
        if wanted is None:
            return (fitting + failing) // 2
        within = _last(
            lambda number: (self._tokens(candidates.request_of(number)) or 0) <= wanted, fitting + 1, failing - 1
        )
        return min(failing - 1, max(fitting + 1, within))

    def _required_bytes(self, media: Media) -> int:
        seen = ((item.kind, item.shape, item.frames) for item in media.items)
        key = (*seen, *((clip.frames, clip.valid, clip.tokens) for clip in media.clips))
        if key not in self._required:
            prompt_tokens = self._seen.prompt_of(media)
            run = replace(self._demand.run, media=media, prompt_tokens=prompt_tokens)
            report = replace(self._demand.report, media=media)
            required_bytes = self._demand.requirement_of(predict(report, run).predicted).high_bytes
            self._required[key] = self._points[media.context_tokens] = required_bytes
        return self._required[key]


def _last(holds: Callable[[int], bool], first: int, most: int) -> int:
    """The last number from `first` to `most` for which it holds; `first` - 1 if there is none."""
    return first - 1 + largest(lambda step: holds(first - 1 + step), most - first + 1)
