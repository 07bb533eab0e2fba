"""State checkpoints of a hybrid model in memory: what lets a chat go on, fork and be edited.

The recurrent part of a hybrid model cannot be rewound; it can be put back where a copy was taken.
Attention can be cut at any position. A checkpoint therefore holds the state after a token prefix,
either the recurrent part alone or all of it, and `find` says which to put back:

1. `full`, if given: the whole state (llama_state_seq_set_data_ext, flags 0);
2. `recurrent`, if given: the recurrent part (flags 1), then llama_memory_seq_rm(seq, n_tokens, -1).

Plain data, no I/O, one thread. Checkpoints are few and large, prefixes share long beginnings: they
are kept sorted, where the prefixes that share most with a query stand beside it, so tokens are
compared, never hashes.

A full state also carries the recurrent checkpoints inside its prefix, which is what makes it useful
after the template has dropped the thinking at its end. The store on disk is engine/archive.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

DEFAULT_BUDGET_BYTES = 1 << 30
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state of a sequence after a token prefix."""

    prefix: bytes
    """The tokens, uint32 little-endian, at least one."""
    state: bytes
    """As llama_state_seq_get_data_ext wrote it."""
    is_full: bool
    """True: attention and recurrent part (flags 0); False: the recurrent part only (flags 1)."""

    @property
    def n_tokens(self) -> int:
        """Length of the prefix, which is also the position that comes next."""
        return len(self.prefix) // TOKEN_BYTES

    @property
    def n_bytes(self) -> int:
        """What it costs."""
        return len(self.prefix) + len(self.state)

    @property
    def tokens(self) -> list[int]:
        """The prefix as token ids."""
        return [int(token) for token in np.frombuffer(self.prefix, "<u4")]


@dataclass(frozen=True, slots=True)
class Restoration:
    """How to bring a sequence to a position; see the module for the order."""

    n_tokens: int
    """Tokens that need not be read again."""
    full: Checkpoint | None
    """None: the sequence's own attention is used. Otherwise it may hold more tokens than
    `n_tokens`, and only those before are the caller's."""
    recurrent: Checkpoint | None
    """None: the full state ends exactly at `n_tokens`."""


class Checkpoints:
    """Checkpoints of one model within a budget; those not used for longest go first.

    Whenever a checkpoint is used, so is the shortest one that it begins with: the system prompt and
    tools of a conversation serve every other that has them, and outlive its turns.

    Args:
        budget_bytes: Most that all of them, tokens included, may take; 0 keeps none.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._recurrent, self._full = _Shelf(), _Shelf()
        self._by_use: dict[Checkpoint, None] = {}  # the least recently used first
        self.n_bytes = 0

    def __len__(self) -> int:
        """Count them."""
        return len(self._by_use)

    def find(self, tokens: Sequence[int], n_covered: int = 0) -> Restoration | None:
        """Find the longest prefix of a prompt whose state can be put back.

        Args:
            tokens: The prompt's ids, without the last if its logits are wanted.
            n_covered: How many of them the sequence's own attention holds already.

        Returns:
            What to put back, or None. It counts as used.
        """
        query = pack_tokens(tokens)
        carrier, n_carried = self._full.find_nearest(query)
        reach = max(n_covered, n_carried) * TOKEN_BYTES
        recurrent, full = self._recurrent.find_prefix(query[:reach]), self._full.find_prefix(query)
        options = [Restoration(full.n_tokens, full, None)] if full else []
        if recurrent:
            lent = None if recurrent.n_tokens <= n_covered else carrier
            options.append(Restoration(recurrent.n_tokens, lent, recurrent))
        # Of two that reach as far, the one that need not put the attention back is cheaper.
        best = max(options, key=lambda one: (one.n_tokens, one.full is None), default=None)
        for used in (best.full, best.recurrent) if best else ():
            if used:
                self._use(used)
        return best

    def add(self, tokens: Sequence[int], state: bytes, *, full: bool = False) -> bool:
        """Keep a state; one of the same prefix and kind is replaced.

        Args:
            tokens: All ids that the sequence held, from the start.
            state: Its state then.
            full: Whether the state is all of it, or only the recurrent part.

        Returns:
            False if it is larger than the budget; nothing has changed then.

        Raises:
            ValueError: There are no tokens.
        """
        if not len(tokens):
            raise ValueError("a checkpoint needs at least one token")
        return self.put(Checkpoint(pack_tokens(tokens), state, full))

    def put(self, checkpoint: Checkpoint) -> bool:
        """Keep a checkpoint that was made elsewhere, as `add` does."""
        if checkpoint.n_bytes > self.budget_bytes:
            return False
        old = self._shelf_of(checkpoint).get(checkpoint.prefix)
        if old:
            self.drop(old)
        self._shelf_of(checkpoint).put(checkpoint)
        self._by_use[checkpoint] = None
        self.n_bytes += checkpoint.n_bytes
        self._use(checkpoint)
        while self.n_bytes > self.budget_bytes:
            self.drop(next(old for old in self._by_use if old is not checkpoint))
        return True

    def drop(self, checkpoint: Checkpoint) -> None:
        """Forget one, as when llama.cpp refused it; one that is gone already is no error."""
        if checkpoint in self._by_use:
            del self._by_use[checkpoint]
            self._shelf_of(checkpoint).remove(checkpoint)
            self.n_bytes -= checkpoint.n_bytes

    def list_prefixes(self, tokens: Sequence[int], *, full: bool = False) -> list[Checkpoint]:
        """List those of one kind that a token sequence begins with, the longest first.

        It tells what is kept of a conversation, for engine/archive.py or to see whether a
        position is worth a checkpoint; nothing counts as used.
        """
        return (self._full if full else self._recurrent).list_prefixes(pack_tokens(tokens))

    def _use(self, checkpoint: Checkpoint) -> None:
        trunk = self._recurrent.list_prefixes(checkpoint.prefix)[-1:]
        for used in (checkpoint, *trunk):
            del self._by_use[used]
            self._by_use[used] = None

    def _shelf_of(self, checkpoint: Checkpoint) -> _Shelf:
        return self._full if checkpoint.is_full else self._recurrent


class _Shelf:
    """Checkpoints of one kind, sorted by the bytes of their prefix, no two alike."""

    def __init__(self) -> None:
        self._sorted: list[Checkpoint] = []

    def get(self, prefix: bytes) -> Checkpoint | None:
        at = bisect_left(self._sorted, prefix, key=_prefix_of)
        return next((one for one in self._sorted[at : at + 1] if one.prefix == prefix), None)

    def put(self, checkpoint: Checkpoint) -> None:
        self._sorted.insert(
            bisect_left(self._sorted, checkpoint.prefix, key=_prefix_of), checkpoint
        )

    def remove(self, checkpoint: Checkpoint) -> None:
        del self._sorted[bisect_left(self._sorted, checkpoint.prefix, key=_prefix_of)]

    def find_prefix(self, query: bytes) -> Checkpoint | None:
        """Find the longest that `query` begins with, which may be all of `query`."""
        while at := bisect_right(self._sorted, query, key=_prefix_of):
            before = self._sorted[at - 1]
            if query.startswith(before.prefix):
                return before
            # None that `query` begins with is longer than what it shares with its neighbour.
            query = query[: _count_common(before.prefix, query) * TOKEN_BYTES]
        return None

    def list_prefixes(self, query: bytes) -> list[Checkpoint]:
        """List all that `query` begins with, the longest first."""
        found: list[Checkpoint] = []
        while one := self.find_prefix(query):
            found.append(one)
            query = one.prefix[:-TOKEN_BYTES]
        return found

    def find_nearest(self, query: bytes) -> tuple[Checkpoint | None, int]:
        """Find the one that shares most tokens with `query` from the start, and how many."""
        at = bisect_right(self._sorted, query, key=_prefix_of)
        beside = self._sorted[max(0, at - 1) : at + 1]
        shared = [(one, _count_common(one.prefix, query)) for one in beside]
        return max(shared, key=lambda pair: pair[1], default=(None, 0))


_prefix_of = attrgetter("prefix")


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Write token ids as uint32, little-endian; OverflowError if one is negative."""
    return np.asarray(tokens, "<u4").tobytes()


def _count_common(left: bytes, right: bytes) -> int:
    """Count the tokens that two packed prefixes share from the start."""
    n_bytes = min(len(left), len(right))
    if left[:n_bytes] == right[:n_bytes]:
        return n_bytes // TOKEN_BYTES
    a, b = (np.frombuffer(data[:n_bytes], "<u4") for data in (left, right))
    return int(np.argmax(a != b))
