"""Sizes, counts and durations, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.cli.units import format_bytes, format_count, format_duration, parse_size

KIB, MIB, GIB, TIB = (1024**power for power in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("512B", 512),
        ("16G", 16 * GIB),
        ("16g", 16 * GIB),
        (" 24 GiB ", 24 * GIB),
        ("800M", 800 * MIB),
        ("64KiB", 64 * KIB),
        ("2T", 2 * TIB),
        ("1.5G", 3 * GIB // 2),
        ("0.1G", GIB // 10),
        ("1.0K", KIB),
    ],
)
def test_sizes_are_binary_as_cards_are_labelled(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "+1G",
        "1e9",
        "nan",
        "inf",
        "16 X",
        "1,5G",
        "1_000",
        ".5G",
        "5.G",
        "16Gi",
        "٣G",
    ],
)
def test_what_is_no_size_is_answered_with_one(text: str) -> None:
    with pytest.raises(ValueError, match="for example 16G"):
        parse_size(text)


def test_a_decimal_unit_is_refused_with_the_binary_one() -> None:
    with pytest.raises(ValueError, match=r"write 24G for 24 GiB"):
        parse_size("24GB")


def test_half_a_byte_and_more_than_any_disk_are_refused() -> None:
    with pytest.raises(ValueError, match="whole"):
        parse_size("1.5")
    with pytest.raises(ValueError, match="larger than any disk"):
        parse_size("9" * 30 + "T")


@given(st.integers(0, 1 << 55))
def test_a_size_that_was_written_is_read_back_closely(n_bytes: int) -> None:
    assert abs(parse_size(format_bytes(n_bytes)) - n_bytes) <= 0.0051 * n_bytes


@given(st.integers(0, 1 << 30), st.sampled_from("KMGT"))
def test_a_letter_multiplies_by_its_power_of_1024(number: int, letter: str) -> None:
    power = "_KMGT".index(letter)
    expected = number * 1024**power
    if expected < 1 << 63:
        assert parse_size(f"{number}{letter}") == parse_size(f"{number} {letter}iB") == expected


@given(st.integers(0, 1 << 55))
def test_a_written_size_is_short(n_bytes: int) -> None:
    number, unit = format_bytes(n_bytes).split(" ")
    assert len(number) <= 5
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (1023 * KIB, "1.00 MiB"),
        (63_155_874_688, "58.8 GiB"),
        (24 * GIB, "24.0 GiB"),
        (2048 * TIB, "2048 TiB"),
    ],
)
def test_sizes_have_three_digits(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (5_904_456, "5.90M"), (31_577_937_344, "31.6B"), (10**15, "1000T")],
)
def test_counts_have_three_digits(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.04, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_durations_carry_over(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text
