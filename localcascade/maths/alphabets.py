"""Letters in other dress: mathematical alphabets, and the small ones above and below the line."""

from __future__ import annotations

from functools import cache

# First code point of A, a and 0 in each alphabet; 0 where it has none.
_STARTS = {
    "bold": (0x1D400, 0x1D41A, 0x1D7CE),
    "blackboard": (0x1D538, 0x1D552, 0x1D7D8),
    "calligraphic": (0x1D49C, 0, 0),
    "fraktur": (0x1D504, 0x1D51E, 0),
}
# Letters that Unicode had before it had the alphabets.
_OLDER = {
    "blackboard": dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True)),
    "calligraphic": dict(zip("BEFHILMR", "ℬℰℱℋℐℒℳℛ", strict=True)),
    "fraktur": dict(zip("CHIRZ", "ℭℌℑℜℨ", strict=True)),
}

_SUPERSCRIPTS = (
    "0123456789+−-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWβγδθφϕχ∘°†‡′",
    "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵝᵞᵟᶿᵠᵠᵡ°°†‡′",
)
_SUBSCRIPTS = (
    "0123456789+−-=()aehijklmnoprstuvxβγρφϕχ",
    "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵩᵪ",
)


@cache
def map_alphabet(name: str) -> dict[str, str]:
    """Plain character -> the same in the alphabet `name`; empty for alphabets drawn plainly."""
    if name not in _STARTS:
        return {}
    upper, lower, digit = _STARTS[name]
    runs = ((upper, "A", 26), (lower, "a", 26), (digit, "0", 10))
    letters = {chr(ord(c) + i): chr(s + i) for s, c, n in runs if s for i in range(n)}
    return letters | _OLDER.get(name, {})


def raise_text(text: str) -> str | None:
    """`text` in superscript characters, or None where one of them does not exist."""
    return _translate(text, _superscripts())


def lower_text(text: str) -> str | None:
    """`text` in subscript characters, or None where one of them does not exist."""
    return _translate(text, _subscripts())


@cache
def _superscripts() -> dict[str, str]:
    return dict(zip(*_SUPERSCRIPTS, strict=True))


@cache
def _subscripts() -> dict[str, str]:
    return dict(zip(*_SUBSCRIPTS, strict=True))


def _translate(text: str, table: dict[str, str]) -> str | None:
    drawn = [table.get(character) for character in text]
    return None if None in drawn else "".join(filter(None, drawn))
