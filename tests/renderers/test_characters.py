"""Display widths, held against the wcwidth library."""

from __future__ import annotations

import sys
from unicodedata import category

from wcwidth import wcswidth, wcwidth

from qwen_inspect.renderers.characters import columns_of, width

# Where wcwidth 0.9.4 knows more than Python's table: Hangul's vowels and finals (drawn into the syllable before), hexagrams and
# counting rods (wide since Unicode 16), the letters of flags.
EXCEPTIONS = (*range(0x1160, 0x1200), *range(0x2630, 0x2638), *range(0x268A, 0x2690), *range(0x4DC0, 0x4E00))
EXCEPTIONS += (0x3164, 0xFFA0, *range(0xD7B0, 0xD800), *range(0x1D300, 0x1D380), *range(0x1F1E6, 0x1F200))


def test_a_characters_columns_are_those_of_wcwidth() -> None:
    differing = [
        hex(number)
        for number in range(32, sys.maxunicode + 1)
        if category(character := chr(number)) not in ("Cc", "Cf", "Cn", "Co", "Cs")
        and columns_of(character) != wcwidth(character)
        and number not in EXCEPTIONS
    ]
    assert differing == []


def test_a_texts_columns_are_those_of_wcwidth() -> None:
    for text in ("", "model.layers.0", "参数：28 层", "é – × ≤ …", "ｆｕｌｌ ﾊﾝ", "👍 ok", "🏳\ufe0f ❤\ufe0f", "한국어"):
        assert width(text) == wcswidth(text)
