"""Tables between lines, held against prettytable."""

from __future__ import annotations

import random

from prettytable import PrettyTable

from qwen_inspect.renderers.grid import grid

CELLS = ("", "0", "1,024", "model.layers.0-27", "参数", "28 层 × 8", "a line\nand another", "三\n行\n字", " – ")


def of_prettytable(rows: list[list[str]], align: list[str], ruled_after: set[int]) -> str:
    drawn = PrettyTable([str(index) for index in range(len(align))])
    drawn.header = False
    for name, letter in zip(drawn.field_names, align, strict=True):
        drawn.align[name] = letter  # type: ignore[assignment]  # prettytable wants the literal
    for index, row in enumerate(rows):
        drawn.add_row(row, divider=index in ruled_after)
    return drawn.get_string()


def test_a_table_is_drawn_as_prettytable_draws_it() -> None:
    drawn = random.Random(0)
    for _ in range(200):
        align = [drawn.choice("lcr") for _ in range(drawn.randint(1, 6))]
        rows = [[drawn.choice(CELLS) for _ in align] for _ in range(drawn.randint(1, 6))]
        ruled = {0, len(rows) - 2} if len(rows) > 2 else {0}
        assert grid(rows, align, ruled_after=ruled) == of_prettytable(rows, align, ruled)
