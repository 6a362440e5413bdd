"""Plot of memory over a run: allocated bytes stacked by term, reserved bytes, and the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from ..language import Language
from ..results.course import Course
from ..results.memory import MemoryReport
from ..units import GIB, KIB, MIB, count, size
from ..values import dataclass
from .document.common import size_range
from .svg import element, fill, fitted, path, picture, rectangle, text, text_width

WIDTH = 800.0
MARGIN = 16.0
RIGHT = WIDTH - MARGIN
PLOT_HEIGHT = 300.0
BAND_HEIGHT = 24.0
TITLE_SIZE, SMALL = 16, 12
LINE = 20.0
SWATCH = 12.0
HEADROOM = 1.12  # above the highest line, for the peak's label
MOST_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The plot's coordinates: bytes grow upwards from `bottom`. bands: (left, right) edge of each stage."""

    left: float
    top: float
    highest_bytes: float
    bands: tuple[tuple[float, float], ...]
    right: float = RIGHT

    @property
    def bottom(self) -> float:
        return self.top + PLOT_HEIGHT

    def y(self, size_bytes: float) -> float:
        return self.bottom - PLOT_HEIGHT * size_bytes / self.highest_bytes

    def x(self, course: Course) -> list[float]:
        """The x coordinate of each point; each stage is scaled to its band."""
        positions = []
        for (_, first, end), (left, right) in zip(course.spans, self.bands, strict=True):
            begin = course.events[first]
            after = course.events[end] if end < len(course.events) else course.events[-1] + 1
            positions += [
                left + (right - left) * (event - begin) / (after - begin) for event in course.events[first:end]
            ]
        return positions


def memory_plot(memory: MemoryReport, course: Course, say: Language, *, measured: Course | None = None) -> str:
    """SVG of a predicted run's memory, with the measured course drawn over it if given."""
    run, report = memory.run, memory.report
    details = [
        say(f"mode_{run.mode}"),
        say("plot_batch", batch=count(run.batch)),
        say("plot_sequence" if run.mode == "train" else "plot_prompt", tokens=count(run.prompt_tokens)),
        *([say("plot_new", tokens=count(run.new_tokens))] if run.mode == "generate" else []),
        str(report.spec.dtype),
        run.attention,
        *([say("padded")] if run.padded else []),
    ]
    required = memory.predicted.required_bytes
    return timeline_plot(
        course,
        say,
        title=say("plot_title", name=report.ref.id),
        caption=say("comma").join(details),
        headline="" if required is None else say("plot_required", size=size_range(*required, say)),
        measured=measured,
    )


def timeline_plot(
    course: Course, say: Language, *, title: str, caption: str, headline: str = "", measured: Course | None = None
) -> str:
    """SVG, 800 wide: allocated bytes as areas by term, reserved ones as a line, a band for each stage, the peak's value.

    headline: text at the right of the caption. measured: another course of the same stages, drawn over it as lines.
    """
    courses = (course, *([measured] if measured else []))
    highest = HEADROOM * max(max(*drawn.totals, *drawn.reserved, 1) for drawn in courses)
    ticks = axis_ticks(highest)
    left = MARGIN + max(text_width(label, SMALL) for _, label in ticks) + 8
    axes = Axes(
        left=left,
        top=MARGIN + TITLE_SIZE + LINE + 12 + BAND_HEIGHT,
        highest_bytes=highest,
        bands=_bands(course, say, left),
    )
    below = axes.bottom + LINE
    legend, height = _legend(course, measured, say, below + LINE)
    return picture(
        WIDTH,
        height + MARGIN,
        *heading(title, caption, headline),
        *_stages(course, say, axes),
        *grid(ticks, axes),
        *_areas(course, axes),
        *_lines(course, measured, axes),
        *_peak(course, say, axes),
        text(
            fitted(say("plot_events"), RIGHT - left, SMALL), RIGHT, below - 2, anchor="end", size=SMALL, colour="muted"
        ),
        *legend,
        title=". ".join(filter(None, (title, caption, headline))),
    )


def axis_ticks(highest_bytes: float) -> list[tuple[int, str]]:
    """Round values from 0 to `highest_bytes`, at most MOST_TICKS, in the unit that suits them: (bytes, "1.5 GiB")."""
    unit_bytes, unit = next(
        (
            (size_bytes, name)
            for size_bytes, name in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
            if highest_bytes > size_bytes
        ),
        (1, "B"),
    )
    # Thousandths of the unit, so that steps stay whole numbers: 1, 2 and 5 times a power of ten.
    steps = (digit * 10**power for power in range(24) for digit in (1, 2, 5))
    step = next(
        step for step in steps if highest_bytes * 1000 / unit_bytes / step < MOST_TICKS and step * unit_bytes >= 1000
    )
    values = range(0, int(highest_bytes * 1000 / unit_bytes) + 1, step)
    return [
        (value * unit_bytes // 1000, f"{value / 1000:,.3f}".rstrip("0").rstrip(".") + f" {unit}") for value in values
    ]


def heading(title: str, caption: str, headline: str = "") -> Iterator[str]:
    """The title, and below it the caption, shortened to leave room for the headline at its right."""
    room = RIGHT - MARGIN
    baseline = MARGIN + TITLE_SIZE - 2
    yield text(fitted(title, room, TITLE_SIZE, bold=True), MARGIN, baseline, size=TITLE_SIZE, bold=True)
    if headline:
        yield text(headline, RIGHT, baseline + LINE, anchor="end", size=SMALL, bold=True)
        room -= text_width(headline, SMALL, bold=True) + 16
    yield text(fitted(caption, room, SMALL), MARGIN, baseline + LINE, size=SMALL, colour="muted")


def _bands(course: Course, say: Language, left: float) -> tuple[tuple[float, float], ...]:
    """(left, right) of each stage: at least as wide as its name; spare room is shared by number of events."""
    room = RIGHT - left
    spans = course.spans
    names = [min(text_width(say(f"stage_{name}"), SMALL) + 16, room / len(spans)) for name, _, _ in spans]
    bounds = [course.events[first] for _, first, _ in spans] + [course.events[-1] + 1]
    spare = (room - sum(names)) / (bounds[-1] - bounds[0])
    widths = [name + spare * (after - begin) for name, (begin, after) in zip(names, pairwise(bounds), strict=True)]
    return tuple(pairwise(accumulate(widths, initial=left)))


def _stages(course: Course, say: Language, axes: Axes) -> Iterator[str]:
    for index, ((name, _, _), (left, right)) in enumerate(zip(course.spans, axes.bands, strict=True)):
        colour = "panel" if index % 2 == 0 else "block"
        yield rectangle(left, axes.top - BAND_HEIGHT, right - left, BAND_HEIGHT + PLOT_HEIGHT, colour)
        label = fitted(say(f"stage_{name}"), right - left - 4, SMALL)
        yield text(label, (left + right) / 2, axes.top - 8, anchor="middle", size=SMALL)


def grid(ticks: Sequence[tuple[int, str]], axes: Axes) -> Iterator[str]:
    for value, label in ticks:
        y = axes.y(value)
        yield path(f"M{axes.left:.1f} {y:.1f}H{axes.right:.1f}", "grid")
        yield text(label, axes.left - 8, y + 4, anchor="end", size=SMALL, colour="muted")


def _areas(course: Course, axes: Axes) -> Iterator[str]:
    """One closed outline per term, down to the axis; the top term first, so that lower terms cover it."""
    xs = axes.x(course)
    sums = [tuple(accumulate(values)) for values in course.allocated]
    for index in reversed(range(len(course.terms))):
        if not any(values[index] for values in course.allocated):
            continue
        outline = _steps(xs, [axes.y(values[index]) for values in sums], RIGHT)
        ground = f"V{axes.bottom:.1f}H{xs[0]:.1f}Z"
        yield element("path", d=outline + ground, **fill(course.terms[index]))


def _lines(course: Course, measured: Course | None, axes: Axes) -> Iterator[str]:
    yield _line(course, course.reserved, axes, "ink", dashed=True)
    if measured is not None:
        yield _line(measured, measured.totals, axes, "measured", dashed=False)
        yield _line(measured, measured.reserved, axes, "measured", dashed=True)


def _line(course: Course, values: Sequence[int], axes: Axes, colour: str, *, dashed: bool) -> str:
    data = _steps(axes.x(course), list(map(axes.y, values)), RIGHT)
    return path(data, colour, 1.5, stroke_dasharray="5 3" if dashed else None)


def _steps(xs: Sequence[float], ys: Sequence[float], end: float) -> str:
    """Path of a step line: each value lasts until the next point. Skips points whose y does not change, to a tenth."""
    written = [f"{y:.1f}" for y in ys]
    moves = [f"H{x:.1f}V{y}" for x, before, y in zip(xs[1:], written, written[1:], strict=False) if y != before]
    return f"M{xs[0]:.1f} {written[0]}{''.join(moves)}H{end:.1f}"


def _peak(course: Course, say: Language, axes: Axes) -> Iterator[str]:
    totals = course.totals
    point = totals.index(max(totals))
    x, y = axes.x(course)[point], axes.y(totals[point])
    label = say("plot_peak", size=size(totals[point]))
    half = text_width(label, bold=True) / 2 + 6
    middle = min(max(x, axes.left + half), RIGHT - half)
    baseline = axes.y(axes.highest_bytes / HEADROOM) - 10  # above every line
    yield path(f"M{x:.1f} {baseline + 4:.1f}V{axes.bottom:.1f}", "ink", 1, stroke_dasharray="2 3")
    yield element("circle", cx=x, cy=y, r=4, **fill("ink"))
    yield text(label, middle, baseline, anchor="middle", bold=True)


def _legend(course: Course, measured: Course | None, say: Language, top: float) -> tuple[list[str], float]:
    """(marks, y of the last line): each term's name and its bytes at the peak, wrapped into lines."""
    totals = course.totals
    at_peak = course.allocated[totals.index(max(totals))]
    entries = [
        (term, say("plot_term", term=say(f"term_{term}"), size=size(value)), None)
        for index, (term, value) in enumerate(zip(course.terms, at_peak, strict=True))
        if any(values[index] for values in course.allocated)
    ]
    lines = [("ink", say("plot_reserved", size=size(max(course.reserved))), "5 3")]
    if measured is not None:
        lines.append(("measured", say("plot_measured_allocated", size=size(max(measured.totals))), ""))
        lines.append(("measured", say("plot_measured_reserved", size=size(max(measured.reserved))), "5 3"))
    marks = [text(fitted(say("plot_legend"), RIGHT - MARGIN, SMALL), MARGIN, top, size=SMALL, colour="muted")]
    x, y = MARGIN, top + LINE
    for colour, label, dashes in [*entries, *lines]:
        wide = SWATCH + 6 + text_width(label, SMALL) + 18
        if x > MARGIN and x + wide > RIGHT:
            x, y = MARGIN, y + LINE
        if dashes is None:
            marks.append(rectangle(x, y - SWATCH + 2, SWATCH, SWATCH, colour))
        else:
            marks.append(path(f"M{x:.1f} {y - 4:.1f}h{SWATCH:.0f}", colour, 2, stroke_dasharray=dashes or None))
        marks.append(text(label, x + SWATCH + 6, y, size=SMALL))
        x += wide
    return marks, y
