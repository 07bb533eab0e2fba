"""Thinking ends in time, at a good place, once; and an answer always has its room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcascade.prompt.budget import (
    CLOSINGS,
    Guard,
    Landing,
    ThinkingBudget,
    check_budget,
    write_closing,
)

CLOSING_TOKENS = 16
ENDLESS = 10**9

pieces = st.lists(
    st.sampled_from(
        [b" word", b" word", b" word", b".", b"3", b"\n", b" so", b"?", b".\n\n", b" "]
    ),
    min_size=1,
)


def think(
    guard: Guard, written: list[bytes], n_tokens: int = 3000, token_s: float = 0.0
) -> tuple[int, Landing] | None:
    """Think along pieces, over and over, every token another; tells where it lands and how."""
    for at in range(1, n_tokens + 1):
        landing = guard.watch(at, written[(at - 1) % len(written)], at * token_s)
        if landing:
            return at, landing
    return None


def find_good_places(written: list[bytes], n_tokens: int) -> list[int]:
    """Token counts after which a line or a sentence is over, read off the text itself."""
    text, places = "", []
    for at in range(1, n_tokens + 1):
        text += written[(at - 1) % len(written)].decode()
        last = text.rstrip(" ")
        is_number = last[-1:] in ".?" and last[-2:-1].isdigit()
        if text.endswith("\n") or (last[-1:] in (".", "?") and not is_number):
            places.append(at)
    return places


@given(written=pieces, tokens=st.integers(64, 2000))
@settings(max_examples=200, deadline=None)
def test_it_lands_at_the_first_good_place_as_the_budget_nears(
    written: list[bytes], tokens: int
) -> None:
    guard = Guard(ThinkingBudget(tokens), room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    found = think(guard, written)
    assert found is not None and found[1].reason == "tokens"
    hard = tokens - CLOSING_TOKENS  # the closing is part of the budget
    soft = math.ceil(hard - min(max(hard * 0.05, 32), hard / 2))
    good = [at for at in find_good_places(written, hard) if at >= soft]
    assert found[0] == (good[0] if good else hard)


@given(
    written=pieces,
    tokens=st.none() | st.integers(1, 3000),
    seconds=st.none() | st.floats(0.1, 100),
    reserve=st.integers(0, 2000),
    room=st.integers(3, 2500),
    asked_at=st.none() | st.integers(0, 500),
)
@settings(max_examples=300, deadline=None)
def test_the_budget_holds_and_the_answer_has_its_room(
    written: list[bytes],
    tokens: int | None,
    seconds: float | None,
    reserve: int,
    room: int,
    asked_at: int | None,
) -> None:
    budget = ThinkingBudget(tokens, seconds, reserve)
    guard = Guard(budget, room_tokens=room, closing_tokens=CLOSING_TOKENS)
    landing, at = None, 0
    while landing is None:
        if at == asked_at:
            guard.answer_now()
        at += 1
        landing = guard.watch(at, written[at % len(written)], at * 0.05)
    spent = at + (CLOSING_TOKENS if landing.text else 1)
    assert room - spent >= min(reserve, room // 2)
    assert tokens is None or spent <= max(tokens, 2)
    assert seconds is None or at <= math.ceil(seconds / 0.05 + 1e-9) or at == 1
    assert landing.text in (
        "",
        write_closing(landing.reason),
        "\n" + CLOSINGS[landing.reason] + "\n",
    )
    if landing.reason == "asked":
        assert asked_at is not None and at == asked_at + 1
    assert guard.landing == landing


def test_seconds_count_by_the_clock_that_is_passed_in() -> None:
    budget = ThinkingBudget(seconds=10)
    hard = Guard(budget, room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    assert think(hard, [b" word"], token_s=0.125) == (80, Landing("seconds", hard_text()))
    soft = Guard(budget, room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    found = think(soft, [b" a", b" b", b" c", b"."], token_s=0.125)
    assert found and found[0] == 72 and found[1].reason == "seconds"  # the window opens at 9 s


def hard_text() -> str:
    return "\n\nConsidering the limited time, I will give my answer now.\n"


def test_without_a_budget_only_room_and_loops_end_it() -> None:
    def guard(room: int) -> Guard:
        return Guard(ThinkingBudget(), room_tokens=room, closing_tokens=CLOSING_TOKENS)

    assert think(guard(ENDLESS), [b" word"], 20_000) is None
    assert think(guard(4096), [b" word"], 20_000) == (
        4096 - 1024 - CLOSING_TOKENS,
        Landing("room", hard_text()),
    )
    looping = guard(ENDLESS)
    landings = [looping.watch(at % 50, b" word", 0.0) for at in range(1700)]
    first = next(landing for landing in landings if landing)
    assert first.reason == "loop" and first.text == write_closing("loop", b" word")


def test_answer_tokens_count_against_the_room_only() -> None:
    guard = Guard(ThinkingBudget(tokens=500), room_tokens=2000, closing_tokens=CLOSING_TOKENS)
    assert not any(guard.watch_answer(at) for at in range(900))
    # 2000 less the reserve of 1000 and what the answer took: 84 are left to think.
    assert think(guard, [b" word"]) == (84, Landing("room", hard_text()))


def test_a_short_budget_has_no_closing_sentence() -> None:
    for tokens in (1, 2, 10, 4 * CLOSING_TOKENS - 1):
        guard = Guard(ThinkingBudget(tokens), room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
        assert think(guard, [b" word"]) == (max(1, tokens - 1), Landing("tokens", ""))


def test_thinking_that_opens_again_ends_at_once() -> None:
    guard = Guard(ThinkingBudget(tokens=100), room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    found = think(guard, [b" word"])
    assert found and guard.landing == found[1]
    assert not guard.watch_answer(7)
    assert guard.watch(8, b" again", 0.0) == Landing("tokens", "")
    assert guard.landing == found[1]


def test_asking_takes_effect_at_the_next_token_of_thinking() -> None:
    guard = Guard(ThinkingBudget(), room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    assert guard.watch(1, b" word", 0.0) is None
    guard.answer_now()
    assert guard.watch(2, b"\n", 0.0) == Landing("asked", f"\n{CLOSINGS['asked']}\n")


def test_an_answer_that_never_ends_is_told() -> None:
    guard = Guard(ThinkingBudget(), room_tokens=ENDLESS, closing_tokens=CLOSING_TOKENS)
    assert any(guard.watch_answer(at % 10) for at in range(5000))


def test_closings_speak_as_the_model_and_hold_no_tags() -> None:
    assert set(CLOSINGS) == {"tokens", "seconds", "room", "loop", "asked"}
    for closing in CLOSINGS.values():
        assert " I " in f" {closing} " and closing.endswith(".") and not set("<>\n") & set(closing)


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        (ThinkingBudget(tokens=0), "0 tokens"),
        (ThinkingBudget(seconds=0), "0 seconds"),
        (ThinkingBudget(seconds=math.nan), "nan seconds"),
        (ThinkingBudget(seconds=math.inf), "inf seconds"),
        (ThinkingBudget(answer_reserve_tokens=-1), "-1 tokens"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(budget: ThinkingBudget, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_budget(budget)
    with pytest.raises(ValueError, match=problem):
        Guard(budget, room_tokens=100, closing_tokens=CLOSING_TOKENS)
