"""Plot of the KV cache against the context, in three parts: growing with each token, bounded by a window, constant."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from ..language import Language
from ..results.cache import CacheReport
from ..results.model import Report
from ..units import count, size
from ..values import dataclass
from .plot import (
    HEADROOM,
    LINE,
    MARGIN,
    PLOT_HEIGHT,
    SMALL,
    SWATCH,
    TITLE_SIZE,
    WIDTH,
    Axes,
    axis_ticks,
    grid,
)
from .svg import element, fill, fitted, path, picture, rectangle, text, text_width, wrapped

NARROW_WIDTH = 380.0  # a phone's
LONGEST_CONTEXT = 131_072  # if the model states no limit and no context was requested
# (message key, colour) of each part, from bottom to top.
PARTS = (("cache_plot_fixed", "state"), ("cache_plot_window_part", "buffers"), ("cache_plot_growing", "cache"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCourse:
    """Cache bytes of `batch` sequences at selected contexts; every part is linear between them.

    bytes_: for each context (constant, layers with a window, other layers), in the order of PARTS.
    windows: the contexts at which a window is full.
    """

    batch: int
    contexts: tuple[int, ...]
    bytes_: tuple[tuple[int, int, int], ...]
    windows: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(map(sum, self.bytes_))


def cache_course(cache: CacheReport, *, batch: int, longest: int) -> CacheCourse:
    """The course from 0 to `longest` tokens. A window of w tokens caches w - 1 (see `CacheLayer.size_bytes`)."""
    windows = sorted(
        {layer.window_tokens - 1 for layer in cache.layers if layer.window_tokens and layer.bytes_per_token}
    )
    shown = tuple(tokens for tokens in windows if tokens < longest)
    contexts = (0, *(tokens for tokens in shown if tokens), longest)

    def parts(tokens: int) -> tuple[int, int, int]:
        sizes = [
            (layer.window_tokens is not None, layer.size_bytes(tokens) - layer.fixed_bytes) for layer in cache.layers
        ]
        windowed_bytes = sum(size_bytes for windowed, size_bytes in sizes if windowed)
        return (
            batch * cache.fixed_bytes,
            batch * windowed_bytes,
            batch * (sum(bytes_ for _, bytes_ in sizes) - windowed_bytes),
        )

    return CacheCourse(batch=batch, contexts=contexts, bytes_=tuple(map(parts, contexts)), windows=shown)


def cache_plot(report: Report, say: Language, *, width: float = WIDTH) -> str:
    """SVG up to the requested context, else the model's limit. Raises the refusal if the cache is unknown."""
    cache, batch = report.cache, report.workload.batch
    longest = report.context_tokens or LONGEST_CONTEXT
    course = cache_course(cache, batch=batch, longest=longest)
    title = say("cache_plot_title", name=report.ref.id)
    caption = say("comma").join((say("plot_batch", batch=count(batch)), cache.dtype))
    highest = HEADROOM * max(*course.totals, 1)
    ticks = axis_ticks(highest)
    left = MARGIN + max(text_width(label, SMALL) for _, label in ticks) + 8
    right = width - MARGIN
    titles = wrapped(title, right - MARGIN, TITLE_SIZE, bold=True)
    captions = wrapped(caption, right - MARGIN, SMALL)
    top = MARGIN + TITLE_SIZE + LINE * (len(titles) + len(captions) - 1) + 12
    axes = Axes(left=left, top=top, right=right, highest_bytes=highest, bands=())
    legend, end = _legend(course, cache, say, axes.bottom + 3 * LINE, right)
    baseline = MARGIN + TITLE_SIZE - 2
    return picture(
        width,
        end + MARGIN,
        *(text(line, MARGIN, baseline + LINE * index, size=TITLE_SIZE, bold=True) for index, line in enumerate(titles)),
        *(
            text(line, MARGIN, baseline + LINE * index, size=SMALL, colour="muted")
            for index, line in enumerate(captions, len(titles))
        ),
        rectangle(left, axes.top, right - left, PLOT_HEIGHT, "panel"),
        *grid(ticks, axes),
        *_areas(course, axes),
        *_windows(course, say, axes),
        *_contexts(course, say, axes),
        *_at_the_end(course, say, axes),
        *legend,
        title=f"{title}. {caption}",
    )


def _x(tokens: float, course: CacheCourse, axes: Axes) -> float:
    return axes.left + (axes.right - axes.left) * tokens / course.contexts[-1]


def _areas(course: CacheCourse, axes: Axes) -> Iterator[str]:
    """One closed outline per part, down to the axis; the top part first, so that lower parts cover it."""
    sums = [tuple(accumulate(parts)) for parts in course.bytes_]
    xs = [_x(tokens, course, axes) for tokens in course.contexts]
    for index in reversed(range(len(PARTS))):
        if not any(parts[index] for parts in course.bytes_):
            continue
        points = [f"{x:.1f} {axes.y(values[index]):.1f}" for x, values in zip(xs, sums, strict=True)]
        outline = f"M{xs[0]:.1f} {axes.bottom:.1f}L{'L'.join(points)}V{axes.bottom:.1f}Z"
        yield element("path", d=outline, **fill(PARTS[index][1]))


def _windows(course: CacheCourse, say: Language, axes: Axes) -> Iterator[str]:
    """Dashed lines where windows are full; only the first has a label, for lack of room."""
    for tokens in course.windows:
        x = _x(tokens, course, axes)
        yield path(f"M{x:.1f} {axes.top:.1f}V{axes.bottom:.1f}", "ink", 1, stroke_dasharray="2 3")
    if course.windows:
        x = _x(course.windows[0], course, axes)
        label = fitted(say("cache_plot_window", tokens=course.windows[0]), axes.right - axes.left - 16, SMALL)
        at = min(x + 6, axes.right - text_width(label, SMALL) - 6)
        yield text(label, at, axes.top + LINE, size=SMALL)


def _contexts(course: CacheCourse, say: Language, axes: Axes) -> Iterator[str]:
    longest = course.contexts[-1]
    parts = 4 if axes.right - axes.left > 6 * text_width(count(longest), SMALL) else 2
    for tokens in dict.fromkeys(longest * part // parts for part in range(parts + 1)):
        x = _x(tokens, course, axes)
        anchor = "start" if tokens == 0 else "end" if tokens == longest else "middle"
        yield path(f"M{x:.1f} {axes.bottom:.1f}v4", "ink")
        if tokens in (0, longest) or longest >= 8:
            yield text(count(tokens), x, axes.bottom + LINE - 2, anchor=anchor, size=SMALL, colour="muted")
    name = fitted(say("cache_plot_axis"), axes.right - axes.left, SMALL)
    yield text(name, axes.right, axes.bottom + 2 * LINE - 4, anchor="end", size=SMALL, colour="muted")


def _at_the_end(course: CacheCourse, say: Language, axes: Axes) -> Iterator[str]:
    total = course.totals[-1]
    y = axes.y(total)
    yield element("circle", cx=axes.right, cy=y, r=4, **fill("ink"))
    yield text(say("cache_plot_total", size=size(total)), axes.right - 8, y - 8, anchor="end", bold=True)


def _legend(
    course: CacheCourse, cache: CacheReport, say: Language, top: float, right: float
) -> tuple[list[str], float]:
    """(marks, y of the last line): a line per part of the cache that is not zero, with bytes per token and in total."""
    growing = sum(layer.bytes_per_token for layer in cache.layers if layer.window_tokens is None)
    inside = sum(layer.bytes_per_token for layer in cache.layers if layer.window_tokens is not None)
    per_token = (0, course.batch * inside, course.batch * growing)
    marks: list[str] = []
    y = top
    for index, (part, colour) in enumerate(PARTS):
        at_end = course.bytes_[-1][index]
        if not at_end:
            continue
        label = say(part, size=size(at_end), bytes=per_token[index])
        marks.append(rectangle(MARGIN, y - SWATCH + 2, SWATCH, SWATCH, colour))
        for line in wrapped(label, right - MARGIN - SWATCH - 6, SMALL):
            marks.append(text(line, MARGIN + SWATCH + 6, y, size=SMALL))
            y += LINE
    return marks, y - LINE
