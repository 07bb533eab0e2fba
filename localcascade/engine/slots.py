"""The sequences of a context: who has which, and where a prompt finds the state it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localcascade.engine import _llama
from localcascade.engine.checkpoints import Checkpoint, Checkpoints, Restoration, pack_tokens
from localcascade.engine.model import LEAST_TOKENS, Model
from localcascade.engine.session import Session, count_common
from localcascade.errors import NativeError

N_SAVED = 4
"""Recurrent states kept on disk with a session: the last question's two ends, and a turn before."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a prompt can start from."""

    n_tokens: int
    """Tokens that need not be read."""
    source: Session | None = None
    """Session whose attention covers them."""
    restoration: Restoration | None = None
    """State to put back; None if the source stands exactly there, or its model can rewind."""


class Slots:
    """The sessions of a context, handed out one by one.

    An idle session keeps what it holds until its place is needed: the least recently used goes
    first, and what only it knew is put among the checkpoints.

    Args:
        model: Whose context it is; nothing else may decode there.
        checkpoints: States to come back to.
    """

    def __init__(self, model: Model, checkpoints: Checkpoints) -> None:
        self._model, self.checkpoints = model, checkpoints
        self._sessions = [Session(model, number) for number in range(model.info.n_parallel)]
        self._idle = list(self._sessions)  # the least recently used first

    @property
    def has_idle(self) -> bool:
        """Whether a session can be claimed."""
        return bool(self._idle)

    def claim(self, tokens: Sequence[int]) -> Session:
        """Hand out a session that holds as much of the beginning of a prompt as can be had.

        Args:
            tokens: The prompt, at least one token; its last is never among those held, for the
                logits after it.

        Returns:
            A session; there must be an idle one.
        """
        start = self._find_start(tokens[: len(tokens) - 1])
        session = self._choose_place(start)
        self._idle.remove(session)
        try:
            self._bring(session, start)
        except NativeError:  # the state was refused: do without it
            for refused in _list_checkpoints(start):
                self.checkpoints.drop(refused)
            session.clear()
        return session

    def release(self, session: Session) -> None:
        """Take a session back; what it holds is kept as long as nobody needs its place."""
        self._idle.append(session)

    def drop_idle(self) -> bool:
        """Make room: forget what the least recently used idle session holds.

        Returns:
            False if none held anything.
        """
        session = next((session for session in self._idle if session.tokens), None)
        if session is None:
            return False
        self._retire(session)
        return True

    def take_all(self) -> Session:
        """Forget what all sessions but the first hold, and lend the first for a whole context.

        Returns:
            The first session, which must not be used after the next claim; all must be idle.
        """
        for session in self._sessions[1:]:
            self._retire(session)
        return self._sessions[0]

    def forget(self) -> None:
        """Forget what every session holds, as after a failure of llama.cpp."""
        _llama.clear_memory(self._model.context)
        for session in self._sessions:
            session.tokens.clear()

    def keep(self, session: Session) -> None:
        """Put the recurrent state of a session among the checkpoints, unless one is near."""
        known = self.checkpoints.list_prefixes(session.tokens)
        n_known = known[0].n_tokens if known else 0
        if len(session.tokens) - n_known >= LEAST_TOKENS:
            state = _llama.read_recurrent(self._model.context, session.number)
            self.checkpoints.add(session.tokens, state)

    def collect(self, session: Session) -> list[Checkpoint]:
        """Collect what is needed to go on from a session, or from its last turns, another day.

        Args:
            session: The session, which holds something.

        Returns:
            Its whole state, and the last recurrent ones on the way to it.
        """
        state = _llama.read_state(self._model.context, session.number)
        whole = Checkpoint(pack_tokens(session.tokens), state, is_full=True)
        return [whole, *self.checkpoints.list_prefixes(session.tokens)[:N_SAVED]]

    def _find_start(self, tokens: Sequence[int]) -> Start:
        shared = {session: count_common(session.tokens, tokens) for session in self._sessions}
        source = max(self._sessions, key=lambda session: shared[session])
        if not self._model.has_recurrent_state:
            best = Start(shared[source], source)
        else:
            ready = [one for one in self._sessions if len(one.tokens) == shared[one]]
            best = max((Start(shared[one], one) for one in ready), key=_n_tokens, default=Start(0))
        found = self.checkpoints.find(tokens, shared[source])
        if found is None or found.n_tokens <= best.n_tokens:
            return best
        return Start(found.n_tokens, None if found.full else source, found)

    def _choose_place(self, start: Start) -> Session:
        """Choose an idle session: the source itself if it only goes on, else the least useful."""
        if start.source in self._idle and start.n_tokens == len(start.source.tokens):
            return start.source
        others = [session for session in self._idle if session is not start.source]
        empty = (session for session in others if not session.tokens)
        return next(empty, (others or self._idle)[0])

    def _bring(self, session: Session, start: Start) -> None:
        """Bring a session to where a prompt starts."""
        found, recurrent = start.restoration, None
        if found is not None and found.recurrent is not None:
            recurrent = found.recurrent.state
        if session is start.source:
            if start.n_tokens == 0:
                session.clear()
            elif start.n_tokens < len(session.tokens):
                session.rewind(start.n_tokens, recurrent)
            return
        self._retire(session)
        if start.source is not None and start.n_tokens:
            session.share(start.source, start.n_tokens, recurrent)
        elif found is not None and found.full is not None:
            session.load(found.full.tokens, found.full.state)
            if start.n_tokens < len(session.tokens):
                session.rewind(start.n_tokens, recurrent)

    def _retire(self, session: Session) -> None:
        """Empty a session; what is mostly unknown to the others is put among the checkpoints.

        One that shares most with another is an earlier turn, whose thinking nobody asks for again.
        """
        others = (one.tokens for one in self._sessions if one is not session)
        n_shared = max((count_common(one, session.tokens) for one in others), default=0)
        n_own, context = len(session.tokens) - n_shared, self._model.context
        if (
            n_own >= max(n_shared, LEAST_TOKENS)
            and _llama.measure_state(context, session.number) <= self.checkpoints.budget_bytes
        ):
            state = _llama.read_state(context, session.number)
            self.checkpoints.add(session.tokens, state, full=True)
        session.clear()


def _n_tokens(start: Start) -> int:
    return start.n_tokens


def _list_checkpoints(start: Start) -> list[Checkpoint]:
    found = start.restoration
    return [one for one in (found.full, found.recurrent) if one] if found else []
