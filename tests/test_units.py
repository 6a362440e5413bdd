"""Counts, sizes and shares as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_inspect.units import count, mib, parse_tokens, percent, shares, short_count, signed, size


@pytest.mark.parametrize(
    ("text", "tokens"), [("1", 1), ("32768", 32_768), ("32k", 32_768), ("32K", 32_768), ("1m", 1_048_576)]
)
def test_tokens_are_read(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "0k", "-1", "k", "1e3", "1.5k", "٣", "1 k", "9" * 13, "0x10"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (114_688, "112.00 KiB"),
        (1_192_099_840, "1.11 GiB"),
        (4_697_620_480, "4.38 GiB"),
        (1 << 40, "1.00 TiB"),
        (None, "–"),
    ],
)
def test_sizes_are_printed_in_binary_units(size_bytes: int | None, text: str) -> None:
    assert size(size_bytes) == text


def test_the_documents_print_mebibytes_for_qwen3_0_6b() -> None:
    assert mib(596_049_920 * 2) == "1,136.88"  # console-structure and weights-report call it MB
    assert mib(751_632_384 * 2) == "1,433.62"


@pytest.mark.parametrize(
    ("value", "text"), [(596_049_920, "596.05M"), (7_722_242_048, "7.72B"), (999, "999"), (1_000, "1.00K")]
)
def test_short_counts_keep_two_decimals(value: int, text: str) -> None:
    assert short_count(value) == text


def test_unknown_is_a_dash_and_never_0() -> None:
    assert count(None) == "–"
    assert count(0) == "0"


@pytest.mark.parametrize(("value", "text"), [(-1_234, "-1,234"), (5, "+5"), (0, "0")])
def test_differences_carry_their_sign(value: int, text: str) -> None:
    assert signed(value) == text


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_shares_always_add_up_to_100_per_cent(values: list[int]) -> None:
    found = shares(values)
    assert sum(found) == (10_000 if sum(values) else 0)
    for value, share in zip(values, found, strict=True):
        assert abs(share * sum(values) - value * 10_000) <= sum(values)  # within one basis point of the exact share


@given(st.integers(0, 10_000))
def test_percentages_round_trip(basis_points: int) -> None:
    whole, _, hundredths = percent(basis_points).rstrip("%").partition(".")
    assert int(whole) * 100 + int(hundredths) == basis_points
