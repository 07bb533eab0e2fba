"""Checkpoints in memory: what is found, what is kept, against a list that is searched naively."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcascade.engine.checkpoints import Checkpoint, Checkpoints, Restoration, pack_tokens
from tests.soak import sample

Tokens = tuple[int, ...]
Key = tuple[Tokens, bool]


def begins(longer: Tokens, shorter: Tokens) -> bool:
    return longer[: len(shorter)] == shorter


@dataclass
class Naive:
    """The rules told plainly: everything in one list, the least recently used first."""

    budget_bytes: int
    kept: list[tuple[Key, bytes]] = field(default_factory=list)

    def n_bytes(self) -> int:
        return sum(4 * len(tokens) + len(state) for (tokens, _), state in self.kept)

    def use(self, key: Key) -> None:
        trunks = sorted(
            (k for k, _ in self.kept if not k[1] and begins(key[0], k[0])), key=lambda k: len(k[0])
        )
        for used in (key, *trunks[:1]):
            at = next(i for i, (k, _) in enumerate(self.kept) if k == used)
            self.kept.append(self.kept.pop(at))

    def add(self, key: Key, state: bytes) -> bool:
        if 4 * len(key[0]) + len(state) > self.budget_bytes:
            return False
        self.kept = [(k, s) for k, s in self.kept if k != key] + [(key, state)]
        self.use(key)
        while self.n_bytes() > self.budget_bytes:
            del self.kept[next(i for i, (k, _) in enumerate(self.kept) if k != key)]
        return True

    def find(self, prompt: Tokens, n_covered: int) -> tuple[int, bool]:
        """Tokens that need not be read, and whether the sequence's own attention will do."""
        best = (0, True)
        for (tokens, is_full), _ in self.kept:
            if not begins(prompt, tokens):
                continue
            lent = any(k[1] and begins(k[0], tokens) for k, _ in self.kept)
            own = not is_full and len(tokens) <= n_covered
            if is_full or own or lent:
                best = max(best, (len(tokens), own))
        return best

    def states(self) -> dict[Key, bytes]:
        return dict(self.kept)


def key_of(checkpoint: Checkpoint) -> Key:
    return tuple(checkpoint.tokens), checkpoint.is_full


def check_restoration(found: Restoration, naive: Naive, prompt: Tokens, n_covered: int) -> None:
    """What is to be put back must end where it says, and its attention must cover that."""
    pieces = [piece for piece in (found.full, found.recurrent) if piece]
    assert all(naive.states()[key_of(piece)] == piece.state for piece in pieces)
    last = found.recurrent or found.full
    assert last is not None and last.n_tokens == found.n_tokens
    assert begins(prompt, tuple(last.tokens))
    if found.full:
        assert begins(tuple(found.full.tokens), prompt[: found.n_tokens])
    else:
        assert found.n_tokens <= n_covered


def play(seed: int, n_steps: int) -> None:
    """Add, look up and drop at random, among prompts that share much."""
    rng = random.Random(seed)
    budget = rng.choice([0, 30, 90, 200, 1000])
    store, naive = Checkpoints(budget), Naive(budget)
    for step in range(n_steps):
        tokens = tuple(rng.choices((0, 1, 2**17), weights=(8, 2, 1), k=rng.randrange(1, 9)))
        if rng.random() < 0.5:
            state, full = str(step).encode() * rng.randrange(1, 6), rng.random() < 0.3
            assert store.add(tokens, state, full=full) == naive.add((tokens, full), state)
        else:
            n_covered = rng.randrange(len(tokens) + 1)
            found, (n_tokens, own) = store.find(tokens, n_covered), naive.find(tokens, n_covered)
            assert (found.n_tokens if found else 0) == n_tokens
            if found:
                assert (found.full is None) == own
                check_restoration(found, naive, tokens, n_covered)
                for piece in (found.full, found.recurrent):
                    if piece:
                        naive.use(key_of(piece))
                if rng.random() < 0.1:
                    dropped = found.recurrent or found.full
                    assert dropped
                    store.drop(dropped)
                    store.drop(dropped)
                    naive.kept = [one for one in naive.kept if one[0] != key_of(dropped)]
        assert store.n_bytes == naive.n_bytes() <= budget and len(store) == len(naive.kept)
        kept = [key for key in naive.states() if not key[1] and begins(tokens, key[0])]
        listed = [key_of(one) for one in store.list_prefixes(tokens)]
        assert listed == sorted(kept, key=lambda key: -len(key[0]))


@pytest.mark.parametrize("seed", sample(range(400), 40))
def test_it_keeps_and_finds_what_a_naive_list_does(seed: int) -> None:
    play(seed, n_steps=300)


@given(stored=st.sets(st.binary(min_size=1, max_size=12), min_size=1), query=st.binary(max_size=14))
@settings(max_examples=200, deadline=None)
def test_the_longest_prefix_is_found_whatever_is_stored_beside_it(
    stored: set[bytes], query: bytes
) -> None:
    store = Checkpoints()
    for tokens in stored:
        store.add(list(tokens), tokens)
    expected = max((one for one in stored if query.startswith(one)), key=len, default=None)
    found = store.find(list(query), n_covered=len(query))
    assert (found.recurrent.state if found and found.recurrent else None) == expected


def test_a_full_state_carries_the_checkpoints_inside_it() -> None:
    # A chat left its slot; its thinking is gone from the next prompt, which forks at token 6.
    store = Checkpoints()
    store.add([1, 2], b"system")
    store.add([1, 2, 3, 4], b"turn")
    store.add([1, 2, 3, 4, 5, 6, 7], b"all of it", full=True)
    found = store.find([1, 2, 3, 4, 5, 9])
    assert found and found.full and found.recurrent and found.n_tokens == 4
    assert (found.full.state, found.recurrent.state) == (b"all of it", b"turn")
    # A sequence that still holds those tokens needs the recurrent part only.
    found = store.find([1, 2, 3, 4, 5, 9], n_covered=5)
    assert found and found.full is None and found.n_tokens == 4
    # And one that goes on where the state ends needs nothing else.
    found = store.find([1, 2, 3, 4, 5, 6, 7, 8])
    assert found and found.recurrent is None and found.n_tokens == 7


def test_without_attention_a_recurrent_checkpoint_is_no_use() -> None:
    store = Checkpoints()
    store.add([1, 2, 3], b"recurrent")
    assert store.find([1, 2, 3, 4], n_covered=2) is None
    assert store.find([1, 2, 3, 4], n_covered=3)


def test_the_system_prompt_outlives_the_turns() -> None:
    system, turn_bytes = list(range(10)), 100
    store = Checkpoints(budget_bytes=1200)
    store.add(system, b"s" * turn_bytes)
    for turn in range(1, 40):
        store.add(system + [99] * turn, b"t" * turn_bytes)
    # Of 1200 bytes the system prompt takes 140, each of the last three turns nearly 300.
    kept = [one.n_tokens for one in store.list_prefixes(system + [99] * 40)]
    assert kept == [49, 48, 47, 10]


def test_what_cannot_be_kept_changes_nothing() -> None:
    store = Checkpoints(budget_bytes=20)
    assert store.add([1], b"x" * 16) and store.n_bytes == 20
    assert not store.add([2], b"x" * 17)
    assert store.n_bytes == 20 and store.find([1], n_covered=1)
    with pytest.raises(ValueError, match="at least one token"):
        store.add([], b"x")


def test_tokens_are_packed_as_the_file_format_says() -> None:
    assert pack_tokens([1, 131071]) == b"\x01\0\0\0\xff\xff\x01\0"
    assert Checkpoint(pack_tokens([5, 131071]), b"", False).tokens == [5, 131071]
