"""Options of the images, videos and audio in a prompt."""

from __future__ import annotations

from ..errors import UsageError
from ..language import Language
from ..standard import re
from ..typed import TYPE_CHECKING
from . import flag, given, model
from .parser import Namespace, Parser
from .values import positive, reader

if TYPE_CHECKING:
    from collections.abc import Callable
    from fractions import Fraction

    from ..results.media import Media, Request, Typed, TypedAudio
    from ..results.model import Report

SIZE = r"(?ia)(\d{1,6})[x×](\d{1,6})"
VIDEO = r"(?ia)(\d{1,6})[x×](\d{1,6})[x×](\d{1,6}(?:\.\d{1,3})?)s(?:@(\d{1,4}(?:\.\d{1,3})?)fps)?"
SECONDS = r"(?ia)(\d{1,6})(?:\.(\d{1,3}))?s"
LIMITS = ("min_pixels", "max_pixels", "total_pixels", "fps")
MOST_MEDIA = 10_000


def declare(command: Parser, say: Language) -> None:
    add = command.add_argument
    add("--image", action="append", metavar="SIZE|FILE", help=say("help_image"))
    add("--video", action="append", type=reader(_video, "usage_video", say), metavar="SIZE", help=say("help_video"))
    add("--audio", action="append", metavar="SECONDS|FILE", help=say("help_audio"))
    for name in ("min_pixels", "max_pixels", "total_pixels"):
        add(flag(name), type=positive(say), metavar="PIXELS", help=say(f"help_{name}"))
    add("--fps", type=reader(_rate, "usage_fps", say), metavar="RATE", help=say("help_fps"))


def request_of(options: Namespace) -> Request | None:
    """The images, videos and audio that were typed; None if there are none. No limit may be set without an image or a video."""
    images, videos, audio = options.image or [], options.video or [], options.audio or []
    if not images and not videos:
        if limits := given(options, *LIMITS):
            raise UsageError("media_limit_alone", option=limits[0])
        if not audio:
            return None
    for name, found in (("total_pixels", videos), ("fps", videos)):
        if given(options, name) and not found:
            raise UsageError("option_needs", option=flag(name), other="--video")
    if len(images) + len(videos) + len(audio) > MOST_MEDIA:
        raise UsageError("media_many", most=MOST_MEDIA)
    from ..results.media import Request

    typed = (*map(_image, images), *videos)
    heard = tuple(map(_audio, audio))
    return Request(typed=typed, audio=heard, **{name: getattr(options, name) for name in LIMITS})


def counter_of(report: Report, options: Namespace) -> Callable[[Request], Media]:
    """What the model's processors make of a request. Raises the refusal of an architecture that is not known."""
    from ..loaders.processors import read_processors
    from ..media.counting import media_of
    from ..media.processors import PROCESSOR_FILES

    report.known  # noqa: B018
    files = read_processors(report.ref, PROCESSOR_FILES, model.access_of(options))
    return lambda request: media_of(report.config or {}, files, request)


def with_media(report: Report, request: Request | None, options: Namespace) -> Report:
    """The report with what its model's processors make of the request."""
    if request is None:
        return report
    from ..values import replace

    media = counter_of(report, options)(request)
    if options.context is not None and options.context < media.context_tokens:
        raise UsageError("media_beyond_context", tokens=media.context_tokens, context=options.context)
    return replace(report, media=media)


def _image(text: str) -> Typed:
    """A size, or the size of the image in a file."""
    from ..results.media import Typed

    if (match := re.fullmatch(SIZE, text)) is not None:
        width, height = int(match[1]), int(match[2])
        if not width or not height:
            raise UsageError("media_too_small", width=width, height=height)
    else:
        from ..media.headers import image_size

        width, height = image_size(text)
    return Typed(text=text, width=width, height=height)


def _audio(text: str) -> TypedAudio:
    """A number of seconds, or the length of the audio in a file."""
    from ..results.media import TypedAudio

    if (match := re.fullmatch(SECONDS, text)) is not None:
        milliseconds = 1000 * int(match[1]) + int((match[2] or "").ljust(3, "0"))
        if not milliseconds:
            raise UsageError("audio_short", text=text)
        return TypedAudio(text=text, samples=milliseconds, rate=1000)
    from ..media.durations import audio_length

    samples, rate = audio_length(text)
    return TypedAudio(text=text, samples=samples, rate=rate)


def _video(text: str) -> Typed:
    from fractions import Fraction

    from ..results.media import Typed

    match = re.fullmatch(VIDEO, text)
    if match is None or not int(match[1]) or not int(match[2]) or not Fraction(match[3]):
        raise ValueError
    fps = None if match[4] is None else _rate(match[4])
    return Typed(text=text, width=int(match[1]), height=int(match[2]), seconds=Fraction(match[3]), fps=fps)


def _rate(text: str) -> Fraction:
    """Frames per second."""
    from fractions import Fraction

    if re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text, re.ASCII) is None or not (rate := Fraction(text)):
        raise ValueError
    return rate
