"""Whether to run ahead, how far, and how sure a choice must be: from made-up measurements."""

from __future__ import annotations

import pytest

from localcascade.engine.margin import LEAST_LEAD, N_COMPARED, SAFETY, Margin
from localcascade.engine.pace import FIRST_PAUSE, MAX_DRAFT, N_CALM, N_TRIAL, Pace


def run_plain(pace: Pace, n: int) -> None:
    for _ in range(n):
        pace.note_plain(1.0)


def run_trial(pace: Pace, step_s: float, n_accepted: int = MAX_DRAFT) -> int:
    """Draft until it may not, or has for long; each draft takes step_s. How many drafts."""
    for n_drafts in range(3 * N_TRIAL):
        length = pace.choose_length()
        if not length:
            return n_drafts
        kept = min(length, n_accepted)
        pace.note_draft(length, kept)
        pace.note_ahead(step_s, kept + 1)
    return 3 * N_TRIAL


def wait(pace: Pace) -> int:
    """Count plain steps until it drafts again."""
    n = 0
    while not pace.choose_length():
        pace.note_plain(1.0)
        n += 1
        assert n < 100_000
    return n


def test_nothing_is_drafted_before_plain_steps_were_timed() -> None:
    pace = Pace("auto")
    assert wait(pace) == N_CALM


def test_what_is_faster_goes_on() -> None:
    pace = Pace("auto")
    run_plain(pace, N_CALM)
    assert run_trial(pace, 2.0) == 3 * N_TRIAL
    assert pace.gain > 2


def test_what_is_slower_stops_and_is_tried_again_ever_later() -> None:
    pace = Pace("auto")
    run_plain(pace, N_CALM)
    pauses = []
    for _ in range(3):
        assert run_trial(pace, 12.0) == N_TRIAL
        pauses.append(wait(pace))
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]


def test_steps_that_bring_nothing_count() -> None:
    pace = Pace("auto")
    run_plain(pace, N_CALM)
    for _ in range(N_TRIAL):
        pace.note_draft(MAX_DRAFT, MAX_DRAFT)
        pace.note_ahead(2.0, MAX_DRAFT + 1)  # good for itself,
        pace.note_ahead(9.0, 0)  # but all is read again
    assert pace.choose_length() == 0


def test_on_never_stops_and_off_never_begins() -> None:
    forced, never = Pace("on"), Pace("off")
    assert run_trial(forced, 99.0) == 3 * N_TRIAL
    run_plain(never, 1000)
    assert never.choose_length() == 0 and not never.is_on


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_drafts_grow_while_they_are_right_and_rest_while_they_are_wrong(mode: str) -> None:
    pace = Pace(mode)
    run_plain(pace, N_CALM)
    lengths = []
    for _ in range(4):
        lengths.append(pace.choose_length())
        pace.note_draft(lengths[-1], lengths[-1])
        pace.note_ahead(0.1, lengths[-1] + 1)
    assert lengths == [2, 5, MAX_DRAFT, MAX_DRAFT]
    pace.note_draft(MAX_DRAFT, 3)
    assert pace.choose_length() == 3
    rests = []
    for _ in range(7):
        pace.note_draft(3, 0)
        pace.note_ahead(0.1, 1)
        rests.append(0)
        while not pace.choose_length():
            rests[-1] += 1
    assert rests == [2, 4, 8, 16, 32, 32, 32]


def test_one_step_that_was_interrupted_does_not_make_drafts_look_good() -> None:
    pace = Pace("auto")
    run_plain(pace, N_CALM)
    pace.note_plain(1000.0)
    assert run_trial(pace, 12.0) == N_TRIAL


def test_a_lead_must_be_several_times_what_was_seen_to_change() -> None:
    margin = Margin()
    for _ in range(N_COMPARED):
        margin.note(0.5, 100, is_right=True)
    margin.note(0.1, 100, is_right=True)
    assert margin.least_lead == SAFETY * 0.5


def test_before_enough_was_compared_only_so_much_is_taken() -> None:
    margin = Margin()
    assert not margin.needs_comparison(100, n_taken=N_COMPARED - 1)
    assert margin.needs_comparison(100, n_taken=N_COMPARED)
    for _ in range(N_COMPARED):
        margin.note(0.0, 100, is_right=True)
    assert not margin.needs_comparison(127, n_taken=10_000)
    assert margin.needs_comparison(128, n_taken=N_COMPARED)  # longer contexts have other kernels
    assert margin.least_lead == LEAST_LEAD


def test_tokens_that_were_wrong_are_counted() -> None:
    margin = Margin()
    margin.note(3.0, 10, is_right=False)
    assert margin.n_wrong == 1 and margin.least_lead == 3.0 * SAFETY
