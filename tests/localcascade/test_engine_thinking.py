"""Thinking is brought to an end, for several answers at once, and an answer always comes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest

from localcascade.engine.composer import Prompt
from localcascade.engine.wire import LoadOptions
from localcascade.prompt.budget import CLOSINGS, ThinkingBudget
from localcascade.prompt.events import ChatRequest
from tests.localcascade.local_engine import GREEDY, Heard, LocalEngine, load
from tests.localcascade.models import END_THINK, IM_END, write_model

START = 10
ROUND = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A model that goes round for ever, and says Yes after </think>."""
    # After "a" both "b" and 255 are as likely, and the lower one is taken: the row has no end.
    script = [START, *ROUND, ROUND[0], 255, END_THINK, *b"!=%", IM_END]
    path = tmp_path_factory.mktemp("round") / "round.gguf"
    write_model(path, script=script, n_ctx_train=8192)
    return LocalEngine(load(path, LoadOptions(n_threads=1, n_parallel=4)))


def make_prompt(budget: ThinkingBudget | None = None, n_tokens: int | None = None) -> Prompt:
    sampling = replace(GREEDY, max_tokens=n_tokens)
    request = ChatRequest((), sampling=sampling, thinking_budget=budget)
    return Prompt(request, (1, 2, START), opens_thinking=True)


def start(engine: LocalEngine, prompt: Prompt) -> Heard:
    return engine.start(prompt.request, prompt)


def ask(engine: LocalEngine, prompt: Prompt) -> Heard:
    return engine.ask(prompt.request, prompt)


def test_a_budget_ends_the_thinking_with_a_closing_sentence(engine: LocalEngine) -> None:
    # The closing takes about 70 tokens of one byte, and a landing wants four times as many.
    heard = ask(engine, make_prompt(ThinkingBudget(tokens=400)))
    thinking = heard.join("thinking")
    assert thinking.startswith(ROUND.decode())
    assert thinking.rstrip().endswith(CLOSINGS["tokens"])
    assert heard.join("answer") == "!=%"
    usage = heard.find_done().usage
    assert 300 < usage.thinking_tokens <= 400
    assert usage.completion_tokens == usage.thinking_tokens + 3


def test_seconds_end_the_thinking_of_several_each_in_its_time(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of which each look takes a hundredth of a second."""
    ticks = itertools.count(1)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 100)
    heard = [start(engine, make_prompt(ThinkingBudget(seconds=seconds))) for seconds in (0.5, 8)]
    engine.finish()
    assert [one.join("answer") for one in heard] == ["!=%"] * 2
    assert all(one.join("thinking").rstrip().endswith(CLOSINGS["seconds"]) for one in heard)
    short, long = (one.find_done().usage.thinking_tokens for one in heard)
    assert long - short > 100


def test_going_round_in_circles_ends_it_too(engine: LocalEngine) -> None:
    heard = ask(engine, make_prompt())
    assert heard.join("thinking").rstrip().endswith(CLOSINGS["loop"])
    assert heard.join("answer") == "!=%"
    assert heard.find_done().usage.thinking_tokens < 4000


def test_circles_of_several_end_each_for_itself(engine: LocalEngine) -> None:
    heard = [start(engine, make_prompt(budget)) for budget in (None, ThinkingBudget(400), None)]
    engine.finish()
    closings = [CLOSINGS[reason] for reason in ("loop", "tokens", "loop")]
    for one, closing in zip(heard, closings, strict=True):
        assert one.join("thinking").rstrip().endswith(closing)
        assert one.join("answer") == "!=%"


def test_a_limit_on_all_leaves_room_for_an_answer(engine: LocalEngine) -> None:
    heard = ask(engine, make_prompt(n_tokens=60))
    assert heard.join("answer") == "!=%"
    assert heard.find_done().reason == "stop"
    assert heard.find_done().usage.completion_tokens <= 60


def test_answer_now_lands_one_of_several(engine: LocalEngine) -> None:
    prompts = [make_prompt(ThinkingBudget(tokens=n)) for n in (300, 1000, 500)]
    heard = [start(engine, prompt) for prompt in prompts]
    for _ in range(20):
        engine.scheduler.step()
    heard[1].wishes.wants_answer = True
    for _ in range(10):
        engine.scheduler.step()
    assert [one.is_over for one in heard] == [False, True, False]
    assert heard[1].join("thinking") == f"{ROUND.decode()[:21]}\n\n{CLOSINGS['asked']}\n".rstrip()
    engine.finish()
    assert [one.join("answer") for one in heard] == ["!=%"] * 3


def test_answer_now_before_the_first_token_is_obeyed_then(engine: LocalEngine) -> None:
    prompt = make_prompt()
    heard = start(engine, prompt)
    heard.wishes.wants_answer = True
    engine.finish()
    assert heard.join("thinking").startswith("a\n\n" + CLOSINGS["asked"])
    assert heard.join("answer") == "!=%"
