"""Numbers with units, as answers hold them: read exactly, each unit under one name. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

from localcascade.maths.lexemes import CALLS

NUMBER = r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
"""A pattern for one number as people and models write it."""

_QUANTITY = re.compile(
    r"(?P<sign>[$€£])?\s*"
    rf"(?P<number>[-+−]?\d+\s+\d+\s*/\s*\d+|{NUMBER}(?:\s*/\s*\d+)?)(?P<gap>\s*)"
    r"(?P<unit>(?!(?:and|or)\b)[A-Za-zµΩ€$£°][\w/^²³°€$£ .-]*)?"
)
_REPEATING = re.compile(r"(\d+)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?")
_MONEY = {"$": "dollars", "€": "euros", "£": "pounds"}
_UNIT_NAMES = {
    "dollar": "dollars", "usd": "dollars", "euro": "euros", "eur": "euros", "pound": "pounds",
    "degree": "°", "degrees": "°", "meters": "m", "metres": "m", "meter": "m", "metre": "m",
    "centimeter": "cm", "centimetre": "cm", "centimeters": "cm", "centimetres": "cm",
    "kilometer": "km", "kilometre": "km", "kilometers": "km", "kilometres": "km",
    "seconds": "s", "second": "s", "sec": "s", "minute": "minutes", "min": "minutes",
    "hour": "hours", "h": "hours", "day": "days", "percent": "%", "per cent": "%",
}  # fmt: skip
_SHORT_UNITS = frozenset(
    ["m", "mm", "cm", "dm", "km", "µm", "g", "mg", "kg", "t", "s", "ms", "µs", "h", "d", "l", "L",
     "ml", "mL", "cl", "dl", "N", "kN", "J", "kJ", "MJ", "W", "kW", "MW", "Wh", "kWh", "V", "mV",
     "kV", "A", "mA", "C", "K", "F", "B", "kB", "MB", "GB", "Hz", "kHz", "MHz", "GHz", "Pa", "kPa",
     "hPa", "eV", "Ω", "kΩ", "ft", "yd", "in", "mi", "lb", "lbs", "oz", "sec", "am", "pm", "AM",
     "PM"]
)  # fmt: skip
_CLOSE_LETTERS = frozenset("msgΩ")
"""Single letters that name a unit even right behind a number, where others are variables."""


def read_quantity(text: str) -> tuple[Fraction, str] | None:
    """Read a number and its unit.

    Args:
        text: Without markup; 1 3/4 is a mixed number.

    Returns:
        The value and the name of its unit, which is empty where there is none; percentages are
        divided by 100. None if it is something else: 5x is no five of anything.
    """
    is_percent = text.endswith("%")
    match = _QUANTITY.fullmatch(text.removesuffix("%").strip())
    value = _read_number(match["number"]) if match else None
    if match is None or value is None:
        return None
    unit = (match["unit"] or "").strip()
    if unit and not _is_unit(unit, is_close=not match["gap"]):
        return None
    name = _name_unit(unit or _MONEY.get(match["sign"] or "", ""))
    return (value / 100, "") if is_percent or name == "%" else (value, name)


def write_repeating(text: str) -> str:
    r"""Write decimals that repeat, 0.1\overline{6}, as fractions: 15/90."""

    def write(match: re.Match[str]) -> str:
        whole, fixed, period = match.groups()
        n_fixed = int((whole + fixed) or "0")
        bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
        return f"{int(whole + fixed + period) - n_fixed}/{bottom}"

    return _REPEATING.sub(write, text)


def _read_number(text: str) -> Fraction | None:
    number = re.sub(r"\s*/\s*", "/", text.replace(",", "").replace("−", "-"))
    exponent = re.search(r"[eE]([-+]?\d+)", number)
    if len(number) > 200 or (exponent and abs(int(exponent[1])) > 400):
        return None
    whole, _, part = number.rpartition(" ")
    try:
        value = Fraction(part)
        return value if not whole else Fraction(whole) + (-value if "-" in whole else value)
    except (ValueError, ZeroDivisionError):
        return None


def _is_unit(text: str, *, is_close: bool) -> bool:
    """Whether what stands behind a number is a unit or a thing that is counted."""
    words = re.findall(r"[A-Za-zµΩ]+", text)
    if is_close and [len(word) for word in words] == [1]:
        return words[0] in _CLOSE_LETTERS
    longer = [word for word in words if word not in _SHORT_UNITS]
    return not longer or (not is_close and all(len(w) > 2 and w not in CALLS for w in longer))


def _name_unit(text: str) -> str:
    text = re.sub(r"\bper\b(?! cent)", "/", re.sub(r"\s+", " ", text.strip(" .")))
    return "/".join(_name_factor(part.strip()) for part in text.split("/"))


def _name_factor(text: str) -> str:
    for word, sign in (("square ", "²"), ("sq ", "²"), ("cubic ", "³")):
        if text.casefold().startswith(word):
            return _name_factor(text[len(word) :]) + sign
    base = text.rstrip("²³")
    name = re.sub(r"°\s+", "°", base.strip())
    return (_MONEY.get(name) or _UNIT_NAMES.get(name.casefold(), name)) + text[len(base) :]
