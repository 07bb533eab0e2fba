"""One turn: a prompt's tokens in, channelled events out."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from localcascade.engine.model import Model
from localcascade.engine.sampling import plan_chain, resolve_sampling
from localcascade.engine.session import Session
from localcascade.prompt.events import (
    Channel,
    Delta,
    Done,
    Event,
    FinishReason,
    Sampling,
    Timings,
    ToolCall,
    Usage,
)
from localcascade.prompt.parser import OutputParser


class Turn:
    """Reads a prompt, generates, and sorts what comes into channels.

    Args:
        model: The model.
        session: Its sequence.
        parser: Sorts the text; knows whether thinking is open at the prompt's end.
        first_channel: Where the first token belongs.
        is_cancelled: Asked before every micro-batch and every token.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        parser: OutputParser,
        first_channel: Channel,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._model, self._session = model, session
        self._parser, self._is_cancelled = parser, is_cancelled
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._channel: Channel = first_channel
        self._n_thinking = self._n_completion = self._n_calls = 0

    def run(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Event]:
        """Run the turn.

        Args:
            prompt: Token ids.
            sampling: The request's; its gaps are filled from the model file.

        Yields:
            PromptProgress, then Delta and ToolCall as they come, at last one Done.

        Raises:
            ContextFull: The prompt is longer than the context.
            NativeError: Decoding failed.
        """
        started_s = time.perf_counter()
        reused = yield from self._read(prompt)
        read_s = time.perf_counter()
        reason = yield from self._generate(sampling)
        yield from self._sort(self._decoder.decode(b"", final=True))
        yield from self._tell(self._parser.finish(truncated=reason != "stop"))
        generation_s = time.perf_counter() - read_s
        yield Done(
            reason="tool_calls" if reason == "stop" and self._n_calls else reason,
            usage=Usage(len(prompt), reused, self._n_thinking, self._n_completion),
            timings=Timings(
                load_s=self._model.info.load_s,
                prompt_s=read_s - started_s,
                generation_s=generation_s,
                tokens_per_s=self._n_completion / generation_s,
            ),
        )

    def _read(self, prompt: Sequence[int]) -> Generator[Event, None, int]:
        """Read the prompt unless cancelled; returns the tokens reused."""
        reused = 0
        for progress in self._session.read_prompt(prompt):
            reused = progress.reused
            yield progress
            if self._is_cancelled():
                break
        return reused

    def _generate(self, sampling: Sampling) -> Generator[Event, None, FinishReason]:
        """Generate up to an end-of-generation token, a limit or a cancel; returns which."""
        steps = plan_chain(resolve_sampling(sampling, self._model.metadata))
        vocabulary = self._model.vocabulary
        if self._is_cancelled():
            return "cancelled"
        for token in self._session.generate(steps, sampling.max_tokens):
            if vocabulary.is_eog(token):
                return "stop"
            yield from self._sort(self._decoder.decode(vocabulary.piece(token)))
            self._n_completion += 1
            self._n_thinking += self._channel == "thinking"
            if self._is_cancelled():
                return "cancelled"
        return "length"

    def _sort(self, text: str) -> Iterator[Event]:
        return self._tell(self._parser.feed(text)) if text else iter(())

    def _tell(self, found: Sequence[Delta | ToolCall]) -> Iterator[Event]:
        """Pass on what the parser found.

        A token counts as thinking until a piece of another channel has come out: tags and the
        white space after them belong to what they close.
        """
        for event in found:
            if isinstance(event, Delta):
                self._channel = event.channel
            else:
                self._n_calls += 1
            yield event
