"""The engine without its process: a model, its scheduler, and requests run to their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from localcascade.engine import _llama
from localcascade.engine.checkpoints import Checkpoint, Checkpoints
from localcascade.engine.composer import Composer, Prompt
from localcascade.engine.generation import Generation, Wishes
from localcascade.engine.model import Log, Model
from localcascade.engine.scheduler import Scheduler
from localcascade.engine.slots import Slots
from localcascade.engine.wire import LoadOptions
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    PromptProgress,
    Sampling,
)

GREEDY = Sampling(temperature=0)


def load(path: Path, options: LoadOptions | None = None) -> Model:
    """Load a model in this process, with one thread unless the options say otherwise."""
    log = Log()
    _llama.set_log(log.write)
    _llama.start_backend()
    return Model(path, options or LoadOptions(n_threads=1), log, lambda share: None)


@dataclass
class Heard:
    """What one request has brought so far."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None
    wishes: Wishes = field(default_factory=Wishes)
    answers: list[Generation] = field(default_factory=list)

    def join(self, channel: str = "answer", index: int = 0) -> str:
        """The text of a channel."""
        mine = (e for e in self.events if isinstance(e, Delta) and e.channel == channel)
        return "".join(event.text for event in mine if event.index == index)

    def find_done(self, index: int = 0) -> Done:
        """The end of an answer, which must have come."""
        (done,) = [e for e in self.events if isinstance(e, Done) and e.index == index]
        return done

    @property
    def is_over(self) -> bool:
        """Whether all answers have ended."""
        n_done = sum(isinstance(event, Done) for event in self.events)
        return self.error is not None or n_done == len(self.answers)

    @property
    def n_reused(self) -> int:
        """Tokens of the prompt that were not read."""
        return next(e.reused for e in self.events if isinstance(e, PromptProgress))

    @property
    def tokens(self) -> list[int]:
        """What the first answer consists of."""
        return self.answers[0].tokens[self.answers[0].n_prompt :]


class LocalEngine:
    """A model with its scheduler, stepped by hand."""

    def __init__(self, model: Model, checkpoint_bytes: int = 1 << 30) -> None:
        self.model = model
        self.composer = Composer(model)
        self.slots = Slots(model, Checkpoints(checkpoint_bytes))
        self.saved: dict[str, Sequence[Checkpoint]] = {}
        self.scheduler = Scheduler(model, self.slots, save=self.saved.__setitem__)
        self.slots.forget()

    def start(self, request: ChatRequest, prompt: Prompt | None = None) -> Heard:
        """Hand in a request; a prompt given takes the place of the rendered one."""
        prompt = prompt or self.composer.compose(request, lambda stage: None)
        heard = Heard()

        def fail(error: Exception) -> None:
            heard.error = error

        for index in range(prompt.request.n):
            answer = Generation(self.model, prompt, heard.events.append, fail, heard.wishes, index)
            answer.leader = heard.answers[0] if index else None
            heard.answers.append(answer)
        self.scheduler.submit(*heard.answers)
        return heard

    def finish(self) -> None:
        """Step until nothing is left to do."""
        while self.scheduler.is_busy:
            self.scheduler.step()

    def ask(self, request: ChatRequest, prompt: Prompt | None = None) -> Heard:
        """Hand in a request and run it to its end."""
        heard = self.start(request, prompt)
        self.finish()
        assert heard.is_over
        return heard

    def go_on(
        self, tokens: Sequence[int], n_tokens: int | None, sampling: Sampling = GREEDY
    ) -> Heard:
        """Generate after tokens that no template wrote."""
        request = ChatRequest((), sampling=replace(sampling, max_tokens=n_tokens))
        return self.ask(request, Prompt(request, tuple(tokens), opens_thinking=False))

    def forget(self) -> None:
        """Forget every session and every checkpoint."""
        self.slots.forget()
        while self.slots.checkpoints.n_bytes:
            for one in tuple(self.slots.checkpoints._by_use):
                self.slots.checkpoints.drop(one)
