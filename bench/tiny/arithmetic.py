"""Operands with their held-out split, and sums worked digit by digit."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

PLACES = ("ones", "tens", "hundreds", "thousands")
HELD_OUT_ONE_IN = 10
"""One operand pair in this many is kept for the evaluation and never trained on."""


def is_held_out(op: str, a: int, b: int) -> bool:
    """Whether a pair belongs to the evaluation; sums and products count both orders as one."""
    x, y = (a, b) if op in "-/" else (min(a, b), max(a, b))
    return zlib.crc32(f"{x}{op}{y}".encode()) % HELD_OUT_ONE_IN == 0


def draw_operand(rng: random.Random, weights: tuple[int, int, int]) -> int:
    """Draw a number of one, two or three digits, the digit count following `weights`."""
    n_digits = rng.choices((1, 2, 3), weights)[0]
    return rng.randrange(0 if n_digits == 1 else 10 ** (n_digits - 1), 10**n_digits)


def draw_pair(
    rng: random.Random,
    op: str,
    held_out: bool,
    accept: Callable[[int, int], bool] | None = None,
) -> tuple[int, int]:
    """Draw operands of one side of the split; training leans towards three digits."""
    weights = (1, 1, 1) if held_out else (2, 3, 5)
    while True:
        a, b = draw_operand(rng, weights), draw_operand(rng, weights)
        if op == "-" and a < b and rng.random() < 0.6:
            a, b = b, a
        if is_held_out(op, a, b) == held_out and (accept is None or accept(a, b)):
            return a, b


def join_clauses(*clauses: str) -> str:
    """Join the non-empty clauses of a column by commas."""
    return ", ".join(clause for clause in clauses if clause)


def work_addition(a: int, b: int) -> str:
    """Write a + b column by column, right to left, with carries."""
    width = max(len(str(a)), len(str(b)))
    top, bottom = f"{a:0{width}d}", f"{b:0{width}d}"
    lines, carry = [f"{top}+{bottom}"], 0
    for place, x, y in zip(PLACES, reversed(top), reversed(bottom), strict=False):
        total = int(x) + int(y) + carry
        shown = f"{x}+{y}" + ("+1" if carry else "")
        carry = total // 10
        clauses = join_clauses(f"{shown}={total}", f"write {total % 10}", "carry 1" * carry)
        lines.append(f"{place}: {clauses}")
    if carry:
        lines.append(f"{PLACES[width]}: write 1")
    return "\n".join([*lines, f"so {a + b}"])


def work_subtraction(a: int, b: int) -> str:
    """Write a - b column by column with borrows; a negative result swaps first."""
    width = max(len(str(a)), len(str(b)))
    lines = [f"{a:0{width}d}-{b:0{width}d}"]
    big, small = max(a, b), min(a, b)
    if a < b:
        lines.append(f"swap: {big:0{width}d}-{small:0{width}d}")
    borrow, digits = 0, ""
    for place, x, y in zip(
        PLACES, f"{big:0{width}d}"[::-1], f"{small:0{width}d}"[::-1], strict=False
    ):
        lent = 10 if int(x) - int(y) - borrow < 0 else 0
        digit = int(x) + lent - int(y) - borrow
        shown = f"{int(x) + lent}-{y}" + ("-1" if borrow else "")
        borrow = lent // 10
        lines.append(
            f"{place}: " + join_clauses(f"{shown}={digit}", f"write {digit}", "borrow 1" * borrow)
        )
        digits = str(digit) + digits
    stripped = f"{digits} = {int(digits)}" if digits != str(int(digits)) else digits
    return "\n".join([*lines, f"so {stripped}" + (", minus" if a < b else "")])


def work(op: str, a: int, b: int) -> str:
    """Work a sum or a difference in words and digits."""
    return work_addition(a, b) if op == "+" else work_subtraction(a, b)


def state_result(op: str, a: int, b: int) -> str:
    """Write the answer line, such as `12 + 7 = 19`."""
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return f"{a} {op} {b} = {result}"
