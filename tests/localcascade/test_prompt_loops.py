"""Loops are noticed, work that merely repeats much is not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import count, islice, product

import pytest

from localcascade.prompt.loops import ANSWER_RULE, THINKING_RULE, LoopDetector, LoopRule

# As fine as the tokenizers of this family: words with their blank, single digits, single marks.
_TOKEN = re.compile(r" ?[^\W\d_]+|\d|\n| ?[^\w\s]|_| +")


def tokenize(text: str) -> list[int]:
    ids: dict[str, int] = {}
    return [ids.setdefault(piece, len(ids)) for piece in _TOKEN.findall(text)]


def find_loop(tokens: list[int], rule: LoopRule = THINKING_RULE) -> int | None:
    """After how many tokens a loop is noticed."""
    detector = LoopDetector(rule)
    return next((at for at, token in enumerate(tokens, 1) if detector.feed(token)), None)


def write_prose(rng: random.Random, n_words: int, n_known: int = 800) -> str:
    known = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(n_known)]
    words = rng.choices(known, weights=[1 / rank for rank in range(1, n_known + 1)], k=n_words)
    return " ".join(words)


# ---- what is a loop ---------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 7, 40, 64, 300, 900])
def test_a_period_is_noticed_soon_and_not_at_once(period: int) -> None:
    rng = random.Random(period)
    prose = tokenize(write_prose(rng, 3000))
    phrase = [10_000 + i for i in range(period)]
    noticed = find_loop(prose + phrase * 6000)
    assert noticed is not None
    # By arithmetic: the first phrase, then that many repeated tokens of it.
    expected = period + max(THINKING_RULE.run_tokens, THINKING_RULE.run_periods * period)
    assert 0 <= noticed - len(prose) - expected <= period + 12


def write_recount(rng: random.Random) -> Iterator[str]:
    paragraph = write_prose(rng, 400)
    for attempt in count(1):
        yield f"{paragraph}\nAttempt {attempt}. "


def write_shuffle(rng: random.Random) -> Iterator[str]:
    paragraphs = [write_prose(rng, 90) for _ in range(5)]
    while True:
        yield rng.choice(paragraphs) + "\n"


def write_doubt(rng: random.Random) -> Iterator[str]:
    paragraph = write_prose(rng, 120)
    while True:
        yield paragraph + rng.choice([" Wait, no.", " Hmm.", " Let me check again."]) + "\n"


@pytest.mark.parametrize("write", [write_recount, write_shuffle, write_doubt])
@pytest.mark.parametrize("seed", range(3))
def test_a_loop_with_small_changes_is_noticed(
    write: Callable[[random.Random], Iterator[str]], seed: int
) -> None:
    rng = random.Random(seed)
    prose = write_prose(rng, 3000)
    tokens = tokenize(prose + "\n" + "".join(islice(write(rng), 100)))
    noticed = find_loop(tokens)
    assert noticed is not None and 1000 < noticed - len(tokenize(prose)) < 12_000


def test_an_answer_may_repeat_itself_for_longer() -> None:
    phrase = list(range(20))
    noticed = find_loop(phrase * 1000, ANSWER_RULE)
    assert noticed is not None and abs(noticed - 20 - 4096) <= 12
    assert find_loop([*range(500)] * 16, ANSWER_RULE) is None
    shuffled = tokenize("".join(islice(write_shuffle(random.Random(0)), 300)))
    assert find_loop(shuffled, ANSWER_RULE) is None and find_loop(shuffled)


def test_a_loop_long_after_the_horizon_is_noticed() -> None:
    rng = random.Random(5)
    fresh = [rng.randrange(100_000) for _ in range(50_000)]
    noticed = find_loop(fresh + [*range(200)] * 30)
    assert noticed is not None and noticed - 50_000 < 200 + 1536 + 220


# ---- what is not ------------------------------------------------------------------------------


def write_table() -> str:
    rows = (f"| {i} | {i * i} | {i**3 % 97} | yes | no |\n" for i in range(600))
    return "| n | n^2 | n^3 mod 97 | a | b |\n|---|---|---|---|---|\n" + "".join(rows)


def write_times_table() -> str:
    return "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 40) for b in range(1, 40))


def write_cases() -> str:
    return "".join(
        f"Case n = {n}: {n}^2 = {n * n}, and {n * n} mod 8 = {n * n % 8}, so it is not 7.\n"
        for n in range(500)
    )


def write_truth_table() -> str:
    rows = ("".join(map(str, bits)) + f" {sum(bits) % 2}" for bits in product((0, 1), repeat=12))
    return "\n".join(rows)


def write_boards() -> str:
    """A 9 x 9 board printed again after each move, as in solving a puzzle aloud."""
    rng, board, text = random.Random(3), [[0] * 9 for _ in range(9)], []
    for _ in range(300):
        row, column = rng.randrange(9), rng.randrange(9)
        board[row][column] = rng.randrange(1, 10)
        text.append(f"Put {board[row][column]} at row {row + 1}, column {column + 1}:\n")
        text += [" ".join(map(str, line)) + "\n" for line in board]
    return "".join(text)


def write_code() -> str:
    names = [f"{a}_{b}" for a in ("width", "height", "depth", "mass") for b in range(40)]
    return "".join(
        f"    def get_{n}(self) -> int:\n        return self._{n}\n\n"
        f"    def set_{n}(self, value: int) -> None:\n        self._{n} = value\n\n"
        for n in names
    )


def write_code_copied() -> str:
    """A program of a thousand tokens, written out three times while it is checked."""
    return "\nLet me write it again.\n".join([write_code()[:4000]] * 3)


def write_sequence_steps() -> str:
    text, n = [], 27
    for step in range(1, 800):
        text.append(f"Step {step}: {n} is {'odd' if n % 2 else 'even'}, ")
        n = 3 * n + 1 if n % 2 else n // 2
        n = n if n > 1 else 27 + step
        text.append(f"so the next is {n}.\n")
    return "".join(text)


ORDINARY = {
    "prose": lambda: write_prose(random.Random(1), 20_000),
    "prose of few words": lambda: write_prose(random.Random(2), 20_000, n_known=12),
    "table": write_table,
    "times table": write_times_table,
    "cases": write_cases,
    "truth table": write_truth_table,
    "boards": write_boards,
    "code": write_code,
    "code copied": write_code_copied,
    "steps": write_sequence_steps,
    "digits of 2^10000": lambda: str(2**4000 * 5**700),
    "digits of 1/7": lambda: str(10**700 // 7),
    "digits of 1/9967": lambda: str(10**12000 // 9967 % 10**4000),
    "zero matrix": lambda: ("0, " * 19 + "0\n") * 20,
    "equal rows": lambda: "| 0 | none | 0 | none | 0 |\n" * 90,
    "dots": lambda: ". " * 1400,
    "rule": lambda: "-" * 1400,
    "bits at random": lambda: "".join(random.Random(4).choices("01", k=4000)),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_work_that_repeats_much_is_no_loop(kind: str) -> None:
    tokens = tokenize(ORDINARY[kind]())
    assert len(tokens) > 500
    assert find_loop(tokens) is None
