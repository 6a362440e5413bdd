"""A table for a terminal of so many columns: which columns stay, how wide each is, and what is said of the others.

What is tried, until the table fits: headings and sentences wrap, numbers take their short forms, expendable columns go, every
cell wraps and a few rows with longer words go below the table; else each row is a paragraph of labelled values.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property

from ..language import Language
from ..typed import NamedTuple
from .blocks import Shortened, Table
from .characters import width
from .grid import grid
from .wrapping import units, wrapped

WIDEST_CELL = 88  # longer sentences wrap; tensor names are shorter
SENTENCE, NARROWEST = 32, 10  # columns that a cell's text keeps before other columns go, and at least
HEADING_WORD = 12  # columns of a heading's word that is not broken
MOST_OUTSIDE, FEW = 8, 4  # rows too wide for their table, shown below it: so many, and one in four, at most
BORDERS = 3  # columns that a column takes beside its text; the table takes one more


class Screen(NamedTuple):
    """columns: of the terminal. whole: --verbose, so that nothing is left out or shortened."""

    columns: int
    say: Language
    whole: bool = False


class _Column:
    """A column's cells, its heading first."""

    def __init__(self, cells: Sequence[str], align: str) -> None:
        self.cells = cells
        self.align = align

    @cached_property
    def widths(self) -> Sequence[int]:
        """Of each cell as it is."""
        return [width(cell) for cell in self.cells]

    @cached_property
    def words(self) -> Sequence[int]:
        """The width of each cell's widest unit."""
        heading, *cells = self.cells
        return [max(map(width, _of_heading(heading))), *map(_word, cells)]

    @cached_property
    def widest(self) -> int:
        return max(self.widths)

    def least(self, *, wrap_all: bool) -> int:
        """Columns that it needs if headings and sentences wrap, or all cells."""
        word = max(self.words)
        if wrap_all:
            return max(word, min(self.widest, NARROWEST))
        body = max(self.widths[1:], default=0)
        return max(word, min(body, SENTENCE) if self.align != "r" else body)

    def without(self, rows: Container[int]) -> _Column:
        return _Column([cell for index, cell in enumerate(self.cells) if index not in rows], self.align)


def _word(cell: str) -> int:
    return len(cell) if cell.isascii() and " " not in cell else max(map(width, units(cell)))


def drawn(table: Table, safe_cells: Sequence[Sequence[str]], screen: Screen | None) -> tuple[str, str]:
    """The table's text, and a sentence on what it leaves out. safe_cells: headings and rows, escaped; `Shortened` are kept."""
    columns = [_Column(cells, letter) for cells, letter in zip(zip(*safe_cells, strict=True), table.align, strict=True)]
    natural = [min(column.widest, WIDEST_CELL) for column in columns]
    if screen is None or sum(column.widest for column in columns) <= _room(screen, columns):
        return _boxes(columns, natural if screen is None else [column.widest for column in columns], table.totals), ""
    for kept, chosen, wrap_all in _attempts(table, columns, whole=screen.whole):
        shown: Sequence[_Column] = [chosen[index] for index in kept]
        shown, outside = _without_widest(shown, table.totals, screen) if wrap_all else (shown, [])
        room = _room(screen, shown)
        least = [column.least(wrap_all=wrap_all) for column in shown]
        if sum(least) > room:
            continue
        hidden = [column.cells[0] for index, column in enumerate(columns) if index not in kept]
        cut = any(chosen[index] is not columns[index] for index in kept)
        text = _boxes(shown, _widths(shown, least, room), table.totals)
        return "\n".join([text, *_records(outside, 0, screen.columns)]), _left_out(hidden, cut, screen.say)
    return "\n".join(_records(columns, table.totals, screen.columns)), ""


def _room(screen: Screen, columns: Sequence[_Column]) -> int:
    """Columns of the screen for the texts of a table's columns."""
    return screen.columns - 1 - BORDERS * len(columns)


def _without_widest(
    columns: Sequence[_Column], totals: int, screen: Screen
) -> tuple[Sequence[_Column], Sequence[_Column]]:
    """(columns without the few rows whose words are too wide for a table, columns of these rows); the latter is often empty."""
    last = len(columns[0].cells) - totals
    rows = {*range(1, last)}
    fewest = [sorted(column.words[1:last], reverse=True)[MOST_OUTSIDE : MOST_OUTSIDE + 1] for column in columns]
    outside: list[int] = []
    kept = columns
    if sum(words[0] for words in fewest if words) > _room(screen, columns):
        return columns, []  # even without that many rows
    while sum(column.least(wrap_all=True) for column in kept) > _room(screen, columns):
        if len(outside) == min(MOST_OUTSIDE, len(rows) // FEW):
            return columns, []
        numbers = [max(column.words) if column.align == "r" else 0 for column in kept]
        widest = columns[numbers.index(max(numbers))]
        outside.append(max(rows.difference(outside), key=lambda index: widest.words[index]))
        kept = [column.without(outside) for column in columns]
    if not outside:
        return columns, []
    return kept, [column.without(rows.difference(outside)) for column in columns]


def _attempts(
    table: Table, columns: Sequence[_Column], *, whole: bool
) -> Iterator[tuple[Sequence[int], Sequence[_Column], bool]]:
    """(indices of the columns shown, the columns' forms, whether every cell wraps), the fullest first."""
    kept = range(len(columns))
    yield kept, columns, False
    if whole:
        yield kept, columns, True
        return
    short = [_shortened(column) for column in columns]
    if any(form is not column for form, column in zip(short, columns, strict=True)):
        yield kept, short, False
    left: Sequence[int] = kept
    for group in table.expendable:
        left = [index for index in left if index not in group]
        yield left, short, False
    yield left, short, True


def _of_heading(text: str) -> Iterable[str]:
    """Its units; short words of Chinese stay whole."""
    return (unit for word in text.split(" ") for unit in ([word] if width(word) <= HEADING_WORD else units(word)))


def _shortened(column: _Column) -> _Column:
    if not any(isinstance(cell, Shortened) for cell in column.cells):
        return column
    return _Column([cell.short if isinstance(cell, Shortened) else cell for cell in column.cells], column.align)


def _widths(columns: Sequence[_Column], least: Sequence[int], room: int) -> list[int]:
    """The widths that leave the widest cell of all as narrow as the room allows."""
    wanted = [min(column.widest, max(WIDEST_CELL, *column.words)) for column in columns]
    if sum(wanted) <= room:
        return wanted
    low, high = 0, room
    while low < high:  # the largest cap that fits
        cap = (low + high + 1) // 2
        low, high = (cap, high) if sum(_capped(wanted, least, cap)) <= room else (low, cap - 1)
    widths = _capped(wanted, least, low)
    for index, want in enumerate(wanted):  # what is left over
        widths[index] += min(want - widths[index], room - sum(widths))
    return widths


def _capped(wanted: Sequence[int], least: Sequence[int], cap: int) -> list[int]:
    return [max(low, min(want, cap)) for want, low in zip(wanted, least, strict=True)]


def _boxes(columns: Sequence[_Column], widths: Sequence[int], totals: int) -> str:
    texts = [
        column.cells if column.widest <= wide else ["\n".join(wrapped(cell, wide)) for cell in column.cells]
        for column, wide in zip(columns, widths, strict=True)
    ]
    rows = list(zip(*texts, strict=True))
    ruled = {0, len(rows) - 1 - totals} if totals else {0}
    return grid(rows, [column.align for column in columns], ruled_after=ruled)


def _records(columns: Sequence[_Column], totals: int, room: int) -> Iterator[str]:
    """A paragraph per row: its first cell, and below it each other cell with its heading."""
    if not columns:
        return
    heads, *rows = zip(*(column.cells for column in columns), strict=True)
    for index, row in enumerate(rows):
        if index == len(rows) - totals and index > 0:
            yield ""
        labelled = [f"{head}: {cell}" if head else cell for head, cell in zip(heads, row, strict=True) if cell]
        for line, text in enumerate(labelled):
            yield from wrapped(f"  {text}" if line else text, room, indent="    ")


def _left_out(hidden: Sequence[str], short: bool, say: Language) -> str:
    """A sentence on hidden columns and shortened cells, and what shows them; empty if there are none."""
    named = say("list_comma").join(heading for heading in hidden if heading)
    if named:
        return say("screen_hidden_short" if short else "screen_hidden", columns=named)
    return say("screen_short") if short else ""
