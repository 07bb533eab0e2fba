"""Sizes, counts and durations as people write and read them; pure arithmetic."""

from __future__ import annotations

import re
from fractions import Fraction

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT])(iB)?|B)?", re.IGNORECASE)
_DECIMAL_SIZE = re.compile(r"([0-9.]+) ?([KMGT])B", re.IGNORECASE)
_MAX_BYTES = (1 << 63) - 1
_COUNT_NAMES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def parse_size(text: str) -> int:
    """Read a size: T, G, M, K are TiB to KiB, as cards are labelled; a bare number is bytes.

    Args:
        text: For example "16G", "16 GiB", "1.5g", "800M" or "1048576".

    Returns:
        Whole bytes, rounded down.

    Raises:
        ValueError: The text is no size; the message shows one that is.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(_explain_bad_size(text))
    number, letter = Fraction(match[1]), (match[2] or "").upper()
    if not letter and number.denominator != 1:
        raise ValueError(f"{text!r}: bytes come whole; write for example 1.5G or 1610612736.")
    n_bytes = int(number * _BYTES[letter])
    if n_bytes > _MAX_BYTES:
        raise ValueError(f"{text!r}: larger than any disk; write for example 16G.")
    return n_bytes


def _explain_bad_size(text: str) -> str:
    match = _DECIMAL_SIZE.fullmatch(text.strip())
    if match is None:
        return f"{text!r} is not a size; write for example 16G, 800M or 17179869184."
    letter = match[2].upper()
    return (
        f"{text!r}: {letter}B means two things; write {match[1]}{letter} for {match[1]} {letter}iB."
    )


def format_bytes(n_bytes: int) -> str:
    """Write a size for people: three significant digits in the binary unit that fits.

    Args:
        n_bytes: At least 0.

    Returns:
        For example "512 B", "11.2 MiB" or "17.6 GiB"; `parse_size` reads it back.
    """
    if n_bytes < 1000:
        return f"{n_bytes} B"
    for letter in "KMGT":
        value = n_bytes / _BYTES[letter]
        if value < 999.5 or letter == "T":
            return f"{_round_to_three_digits(value)} {letter}iB"
    raise AssertionError("unreachable: T takes every size")


def format_count(count: int) -> str:
    """Write a count of weights for people: "31.6B", "11.2M", "960".

    Args:
        count: At least 0.
    """
    for unit, name in _COUNT_NAMES:
        if count >= unit:
            return f"{_round_to_three_digits(count / unit)}{name}"
    return str(count)


def _round_to_three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def format_duration(duration_s: float) -> str:
    """Write a duration for people: "0.4 s", "12 s", "3 min 05 s" or "2 h 03 min".

    Args:
        duration_s: Seconds, at least 0.
    """
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    whole_s = round(duration_s)
    if whole_s < 60:
        return f"{whole_s} s"
    minutes, seconds = divmod(whole_s, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
