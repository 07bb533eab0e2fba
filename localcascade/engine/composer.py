"""How a request becomes a prompt: rendered, cut into tokens, with the places to come back to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, chain

from localcascade.engine.model import LEAST_TOKENS, Model
from localcascade.engine.vocabulary import PIECE_CHARS, Vocabulary
from localcascade.errors import ContextFull, TemplateError
from localcascade.prompt.events import ChatRequest, Message
from localcascade.prompt.grammar import check_grammar
from localcascade.prompt.marks import Segment
from localcascade.prompt.schema import write_grammar
from localcascade.prompt.template import Template

N_REMEMBERED = 4096
"""Segments whose tokens are remembered: those of a long chat are the same at every turn."""

TOO_MANY = 2
"""Contexts that a prompt may fill before nobody counts further: a chat is never that far behind."""
MAX_COUNTED = 1000
"""Messages whose tokens are counted when they do not fit: each takes llama.cpp half a millisecond,
whatever its length."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request that was rendered and cut into tokens."""

    request: ChatRequest
    tokens: tuple[int, ...]
    opens_thinking: bool
    """Whether it ends in an open <think>."""
    marks: tuple[int, ...] = ()
    """Lengths of the beginnings that later prompts are likely to share, ascending; each is worth
    a checkpoint."""
    grammar: str | None = None
    """GBNF that the answer must follow."""


class Composer:
    """Makes prompts for one model; in one thread.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._vocabulary = model, model.vocabulary
        self._cut = lru_cache(N_REMEMBERED)(self._cut_segment)

    def warm_up(self) -> None:
        """Compile the template ahead of the first request; if that fails, it will fail then."""
        with contextlib.suppress(TemplateError):
            self._template  # noqa: B018  a cached property

    def compose(self, request: ChatRequest, on_stage: Callable[[str], None]) -> Prompt:
        """Make the prompt of a request.

        Args:
            request: The request.
            on_stage: Called with `template` before one is at work, for it may hang, and with
                `tokenize` after.

        Returns:
            The prompt.

        Raises:
            TemplateError: The template fails, or there is none.
            ContextFull: The prompt is longer than the context.
            ValueError: The request's grammar or JSON schema makes no sense, or would do harm.
        """
        grammar = self._choose_grammar(request)
        on_stage("template")
        segments = self._render(request)
        on_stage("tokenize")
        parts = self._cut_all(request, segments)
        tokens = tuple(chain.from_iterable(parts))
        on_stage("template")
        places = {*self._find_places(request, segments)}
        on_stage("tokenize")
        # The last token is read anew even if the same is asked again, for the logits after it.
        ends = [0, *accumulate(map(len, parts))]
        found = {min(ends[n], len(tokens) - 1) for n in places}
        return Prompt(request, tokens, opens_thinking(segments), thin_out(found), grammar)

    def render(
        self, request: ChatRequest, on_stage: Callable[[str], None], *, is_complete: bool
    ) -> Sequence[int]:
        """Make the tokens of a prompt, whatever their number.

        Args:
            request: The request.
            on_stage: As for compose.
            is_complete: The last message is the answer: leave out the turn that would follow.

        Returns:
            Token ids.

        Raises:
            TemplateError: As for compose.
        """
        on_stage("template")
        segments = self._render(request)
        on_stage("tokenize")
        tokens = self.tokenize(segments)
        return cut_opening(tokens, self._vocabulary.is_eog) if is_complete else tokens

    def tokenize(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Cut a rendered prompt into tokens, each segment on its own."""
        parts = (self._cut(segment) for segment in segments)
        return tuple(
            chain.from_iterable(
                self._vocabulary.tokenize_segment(segment) if self._is_cut_short(part) else part
                for segment, part in zip(segments, parts, strict=True)
            )
        )

    def _cut_all(self, request: ChatRequest, segments: Sequence[Segment]) -> list[tuple[int, ...]]:
        """Cut a prompt into tokens; one that is far too long, only as far as it takes to see that.

        Raises:
            ContextFull: It is longer than the context.
        """
        parts: list[tuple[int, ...]] = []
        n_tokens = 0
        while len(parts) < len(segments) and n_tokens <= self._most_tokens:
            parts.append(self._cut(segments[len(parts)]))
            n_tokens += len(parts[-1])
        if n_tokens <= self._model.info.n_ctx:
            return parts
        sizes = count_message_tokens(self._vocabulary, request.messages, self._most_tokens)
        raise ContextFull(
            n_tokens,
            self._model.info.n_ctx,
            sizes,
            list_droppable(request.messages),
            is_least=n_tokens > self._most_tokens,
        )

    def _is_cut_short(self, part: Sequence[int]) -> bool:
        return len(part) > self._most_tokens

    @property
    def _most_tokens(self) -> int:
        return TOO_MANY * self._model.info.n_ctx

    def _cut_segment(self, segment: Segment) -> tuple[int, ...]:
        return tuple(self._vocabulary.tokenize_segment(segment, self._most_tokens))

    @cached_property
    def _template(self) -> Template:
        source = self._model.metadata.get("tokenizer.chat_template")
        if not source:
            raise TemplateError(
                f"{self._model.info.name}: the file has no chat template",
                "Base models cannot chat; convert the checkpoint again if it is a chat model.",
            )
        return Template(source, self._vocabulary.special)

    def _render(self, request: ChatRequest) -> list[Segment]:
        vocabulary = self._vocabulary
        segments = self._template.render(request, vocabulary.bos_text, vocabulary.eos_text)
        if not segments:
            raise TemplateError(f"{self._model.info.name}: the chat template wrote nothing")
        return segments

    def _find_places(self, request: ChatRequest, segments: Sequence[Segment]) -> Iterator[int]:
        """Find after how many segments this prompt and those that may follow it part.

        The template decides that: it may write a turn differently once another one follows.
        So what may follow is rendered, and compared.
        """
        if not self._model.has_recurrent_state:
            return  # it can go back to any place without help
        for messages in list_continuations(request.messages):
            try:
                other = self._render(replace(request, messages=messages))
            except TemplateError:
                continue
            pairs = enumerate(zip(segments, other, strict=False))
            yield next((i for i, (a, b) in pairs if a != b), min(len(segments), len(other)))

    def _choose_grammar(self, request: ChatRequest) -> str | None:
        grammar, schema = request.sampling.grammar, request.sampling.json_schema
        if schema is not None:
            return write_grammar(schema)
        if grammar is not None:
            check_grammar(grammar)
        return grammar


def thin_out(places: Iterable[int]) -> tuple[int, ...]:
    """Keep the places that are far enough from the start and from the one before.

    Of two that are close, the first is kept: what parts there has less to read again.
    """
    marks = [0]
    for place in sorted(places):
        if place - marks[-1] >= LEAST_TOKENS:
            marks.append(place)
    return tuple(marks[1:])


def list_continuations(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """List conversations that may be asked for after one, or beside it.

    Args:
        messages: The conversation.

    Yields:
        Another one with the same system prompt; the same with its last question edited; the next
        step after a tool's result; and the next question.
    """
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    asked = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    if asked:
        yield (*messages[: asked[0]], question)
        yield (*messages[: asked[-1]], question)
    yield (*messages, answer)
    yield (*messages, answer, question)


def count_message_tokens(
    vocabulary: Vocabulary, messages: Sequence[Message], n_most: int
) -> tuple[int, ...]:
    """Count about how many tokens each message takes, without what the template adds.

    Args:
        vocabulary: The vocabulary.
        messages: The conversation.
        n_most: After so many tokens in all, or MAX_COUNTED messages, the rest is estimated.
    """
    counts: list[int] = []
    n_tokens, per_char = 0, 0.0
    for message in messages:
        text = _write_text(message)
        sample = text[:PIECE_CHARS]
        if sample and n_tokens <= n_most and len(counts) < MAX_COUNTED:
            per_char = len(vocabulary.tokenize(sample, parse_special=False)) / len(sample)
        counts.append(round(len(text) * per_char))
        n_tokens += counts[-1]
    return tuple(counts)


def list_droppable(messages: Sequence[Message]) -> tuple[tuple[int, ...], ...]:
    """List the turns that a full context may do without.

    Args:
        messages: The conversation.

    Returns:
        The oldest first, each as the numbers of its messages: a question and all that follows it
        up to the next one, so that no tool's result loses its call. What a system or a developer
        says is never among them, nor is the last turn.
    """
    turns: list[list[int]] = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if role == "user" or not turns:
            turns.append([])
        if role not in ("system", "developer"):
            turns[-1].append(number)
    return tuple(tuple(turn) for turn in turns[:-1] if turn)


def _write_text(message: Message) -> str:
    values = (value for key, value in message.items() if key != "role")
    return "\n".join(
        value if isinstance(value, str) else json.dumps(value, default=str)
        for value in values
        if value is not None
    )


def cut_opening(prompt: Sequence[int], is_end: Callable[[int], bool]) -> Sequence[int]:
    """Cut off the turn that a prompt opens at its end, if any turn before it was closed."""
    ends = [i for i, token in enumerate(prompt) if is_end(token)]
    return prompt[: ends[-1] + 1] if ends else prompt


def opens_thinking(segments: Sequence[Segment]) -> bool:
    """Tell whether a prompt ends inside an open <think>."""
    return "".join(segment.text for segment in segments[-4:]).rstrip().endswith("<think>")
