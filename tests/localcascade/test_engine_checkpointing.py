"""Answers are the same with and without states kept from before, whatever a conversation does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcascade.engine.model import LEAST_TOKENS
from localcascade.engine.session import count_common
from localcascade.engine.wire import LoadOptions
from localcascade.prompt.events import ChatRequest, Message, Sampling
from tests.localcascade.local_engine import LocalEngine, load
from tests.localcascade.models import write_model
from tests.soak import sample

TEMPLATE = (Path(__file__).parents[2] / "localcascade/data/tiny/chat_template.jinja").read_text()
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {"name": "now", "description": "Time.", "parameters": {"type": "object"}},
    },
)
SYSTEM: Message = {"role": "system", "content": "You are terse. " * 4}


@pytest.fixture(scope="module", params=["hybrid", "llama"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalEngine, LocalEngine]:
    """One engine with its memory of states, and one that has none."""
    folder = tmp_path_factory.mktemp(request.param)
    hybrid = request.param == "hybrid"
    path = write_model(folder / "m.gguf", hybrid=hybrid, template=TEMPLATE, n_ctx_train=4096)
    # Without flash attention, for what it rounds away decides near ties.
    options = LoadOptions(n_threads=1, n_parallel=3, n_ctx=4096, flash_attention=False)
    remembering = LocalEngine(load(path, options), 1 << 20)
    return remembering, LocalEngine(load(path, options), 0)


def make_request(messages: list[Message], thinking: bool, tools: bool) -> ChatRequest:
    return ChatRequest(
        tuple(messages),
        tools=TOOLS if tools else (),
        thinking=thinking,
        sampling=Sampling(temperature=0, max_tokens=12),
    )


def walk(dice: random.Random, n_steps: int) -> Iterator[list[Message]]:
    """Conversations as people lead them; each answer is sent back as it came."""
    chats: list[list[Message]] = [[SYSTEM, question(dice)]]
    for _ in range(n_steps):
        chat = list(dice.choice(chats[-3:]))
        asked = [i for i, message in enumerate(chat) if message["role"] == "user"]
        act = dice.choice(["next", "next", "next", "again", "edit", "edit early", "tool", "new"])
        if act == "edit":
            chat = [*chat[: asked[-1]], question(dice)]
        elif act == "edit early":
            chat = [*chat[: dice.choice(asked)], question(dice)]
        elif act == "new":
            chat = [SYSTEM, question(dice)]
        answer = yield chat  # type: ignore[misc]
        if act == "tool":
            call = {"name": "now", "arguments": {"zone": "UTC"}}
            answer = {**answer, "tool_calls": [{"type": "function", "function": call}]}
            chats.append([*chat, answer, {"role": "tool", "content": f"{dice.random()}"}])
        elif act != "again":
            chats.append([*chat, answer, question(dice)])


def question(dice: random.Random) -> Message:
    words = " ".join(str(dice.randrange(100)) for _ in range(dice.randrange(2, 30)))
    return {"role": "user", "content": f"What about {words}?"}


@pytest.mark.parametrize("seed", sample(range(30), 4))
def test_answers_are_the_same_with_and_without_states(
    engines: tuple[LocalEngine, LocalEngine], seed: int
) -> None:
    remembering, forgetting = engines
    remembering.forget()
    dice = random.Random(seed)
    thinking, tools = bool(seed % 2), bool(seed // 2 % 2)
    steps = walk(dice, 14)
    chat, n_reused, n_prompt = next(steps), 0, 0
    while True:
        request = make_request(chat, thinking, tools)
        ours = remembering.ask(request)
        forgetting.forget()
        assert ours.tokens == forgetting.ask(request).tokens, (seed, chat)
        n_reused += ours.n_reused
        n_prompt += ours.answers[0].n_prompt
        answer = {"role": "assistant", "content": ours.join("answer")}
        if thoughts := ours.join("thinking"):
            answer["reasoning_content"] = thoughts
        try:
            chat = steps.send(answer)  # type: ignore[attr-defined]
        except StopIteration:
            break
    assert n_reused > n_prompt / 2


LONG = "What do you say of this? " * 6
"""A question that takes more tokens than a checkpoint must be apart from another."""


@pytest.mark.parametrize("act", ["next", "again", "edit", "fork", "tool"])
@pytest.mark.parametrize("thinking", [False, True])
def test_only_what_follows_the_nearest_state_is_read(
    engines: tuple[LocalEngine, LocalEngine], act: str, thinking: bool
) -> None:
    """A checkpoint is never further than LEAST_TOKENS from where two conversations part."""
    engine, _ = engines
    engine.forget()
    chat: list[Message] = [SYSTEM]
    for number in range(3):
        chat.append({"role": "user", "content": f"{number}: {LONG}"})
        heard = engine.ask(make_request(chat, thinking, tools=True))
        chat.append({"role": "assistant", "content": heard.join("answer")})
        if thoughts := heard.join("thinking"):
            chat[-1]["reasoning_content"] = thoughts
    other: Message = {"role": "user", "content": f"Else: {LONG}"}
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    followed = {
        "next": [*chat, other],
        "again": chat[:-1],
        "edit": [*chat[:-2], other],
        "fork": [*chat[:-4], other],
        "tool": [*chat[:-1], {**chat[-1], "tool_calls": [call]}, {"role": "tool", "content": LONG}],
    }[act]
    n_old = {"next": 5, "again": 6, "edit": 5, "fork": 3, "tool": 6}[act]
    n_shared = count_shared(engine, chat[:n_old], followed, thinking)
    heard = engine.ask(make_request(followed, thinking, tools=True))
    assert heard.answers[0].n_prompt - 1 >= n_shared - LEAST_TOKENS <= heard.n_reused
    assert n_shared > 300


def count_shared(
    engine: LocalEngine, old: list[Message], new: list[Message], thinking: bool
) -> int:
    """Tokens with which both prompts begin."""
    left, right = (
        engine.composer.compose(make_request(chat, thinking, tools=True), lambda _stage: None)
        for chat in (old, new)
    )
    return count_common(left.tokens, right.tokens)
