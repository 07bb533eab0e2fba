"""Drafts from a sequence's own tokens, against a search that looks at everything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.engine import lookup
from localcascade.engine.lookup import MAX_CANDIDATES, MAX_MATCH, Lookup

N_GRAM = 3


@pytest.fixture(autouse=True, scope="module")
def look_for_short_passages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "N_GRAM", N_GRAM)
        yield


def search(tokens: Sequence[int], n_most: int) -> list[int]:
    """What must be drafted, found the slow way."""
    end = list(tokens[-N_GRAM:])
    places = [i for i in range(N_GRAM, len(tokens)) if list(tokens[i - N_GRAM : i]) == end]
    best, n_best = 0, 0
    for place in places[::-1][:MAX_CANDIDATES]:
        n = 0
        while n < min(MAX_MATCH, place) and tokens[place - 1 - n] == tokens[len(tokens) - 1 - n]:
            n += 1
        if n > n_best:
            best, n_best = place, n
    endless = [*tokens[best:]] * n_most
    return endless[: min(n_most, n_best)]


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 9))
def test_it_finds_the_longest_of_the_latest_matches(tokens: list[int], n_most: int) -> None:
    assert Lookup(tokens).draft(n_most) == (search(tokens, n_most) if n_most else [])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80), st.randoms())
def test_what_is_appended_is_found_as_if_it_had_always_been_there(
    tokens: list[int], dice: random.Random
) -> None:
    grown: list[int] = []
    growing = Lookup(grown)
    for token in tokens:
        grown.append(token)
        if dice.random() < 0.6:
            assert growing.draft(5) == Lookup(list(grown)).draft(5)


def test_a_longer_match_is_preferred_to_a_later_one() -> None:
    tokens = [9, 8, 1, 2, 3, 4, 4, 7, 1, 2, 3, 5, 5, 9, 8, 1, 2, 3]
    assert Lookup(tokens).draft(2) == [4, 4]


def test_no_more_is_guessed_than_agreed() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    assert Lookup(tokens).draft(8) == [4, 5, 6]


def test_what_goes_round_is_expected_to_go_on() -> None:
    assert Lookup([7, 7, 7, 7, 7]).draft(4) == [7, 7, 7, 7]
    assert Lookup([1, 2] * 5).draft(5) == [1, 2, 1, 2, 1]


def test_a_long_prompt_is_indexed_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "INDEX_STEP", 10)
    tokens = [1, 2, 3, 4] * 8
    drafter = Lookup(tokens)
    assert [drafter.draft(2) for _ in range(3)] == [[], [], [1, 2]]


def test_a_token_costs_the_same_however_long_the_sequence_is() -> None:
    class Counted(list[int]):
        n_read = 0

        def __getitem__(self, key: object) -> object:  # type: ignore[override]
            found = super().__getitem__(key)  # type: ignore[call-overload]
            Counted.n_read += len(found) if isinstance(key, slice) else 1
            return found

    def count_reads(n: int) -> int:
        tokens = Counted([1, 2, 3] * n)
        drafter = Lookup(tokens)
        while not drafter.draft(4):
            pass
        Counted.n_read = 0
        tokens.append(1)
        assert drafter.draft(4) == [2, 3, 1, 2]
        return Counted.n_read

    assert count_reads(20_000) == count_reads(200) < 1000
