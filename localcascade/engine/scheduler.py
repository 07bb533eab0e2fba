"""Many answers at once: each step is one micro-batch, in which every answer has its share.

An answer that goes on takes one token of a micro-batch; those that read their prompts share the
rest alike. So whoever comes delays the others by one micro-batch at most.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

from localcascade.engine.checkpoints import Checkpoint
from localcascade.engine.generation import Generation
from localcascade.engine.margin import Margin
from localcascade.engine.model import Model
from localcascade.engine.pace import Pace
from localcascade.engine.session import Session
from localcascade.engine.slots import Slots
from localcascade.engine.speculation import Speculation
from localcascade.errors import NativeError
from localcascade.prompt.events import FinishReason

Job = Callable[[Session], None]
"""Something that needs the whole context for itself, such as reading a text for its logits."""

MARGIN_TOKENS = 64
"""Room that an answer has at least when it is let in beside others, lest it be sent out at once."""

Fed = tuple[Generation, Sequence[int], list[int], int]
"""An answer, its tokens in the batch, the drafts behind them, and the place of the last before
those."""


class Scheduler:
    """Runs a model's context; one thread steps, any thread submits.

    Args:
        model: The model.
        slots: Its sessions.
        flush: Called after each step, to send on what was emitted.
        save: Takes the name of a session whose state is to be kept, and its checkpoints.
        lookup: Whether greedy answers are run ahead of, as LoadOptions has it.
    """

    def __init__(
        self,
        model: Model,
        slots: Slots,
        flush: Callable[[], None] = lambda: None,
        save: Callable[[str, Sequence[Checkpoint]], None] | None = None,
        lookup: str = "off",
    ) -> None:
        self._model, self._slots, self._flush, self._save = model, slots, flush, save
        self.pace, self.margin = Pace(lookup), Margin()
        self._inbox: queue.SimpleQueue[Sequence[Generation | Job]] = queue.SimpleQueue()
        self._waiting: deque[Generation | Job] = deque()
        self._active: list[Generation] = []

    def submit(self, *work: Generation | Job) -> None:
        """Hand in work, from any thread: answers to generate that come together, or a job.

        Answers begin in the order they came, as far as there is room; a job waits for all before
        it, and all after it wait for the job. A job tells of its errors by itself.
        """
        self._inbox.put(work)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._active or self._waiting or not self._inbox.empty())

    def serve(self) -> None:
        """Step for ever; what is no error of ours is a crash."""
        while True:
            if not self.is_busy:
                self._waiting.extend(self._inbox.get())
            self.step()

    def step(self) -> None:
        """Let in who has come, and run one micro-batch."""
        while not self._inbox.empty():
            self._waiting.extend(self._inbox.get())
        self._end_cancelled()
        self._admit()
        if self._active:
            try:
                self._advance_timed()
            except NativeError as exc:
                self._fail_all(exc)
        self._flush()

    def _end_cancelled(self) -> None:
        for work in (*self._active, *self._waiting):
            if isinstance(work, Generation) and work.wishes.is_cancelled:
                if work.session is None:
                    self._waiting.remove(work)
                    work.end("cancelled")
                else:
                    self._end(work, "cancelled")

    def _admit(self) -> None:
        for work in tuple(self._waiting):
            if not isinstance(work, Generation):
                if self._active or work is not self._waiting[0]:
                    return
                self._waiting.popleft()
                work(self._slots.take_all())
            elif work.leader is None or work.leader.has_read:
                if not (self._slots.has_idle and self._has_room(work)):
                    return
                self._waiting.remove(work)
                for checkpoint in work.saved:
                    self._slots.checkpoints.put(checkpoint)
                work.seat(self._slots.claim(work.tokens))
                self._active.append(work)
                if work.speculation is None and self.pace.is_on and work.is_plain_greedy:
                    work.speculation = Speculation(self._model, work, self.pace, self.margin)

    def _has_room(self, newcomer: Generation) -> bool:
        """Tell whether an answer fits beside the active ones, with a little to grow for each."""
        if not self._active:
            return True
        room = self._model.info.n_ctx
        for one in (*self._active, newcomer):
            n_shared = one.n_prompt if one.leader else 0
            room -= len(one.tokens) - n_shared + MARGIN_TOKENS
        return room >= 0

    def _advance_timed(self) -> None:
        """Advance, and let the one that is alone know what its step took."""
        alone = self._active[0] if len(self._active) == 1 else None
        if alone is None or alone.speculation is None or not alone.has_read:
            self._advance()
            return
        begun_s, n_before = time.perf_counter(), len(alone.tokens)
        self._advance()
        elapsed_s = time.perf_counter() - begun_s
        alone.speculation.note_time(elapsed_s, len(alone.tokens) - n_before)

    def _advance(self) -> None:
        fed = self._fill()
        while not self._model.batch.decode(self._model.context):
            self._make_room()
            fed = self._fill()
        for one, part, drafts, row in fed:
            if one.note_part(part) and self._model.has_recurrent_state and one.session:
                self._slots.keep(one.session)
            try:
                reason = self._choose(one, drafts, row)
            except ValueError as exc:
                self._fail(one, exc)
                continue
            if reason is not None:
                self._end(one, reason)

    def _choose(self, one: Generation, drafts: list[int], row: int) -> FinishReason | None:
        """Choose what comes next for an answer all of whose tokens have been read."""
        if one.speculation is not None and one.has_read:
            return one.speculation.advance(row, drafts)
        if one.session and len(one.tokens) == len(one.session.tokens):
            return one.go_on(row)
        return None

    def _fill(self) -> list[Fed]:
        """Fill the batch: a token for each that goes on, equal parts of the rest for readers."""
        batch = self._model.batch
        batch.clear()
        fed: list[Fed] = []
        ordered = sorted(self._active, key=lambda one: not one.is_decoding)
        for n_before, one in enumerate(ordered):
            share = (self._model.n_batch - batch.n_tokens) // (len(ordered) - n_before)
            fed.append(self._feed(one, share))
        return fed

    def _feed(self, one: Generation, share: int) -> Fed:
        """Put an answer's share into the batch; drafts only where nobody else waits for it."""
        assert one.session is not None
        ahead, drafts = one.speculation, list[int]()
        if ahead is not None and len(self._active) > 1:
            ahead.forget()
        part = one.next_part(ahead.limit_part(share) if ahead else share)
        start = len(one.session.tokens)
        reaches_end = start + len(part) == len(one.tokens)
        if ahead and one.has_read and len(self._active) == 1 and reaches_end:
            drafts = ahead.draft(len(part))
        n_logits = int(reaches_end or (ahead is not None and ahead.is_repeating)) + len(drafts)
        batch = self._model.batch
        row = batch.add(one.session.number, [*part, *drafts], start, n_logits=n_logits)
        return one, part, drafts, row - len(drafts)

    def _make_room(self) -> None:
        """Free memory: what idle sessions hold, then what the last one that was let in does."""
        if self._slots.drop_idle():
            return
        if len(self._active) == 1:
            raise NativeError("llama_decode", 1, "The context has no room: a larger --ctx has.")
        last = self._active.pop()
        self._release(last)
        self._waiting.appendleft(last)

    def _end(self, one: Generation, reason: FinishReason) -> None:
        self._active.remove(one)
        if self._save and one.session_name is not None and one.session:
            self._save(one.session_name, self._slots.collect(one.session))
        self._release(one)
        one.end(reason)

    def _release(self, one: Generation) -> None:
        assert one.session is not None
        self._slots.release(one.session)
        one.session = None
        if one.speculation is not None:
            one.speculation.forget()

    def _fail_all(self, error: NativeError) -> None:
        """After a failed decode nobody knows what the context holds."""
        for one in tuple(self._active):
            self._fail(one, error)
        self._slots.forget()

    def _fail(self, one: Generation, error: Exception) -> None:
        assert one.session is not None
        self._active.remove(one)
        one.session.clear()  # there may be drafts behind what it holds
        self._release(one)
        one.fail(error)
        one.free()
        one.wishes.is_cancelled = True  # its request has failed: no other answer is wanted
