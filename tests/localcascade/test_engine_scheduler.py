"""Many answers at once: each as if it were alone, each its turn, and every way to end."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localcascade.engine.composer import Prompt
from localcascade.engine.model import Model
from localcascade.engine.planning import N_BATCH
from localcascade.engine.wire import LoadOptions
from localcascade.errors import NativeError
from localcascade.prompt.events import (
    ChatRequest,
    ContextEnd,
    Delta,
    PromptProgress,
    Sampling,
)
from tests.localcascade.local_engine import GREEDY, Heard, LocalEngine, load
from tests.localcascade.models import write_model
from tests.soak import sample

EXACT = LoadOptions(n_threads=1, n_parallel=3, n_ctx=2048, flash_attention=False)


@pytest.fixture(scope="module", params=["llama", "hybrid"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    hybrid = request.param == "hybrid"
    return write_model(folder / "model.gguf", hybrid=hybrid, n_ctx_train=4096)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path, EXACT)


@pytest.fixture
def engine(model: Model) -> LocalEngine:
    return LocalEngine(model)


def make_prompt(
    seed: int, n_prompt: int, n_tokens: int | None, sampling: Sampling = GREEDY, n: int = 1
) -> Prompt:
    """A prompt of readable letters, worth a checkpoint before its last tokens."""
    letters = np.random.default_rng(seed).integers(97, 123, n_prompt).tolist()
    request = ChatRequest((), sampling=replace(sampling, max_tokens=n_tokens), n=n)
    return Prompt(request, tuple(letters), opens_thinking=False, marks=(n_prompt - 1,))


def start(engine: LocalEngine, prompt: Prompt) -> Heard:
    return engine.start(prompt.request, prompt)


def count_tokens(heard: Heard) -> int:
    return len(heard.tokens)


def test_each_says_what_it_says_alone(engine: LocalEngine) -> None:
    prompts = [make_prompt(seed, 20 + 150 * seed, 25 + seed) for seed in range(5)]
    alone = []
    for prompt in prompts:
        engine.forget()
        alone.append(engine.ask(prompt.request, prompt).tokens)
    engine.forget()
    together = []
    for prompt in prompts:  # they come while others are under way
        together.append(start(engine, prompt))
        for _ in range(4):
            engine.scheduler.step()
    engine.finish()
    assert [heard.tokens for heard in together] == alone


def test_a_long_prompt_delays_others_by_one_micro_batch_at_most(engine: LocalEngine) -> None:
    talking = start(engine, make_prompt(1, 10, 40))
    for _ in range(3):
        engine.scheduler.step()
    reading = start(engine, make_prompt(2, 3 * N_BATCH, 1))
    counts = []
    while not reading.is_over:
        engine.scheduler.step()
        counts.append(count_tokens(talking))
    assert len(counts) > 3
    assert np.diff(counts).tolist() == [1] * (len(counts) - 1)


def test_two_that_read_get_equal_parts(engine: LocalEngine) -> None:
    both = [start(engine, make_prompt(seed, 900, 1)) for seed in (1, 2)]
    for _ in range(3):
        engine.scheduler.step()
        done = [[e for e in h.events if isinstance(e, PromptProgress)][-1].done for h in both]
        assert done[0] == done[1] > 0


@pytest.mark.parametrize("n_ctx", [1, 60, 300])
def test_a_context_shorter_than_a_micro_batch_is_filled(path: Path, n_ctx: int) -> None:
    """llama.cpp rounds such a context up to 256 or 512, but not the longest batch."""
    engine = LocalEngine(load(path, replace(EXACT, n_ctx=n_ctx)))
    prompts = [make_prompt(seed, 30, 5) for seed in range(5)]
    heard = [start(engine, prompt) for prompt in prompts]
    long = start(engine, make_prompt(9, engine.model.info.n_ctx - 10, 5))
    engine.finish()
    assert [count_tokens(one) for one in (*heard, long)] == [5] * 6
    tokens = make_prompt(9, engine.model.info.n_ctx, 1).tokens
    assert engine.slots.take_all().read_logits(tokens).shape[0] == len(tokens)


def test_cancelling_frees_the_place_for_who_waits(engine: LocalEngine) -> None:
    running = [start(engine, make_prompt(seed, 10, None)) for seed in range(3)]
    waiting = start(engine, make_prompt(9, 10, 2))
    never = start(engine, make_prompt(10, 10, 2))
    for _ in range(3):
        engine.scheduler.step()
    assert not waiting.events
    running[1].wishes.is_cancelled = never.wishes.is_cancelled = True
    engine.scheduler.step()
    assert running[1].find_done().reason == never.find_done().reason == "cancelled"
    assert waiting.events
    for _ in range(3):
        engine.scheduler.step()
    assert waiting.find_done().usage.completion_tokens == 2
    assert not running[0].is_over
    for heard in running:
        heard.wishes.is_cancelled = True
    engine.finish()


def test_several_answers_share_one_reading_of_the_prompt(engine: LocalEngine) -> None:
    sampling = Sampling(temperature=2.0, top_p=1, seed=5)
    many = engine.ask(ChatRequest(()), make_prompt(3, 600, 10, sampling, n=5))
    texts = [many.join(index=index) for index in range(5)]
    assert len(set(texts)) == 5
    assert [many.find_done(i).usage.reused_tokens for i in range(5)] == [0, *[599] * 4]
    for index, text in enumerate(texts):
        engine.forget()
        alone = make_prompt(3, 600, 10, replace(sampling, seed=5 + index))
        assert engine.ask(alone.request, alone).join() == text


def test_who_has_no_room_is_let_in_again_and_loses_nothing(path: Path) -> None:
    options = replace(EXACT, n_ctx=512)
    engine = LocalEngine(load(path, options))
    prompts = [make_prompt(seed, 100, 300) for seed in range(3)]
    alone = []
    for prompt in prompts:
        engine.forget()
        alone.append(engine.ask(prompt.request, prompt).tokens)
    engine.forget()
    together = [start(engine, prompt) for prompt in prompts]
    engine.finish()
    assert [count_tokens(heard) for heard in together] == [300] * 3
    assert [heard.tokens for heard in together] == alone


def test_a_context_that_fills_is_told(path: Path) -> None:
    engine = LocalEngine(load(path, replace(EXACT, n_ctx=256)))
    request = ChatRequest(
        (
            {"role": "system", "content": "s" * 20},
            {"role": "user", "content": "x" * 40},
            {"role": "assistant", "content": "y" * 30},
            {"role": "user", "content": "z" * 10},
        ),
        sampling=GREEDY,
    )
    prompt = replace(make_prompt(1, 200, None), request=request)
    heard = engine.ask(request, prompt)
    (full,) = [event for event in heard.events if isinstance(event, ContextEnd)]
    assert full == ContextEnd(256, (20, 40, 30, 10), ((1, 2),))
    assert heard.find_done().reason == "length"
    assert count_tokens(heard) == 256 - 200 + 1


def test_a_failed_decode_fails_those_under_way_and_no_other(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make_prompt(4, 30, 10)
    expected = engine.ask(prompt.request, prompt).tokens
    running = start(engine, make_prompt(5, 30, None))
    engine.scheduler.step()

    def fail(context: object) -> bool:
        raise NativeError("llama_decode", -3)

    monkeypatch.setattr(engine.model.batch, "decode", fail)
    engine.scheduler.step()
    monkeypatch.undo()
    assert isinstance(running.error, NativeError)
    again = engine.ask(prompt.request, prompt)
    assert again.n_reused == 0 or engine.model.has_recurrent_state
    assert again.tokens == expected


def test_a_job_has_the_context_for_itself(engine: LocalEngine) -> None:
    prompt = make_prompt(6, 50, 20)
    expected = engine.ask(prompt.request, prompt).tokens
    tokens = [(7 * i) % 256 for i in range(1500)]
    shapes = []
    first = start(engine, prompt)
    engine.scheduler.submit(lambda session: shapes.append(session.read_logits(tokens, 1490).shape))
    second = start(engine, prompt)
    engine.finish()
    assert shapes == [(10, engine.model.info.n_vocab)]
    assert first.tokens == second.tokens == expected


def test_a_shared_beginning_is_taken_from_one_who_is_still_under_way(
    engine: LocalEngine,
) -> None:
    first = make_prompt(7, 400, 30)
    talking = start(engine, first)
    for _ in range(5):
        engine.scheduler.step()
    assert not talking.is_over
    ending = tuple(range(97, 107))
    other = replace(first, tokens=first.tokens[:399] + ending, marks=())
    heard = engine.ask(other.request, other)
    assert heard.n_reused == 399
    engine.forget()
    assert engine.ask(other.request, other).tokens == heard.tokens
    engine.forget()
    assert engine.ask(first.request, first).tokens == talking.tokens


def test_a_conversation_comes_back_after_others_took_its_place(engine: LocalEngine) -> None:
    first = make_prompt(8, 700, 5)
    said = engine.ask(first.request, first).tokens
    for seed in range(20, 26):
        other = make_prompt(seed, 300, 5)
        engine.ask(other.request, other)
    longer = replace(first, tokens=(*first.tokens, *said[:4], 97, 98), marks=())
    heard = engine.ask(longer.request, longer)
    assert heard.n_reused == 704
    again = engine.ask(first.request, first)
    assert again.n_reused == 699
    assert again.tokens == said


def test_a_state_that_llama_refuses_is_done_without(engine: LocalEngine) -> None:
    first = make_prompt(11, 200, 5)
    said = engine.ask(first.request, first).tokens
    engine.slots.forget()
    engine.slots.checkpoints.add(first.tokens[:150], b"nonsense", full=True)
    heard = engine.ask(first.request, first)
    assert heard.n_reused == 0
    assert heard.tokens == said


def test_deltas_of_several_answers_carry_their_index(engine: LocalEngine) -> None:
    many = engine.ask(ChatRequest(()), make_prompt(12, 30, 4, n=2))
    deltas = [event for event in many.events if isinstance(event, Delta)]
    assert {event.index for event in deltas} == {0, 1}
    assert many.join(index=0) == many.join(index=1)  # greedy


@pytest.mark.parametrize("seed", sample(range(20), 2))
def test_whatever_comes_and_goes_each_says_what_it_says_alone(
    engine: LocalEngine, seed: int
) -> None:
    dice = random.Random(seed)
    prompts = []
    for number in range(10):
        base = make_prompt(dice.randrange(3), dice.choice([40, 200, 600]), dice.randrange(1, 30))
        ending = make_prompt(100 + number, dice.randrange(1, 300), 1).tokens
        kept = dice.randrange(len(base.tokens))
        tokens = base.tokens[:kept] + ending
        marks = tuple(sorted({min(kept, len(tokens) - 1), len(tokens) - 1} - {0}))
        request = replace(base.request, n=dice.choice([1, 1, 1, 3]))
        prompts.append(replace(base, request=request, tokens=tokens, marks=marks))
    expected = []
    for prompt in prompts:
        engine.forget()
        alone = replace(prompt, request=replace(prompt.request, n=1))
        expected.append(engine.ask(alone.request, alone).tokens)
    engine.forget()
    heard, cancelled = [], set()
    for number, prompt in enumerate(prompts):
        heard.append(start(engine, prompt))
        for _ in range(dice.randrange(12)):
            engine.scheduler.step()
        if dice.random() < 0.2:
            heard[-1].wishes.is_cancelled = True
            cancelled.add(number)
    engine.finish()
    for number, one in enumerate(heard):
        assert one.is_over
        for answer in one.answers:
            said = answer.tokens[answer.n_prompt :]
            if number in cancelled:
                assert said == expected[number][: len(said)]
            else:
                assert said == expected[number], (seed, number)
