"""A table for a terminal of so many columns: which columns stay, how wide each is, and what is said of the others.

What is tried, until the table fits: headings and sentences wrap, numbers take their short forms, expendable columns go, every
cell wraps and a few rows with longer words go below the table; else each row is a paragraph of labelled values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prettytable import PrettyTable

from ..language import Language
from .blocks import Shortened, Table
from .characters import width
from .wrapping import units, wrapped

WIDEST_CELL = 88  # longer sentences wrap; tensor names are shorter
SENTENCE, NARROWEST = 32, 10  # columns that a cell's text keeps before other columns go, and at least
HEADING_WORD = 12  # columns of a heading's word that is not broken
MOST_OUTSIDE = 8  # rows too wide for their table, shown below it
BORDERS = 3  # columns that a column takes beside its text; the table takes one more


@dataclass(frozen=True, slots=True)
class Screen:
    """columns: of the terminal. whole: --verbose, so that nothing is left out or shortened."""

    columns: int
    say: Language
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Column:
    """A column's cells, its heading first. widest: as they are. word: its widest unit. body: without its heading."""

    cells: Sequence[str]
    align: str
    widest: int
    word: int
    body: int

    def least(self, *, wrap_all: bool) -> int:
        """Columns that it needs if headings and sentences wrap, or all cells."""
        if wrap_all:
            return max(self.word, min(self.widest, NARROWEST))
        return max(self.word, min(self.body, SENTENCE) if self.align != "r" else self.body)


def drawn(table: Table, safe_cells: Sequence[Sequence[str]], screen: Screen | None) -> tuple[str, str]:
    """The table's text, and a sentence on what it leaves out. safe_cells: headings and rows, escaped; `Shortened` are kept."""
    columns = [_column(cells, letter) for cells, letter in zip(zip(*safe_cells, strict=True), table.align, strict=True)]
    everything = list(range(len(columns)))
    if screen is None:
        return _boxes(columns, [min(column.widest, WIDEST_CELL) for column in columns], table.totals), ""
    short = [_shortened(column) for column in columns]
    for kept, chosen, wrap_all in _attempts(table, columns, short, whole=screen.whole):
        shown = [chosen[index] for index in kept]
        shown, outside = _without_widest(shown, table.totals, screen.columns) if wrap_all else (shown, [])
        room = screen.columns - 1 - BORDERS * len(shown)
        least = [column.least(wrap_all=wrap_all) for column in shown]
        if sum(least) > room:
            continue
        hidden = [columns[index].cells[0] for index in everything if index not in kept]
        cut = any(chosen[index] is not columns[index] for index in kept)
        text = _boxes(shown, _widths(shown, least, room), table.totals)
        return "\n".join([text, *_records(outside, 0, screen.columns)]), _left_out(hidden, cut, screen.say)
    return "\n".join(_records(columns, table.totals, screen.columns)), ""


def _without_widest(columns: Sequence[_Column], totals: int, limit: int) -> tuple[list[_Column], list[_Column]]:
    """(columns without the few rows whose words are too wide for a table, columns of these rows); the latter is often empty."""
    rows = list(zip(*(column.cells for column in columns), strict=True))
    outside: list[int] = []
    kept = list(columns)
    while sum(column.least(wrap_all=True) for column in kept) > limit - 1 - BORDERS * len(kept):
        candidates = [index for index in range(1, len(rows) - totals) if index not in outside]
        if len(outside) == MOST_OUTSIDE or len(candidates) <= len(outside) + 1:
            return list(columns), []
        widest = max(range(len(kept)), key=lambda index: kept[index].word if kept[index].align == "r" else 0)
        outside.append(max(candidates, key=lambda index: max(map(width, units(rows[index][widest])))))
        kept = [
            _column([row[number] for index, row in enumerate(rows) if index not in outside], column.align)
            for number, column in enumerate(columns)
        ]
    chosen = [0, *sorted(outside)] if outside else []
    return kept, [
        _column([rows[index][number] for index in chosen], column.align)
        for number, column in enumerate(columns)
        if chosen
    ]


def _attempts(
    table: Table, columns: Sequence[_Column], short: Sequence[_Column], *, whole: bool
) -> Iterator[tuple[list[int], Sequence[_Column], bool]]:
    """(indices of the columns shown, the columns' forms, whether every cell wraps), the fullest first."""
    kept = list(range(len(columns)))
    yield kept, columns, False
    if not whole:
        yield kept, short, False
        for group in table.expendable:
            kept = [index for index in kept if index not in group]
            yield kept, short, False
        yield kept, short, True
    yield kept, columns, True


def _column(cells: Sequence[str], align: str) -> _Column:
    body = max(map(width, cells[1:]), default=0)
    word = max(
        width(unit) for index, cell in enumerate(cells) for unit in (units(cell) if index else _of_heading(cell))
    )
    return _Column(cells, align, max(body, width(cells[0])), word, body)


def _of_heading(text: str) -> Iterable[str]:
    """Its units; short words of Chinese stay whole."""
    return (unit for word in text.split(" ") for unit in ([word] if width(word) <= HEADING_WORD else units(word)))


def _shortened(column: _Column) -> _Column:
    if not any(isinstance(cell, Shortened) for cell in column.cells):
        return column
    return _column([cell.short if isinstance(cell, Shortened) else cell for cell in column.cells], column.align)


def _widths(columns: Sequence[_Column], least: Sequence[int], room: int) -> list[int]:
    """The widths that leave the widest cell of all as narrow as the room allows."""
    wanted = [min(column.widest, max(WIDEST_CELL, column.word)) for column in columns]
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
    box = PrettyTable(
        [str(index) for index in range(len(columns))]
    )  # the heading is a row, as it may take several lines
    box.header = False
    for name, column in zip(box.field_names, columns, strict=True):
        box.align[name] = column.align  # type: ignore[assignment]  # prettytable wants the literal
    rows = list(zip(*(column.cells for column in columns), strict=True))
    last = len(rows) - 1 - totals
    for index, row in enumerate(rows):
        cells = ["\n".join(wrapped(cell, columns)) for cell, columns in zip(row, widths, strict=True)]
        box.add_row(cells, divider=index == 0 or (index == last and totals > 0))
    return box.get_string()


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
