"""One answer under way: its tokens, the last of which are still to be read, and what becomes of it.

There is no difference between reading a prompt, going on from a token, feeding a closing sentence
and coming back after a pause: tokens that the session does not hold yet are read, and after the
last of them the next one is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localcascade.engine import _llama
from localcascade.engine.checkpoints import Checkpoint
from localcascade.engine.chooser import Chooser
from localcascade.engine.composer import Prompt, count_message_tokens, list_droppable
from localcascade.engine.model import Model
from localcascade.engine.sampling import plan_chain, resolve_sampling
from localcascade.engine.session import Session
from localcascade.engine.speculation import Speculation
from localcascade.engine.turn import Turn
from localcascade.prompt.budget import CLOSINGS, Guard, ThinkingBudget, write_closing
from localcascade.prompt.events import (
    ContextEnd,
    Done,
    Event,
    FinishReason,
    PromptProgress,
    Timings,
    TokenLogprob,
    Usage,
)
from localcascade.prompt.parser import END_THINK


@dataclass(slots=True)
class Wishes:
    """What a client wants of a request since it was sent; set from any thread."""

    is_cancelled: bool = False
    """Obeyed before the next micro-batch."""
    wants_answer: bool = False
    """The thinking is to end now."""


class Generation:
    """One answer under way.

    Args:
        model: The model.
        prompt: What it answers.
        emit: Takes its events.
        fail: Takes the error that ends it, if one does.
        wishes: The request's.
        index: Which of the request's answers it is.

    Raises:
        ValueError: llama.cpp does not understand the grammar.
    """

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        emit: Callable[[Event], None],
        fail: Callable[[Exception], None],
        wishes: Wishes,
        index: int = 0,
    ) -> None:
        self._model, self._prompt, self._emit, self.fail = model, prompt, emit, fail
        self.wishes, self._index = wishes, index
        self._turn = Turn(model.vocabulary, prompt.request, prompt.opens_thinking, index)
        # Answers to the same prompt draw with seeds of their own.
        sampling = resolve_sampling(prompt.request.sampling, model.metadata, index)
        steps = plan_chain(sampling, model.info.n_vocab)
        self._chooser = Chooser(model, steps, prompt.grammar)
        self.is_plain_greedy = steps == (("greedy", ()),) and prompt.request.logprobs is None
        """Whether nothing but the logits' order decides, a grammar aside, and nobody sees them."""
        self._guard = _make_guard(model, prompt)
        self._begun_s = time.perf_counter()
        self._first_s = 0.0  # when the prompt had been read
        self._n_reused = -1
        self._was_closed = False
        self.tokens = list(prompt.tokens)
        self.session: Session | None = None
        self.leader: Generation | None = None
        """The one whose prompt, which is the same, is to be read first."""
        self.saved: tuple[Checkpoint, ...] = ()
        """States of its conversation that were on disk."""
        self.speculation: Speculation | None = None
        """What runs ahead of it, if anything does."""

    @property
    def session_name(self) -> str | None:
        """Name under which its state is to be kept on disk."""
        return self._prompt.request.session

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self._prompt.tokens)

    @property
    def has_read(self) -> bool:
        """Whether the prompt has been read, or never will be."""
        return self._first_s > 0

    @property
    def is_decoding(self) -> bool:
        """Whether no more than the last token is to be read."""
        return self.session is not None and len(self.tokens) == len(self.session.tokens) + 1

    def seat(self, session: Session) -> None:
        """Give it a session, which holds some of its tokens."""
        self.session = session
        if self._n_reused < 0:
            self._begun_s = time.perf_counter()
            self._n_reused = len(session.tokens)
            self._tell_progress()

    def next_part(self, n_most: int) -> Sequence[int]:
        """Get the tokens to be read next, up to where a checkpoint is due.

        Args:
            n_most: Most of them.

        Returns:
            Token ids, at least one.
        """
        start = len(self._held)
        mark = next((mark for mark in self._prompt.marks if mark > start), len(self.tokens))
        return self.tokens[start : min(start + n_most, mark)]

    def note_part(self, part: Sequence[int]) -> bool:
        """Take note that tokens have been read.

        Returns:
            Whether a checkpoint is due.
        """
        self._held.extend(part)
        if not self.has_read:
            self._tell_progress()
        return len(self._held) in self._prompt.marks

    def go_on(self, row: int) -> FinishReason | None:
        """Choose the next token, all others having been read.

        Args:
            row: The last one's place in the batch.

        Returns:
            Why it is over, or None.
        """
        if not self._first_s:
            self._first_s = time.perf_counter()
        token = self._chooser.choose(row, is_answer=not self._turn.is_thinking)
        if self._prompt.request.logprobs is not None:
            self._emit(self._describe(token, row, self._prompt.request.logprobs))
        if not self._model.vocabulary.is_eog(token):
            return self._append(token) or self._find_end()
        if self._guard is None or self._was_closed or not self._turn.is_thinking:
            return "stop"
        self._was_closed = True  # it would end without an answer
        self._force(_tokenize_closing(self._model, ""))
        return self._find_end()

    def measure_lead(self, row: int, token: int | None = None) -> float:
        """Tell how far a token leads all others after one of the batch, in logits.

        Args:
            row: That one's place in the batch.
            token: The token; None is the likeliest, which has no lead where it is forbidden.
        """
        is_answer = not self._turn.is_thinking
        return self._chooser.measure_lead(row, token, is_answer=is_answer)

    def end(self, reason: FinishReason) -> None:
        """Tell what was held back, and that it is over; frees the samplers."""
        self._first_s = self._first_s or time.perf_counter()
        is_whole = reason == "stop"
        for event in self._turn.finish(is_truncated=not is_whole):
            self._emit(event)
        if reason == "length" and len(self.tokens) > self._model.info.n_ctx:
            messages = self._prompt.request.messages
            n_ctx = self._model.info.n_ctx
            sizes = count_message_tokens(self._model.vocabulary, messages, n_ctx)
            self._emit(ContextEnd(n_ctx, sizes, list_droppable(messages), self._index))
        calls = is_whole and self._turn.n_calls > 0
        self._emit(self._sum_up("tool_calls" if calls else reason))
        self.free()

    def free(self) -> None:
        """Free the samplers; nothing must be chosen any more."""
        self._first_s = self._first_s or time.perf_counter()
        self._chooser.free()

    @property
    def _held(self) -> list[int]:
        assert self.session is not None
        return self.session.tokens

    def _append(self, token: int) -> FinishReason | None:
        """Add a token and tell what became certain; in thinking, land if it is time."""
        was_thinking = self._turn.is_thinking
        self._take(token)
        if self._guard is None:
            return None
        if not was_thinking:
            return "length" if self._guard.watch_answer(token) else None
        if self.wishes.wants_answer:
            self._guard.answer_now()
        if self._turn.is_thinking:
            elapsed_s = time.perf_counter() - self._first_s
            piece = self._model.vocabulary.piece(token)
            if landing := self._guard.watch(token, piece, elapsed_s):
                self._force(_tokenize_closing(self._model, landing.text))
        return None

    def _force(self, tokens: Sequence[int]) -> None:
        self._turn.drop_character()
        for token in tokens:
            self._chooser.accept(token)
            self._take(token)

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        for event in self._turn.take(token):
            self._emit(event)

    def _find_end(self) -> FinishReason | None:
        if self._turn.is_stopped:
            return "stop"
        limit = self._prompt.request.sampling.max_tokens
        if limit is not None and self._turn.n_completion >= limit:
            return "length"
        return "length" if len(self.tokens) > self._model.info.n_ctx else None

    def _tell_progress(self) -> None:
        if self._index == 0:
            done = min(len(self._held), self.n_prompt)
            self._emit(PromptProgress(done, self.n_prompt, self._n_reused))

    def _describe(self, token: int, row: int, n_top: int) -> TokenLogprob:
        """Tell how likely a token was among all, before the samplers saw them."""
        logits = _llama.read_logits_row(self._model.context, row, self._model.info.n_vocab)
        scores = logits.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        likeliest = np.argpartition(scores, -n_top)[-n_top:] if n_top else np.empty(0, int)
        ranked = likeliest[np.argsort(-scores[likeliest])].tolist()
        top = tuple((self._spell(one), float(scores[one])) for one in ranked)
        return TokenLogprob(self._spell(token), float(scores[token]), top, self._index)

    def _spell(self, token: int) -> str:
        return self._model.vocabulary.piece(token).decode("utf-8", "replace")

    def _sum_up(self, reason: FinishReason) -> Done:
        turn, ahead, now_s = self._turn, self.speculation, time.perf_counter()
        generation_s = max(now_s - self._first_s, 1e-9)
        return Done(
            reason,
            Usage(
                prompt_tokens=self.n_prompt,
                reused_tokens=max(0, self._n_reused),
                thinking_tokens=turn.n_thinking,
                completion_tokens=turn.n_completion,
                drafted_tokens=ahead.n_drafted if ahead else 0,
                accepted_tokens=ahead.n_accepted if ahead else 0,
            ),
            Timings(
                load_s=self._model.info.load_s,
                prompt_s=self._first_s - self._begun_s,
                generation_s=generation_s,
                tokens_per_s=turn.n_completion / generation_s,
            ),
            self._index,
        )


def _make_guard(model: Model, prompt: Prompt) -> Guard | None:
    if not prompt.opens_thinking:
        return None
    room = model.info.n_ctx - len(prompt.tokens) + 1
    limit = prompt.request.sampling.max_tokens
    return Guard(
        prompt.request.thinking_budget or ThinkingBudget(),
        room_tokens=room if limit is None else min(room, limit),
        closing_tokens=max(
            len(_tokenize_closing(model, write_closing(reason))) for reason in CLOSINGS
        ),
    )


def _tokenize_closing(model: Model, text: str) -> list[int]:
    vocabulary = model.vocabulary
    tag = vocabulary.tokenize(END_THINK, parse_special=True)
    return [*vocabulary.tokenize(text, parse_special=False), *tag]
