"""Answers that are run ahead of: the same tokens as without, whatever else is going on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localcascade.engine import _llama, lookup, margin, speculation
from localcascade.engine.composer import Prompt
from localcascade.engine.scheduler import Scheduler
from localcascade.engine.wire import LoadOptions
from localcascade.prompt.budget import CLOSINGS, ThinkingBudget
from localcascade.prompt.events import ChatRequest, Sampling
from tests.localcascade.local_engine import GREEDY, Heard, LocalEngine, load
from tests.localcascade.models import END_THINK, IM_END, write_model
from tests.localcascade.test_engine_checkpointing import TEMPLATE, make_request, walk
from tests.soak import sample

OPTIONS = LoadOptions(n_threads=1, n_parallel=3, n_ctx=2048)
START = 10
ROUND = b"abcdefghijklmnopqrstuvwxyz"


def run_ahead(engine: LocalEngine, mode: str = "on") -> LocalEngine:
    """Let an engine run ahead of its answers."""
    engine.scheduler = Scheduler(
        engine.model, engine.slots, save=engine.saved.__setitem__, lookup=mode
    )
    return engine


@pytest.fixture(scope="module", params=["hybrid", "llama"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hybrid = request.param == "hybrid"
    folder = tmp_path_factory.mktemp(request.param)
    return write_model(folder / "m.gguf", hybrid=hybrid, n_ctx_train=4096, template=TEMPLATE)


@pytest.fixture(scope="module")
def engines(path: Path) -> tuple[LocalEngine, LocalEngine]:
    """One that runs ahead, and one that does not."""
    return run_ahead(LocalEngine(load(path, OPTIONS))), LocalEngine(load(path, OPTIONS))


@pytest.fixture(scope="module", params=[True, False], ids=["hybrid", "llama"])
def rounds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says the alphabet for ever, and is sure of it."""
    path = tmp_path_factory.mktemp("rounds") / "m.gguf"
    script = [START, *ROUND, ROUND[0]]
    return write_model(path, script=script, hybrid=request.param, n_ctx_train=4096)


def make_loop(n_tokens: int) -> Prompt:
    request = ChatRequest((), sampling=replace(GREEDY, max_tokens=n_tokens))
    return Prompt(request, (1, 2, START), opens_thinking=False)


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> Iterator[None]:
    if "engines" in request.fixturenames:
        for engine in request.getfixturevalue("engines"):
            engine.forget()
    yield


def make_prompt(seed: int, n_tokens: int = 300, **sampling: object) -> Prompt:
    """A passage of letters, twice and a bit."""
    dice = random.Random(seed)
    passage = [dice.randrange(97, 123) for _ in range(dice.randrange(4, 120))]
    tokens = (*passage, *passage, *passage[: len(passage) // 2])
    wanted = replace(GREEDY, max_tokens=n_tokens, **sampling)  # type: ignore[arg-type]
    return Prompt(ChatRequest((), sampling=wanted), tokens, False, marks=(len(passage),))


def ask(engine: LocalEngine, prompt: Prompt) -> Heard:
    return engine.ask(prompt.request, prompt)


@pytest.mark.parametrize("seed", sample(range(60), 6))
def test_an_answer_is_the_same_token_for_token(
    engines: tuple[LocalEngine, LocalEngine], seed: int
) -> None:
    ahead, _ = engines
    ours, theirs = (ask(engine, make_prompt(seed)) for engine in engines)
    assert ours.tokens == theirs.tokens
    assert ours.join() == theirs.join()
    assert ahead.scheduler.margin.n_wrong == 0
    used, bare = ours.find_done().usage, theirs.find_done().usage
    assert used.completion_tokens == bare.completion_tokens == 300
    assert bare.drafted_tokens == 0 <= used.accepted_tokens <= used.drafted_tokens


def test_what_repeats_itself_takes_fewer_decodes(
    rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = run_ahead(LocalEngine(load(rounds, OPTIONS)))
    widths: list[int] = []
    batch, decode = engine.model.batch, engine.model.batch.decode

    def count(context: _llama.ContextHandle) -> bool:
        widths.append(batch.n_tokens)
        return decode(context)

    ask(engine, make_loop(400))  # where lengths are new, both ways are compared
    engine.forget()
    monkeypatch.setattr(batch, "decode", count)
    heard = ask(engine, make_loop(400))
    assert heard.join() == (ROUND.decode() * 20)[:400]
    used = heard.find_done().usage
    assert used.drafted_tokens > used.accepted_tokens > 300
    assert max(widths) == 8
    assert len(widths) < 400 / 4


@pytest.mark.parametrize("seed", range(2))
def test_where_no_choice_is_sure_the_state_is_that_of_single_tokens_to_the_bit(
    engines: tuple[LocalEngine, LocalEngine], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(margin, "LEAST_LEAD", 1e9)
    states = []
    for engine in engines:
        heard = ask(engine, make_prompt(seed, 120))
        (session,) = [s for s in engine.slots._sessions if s.tokens]
        states.append((heard.tokens, session.tokens, read(engine, session.number)))
    assert states[0] == states[1]


def read(engine: LocalEngine, number: int) -> bytes:
    """The recurrent state, or all of it where there is none."""
    if engine.model.has_recurrent_state:
        return _llama.read_recurrent(engine.model.context, number)
    return _llama.read_state(engine.model.context, number)


def test_a_grammar_is_followed_the_same_way(engines: tuple[LocalEngine, LocalEngine]) -> None:
    grammar = 'root ::= ("abc" | "abd" | "xyz, "){60}'
    prompt = replace(make_prompt(3, grammar=grammar), grammar=grammar)
    ours, theirs = (ask(engine, prompt) for engine in engines)
    assert ours.tokens == theirs.tokens
    assert ours.find_done().usage.drafted_tokens > 0


def test_a_stop_text_ends_it_at_the_same_place(engines: tuple[LocalEngine, LocalEngine]) -> None:
    whole = ask(engines[1], make_prompt(5)).join()
    stop = whole[150:154]
    ours, theirs = (ask(engine, make_prompt(5, stop=(stop,))) for engine in engines)
    assert ours.join() == theirs.join() == whole[: whole.index(stop)]
    assert ours.tokens == theirs.tokens
    assert ours.find_done().reason == theirs.find_done().reason == "stop"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=3),
        replace(GREEDY, repeat_penalty=1.3),
        replace(GREEDY, logit_bias={97: 3.0}),
    ],
)
def test_what_is_not_plainly_greedy_is_left_alone(
    engines: tuple[LocalEngine, LocalEngine], sampling: Sampling
) -> None:
    prompt = make_prompt(7, 80)
    prompt = replace(
        prompt, request=replace(prompt.request, sampling=replace(sampling, max_tokens=80))
    )
    ours, theirs = (ask(engine, prompt) for engine in engines)
    assert ours.tokens == theirs.tokens
    assert ours.find_done().usage.drafted_tokens == 0


def test_one_that_joins_has_its_token_in_every_step(rounds: Path) -> None:
    ahead, plain = run_ahead(LocalEngine(load(rounds, OPTIONS))), LocalEngine(load(rounds, OPTIONS))
    long, other = make_loop(900), make_loop(20)
    talking = ahead.start(long.request, long)
    for _ in range(60):
        ahead.scheduler.step()
    answer = talking.answers[0]
    assert answer.speculation and answer.speculation.n_drafted > 0
    n_drafted, joining = answer.speculation.n_drafted, ahead.start(other.request, other)
    ahead.scheduler.step()
    while not joining.is_over:
        before = len(joining.tokens), len(talking.tokens)
        ahead.scheduler.step()
        assert (len(joining.tokens), len(talking.tokens)) == (before[0] + 1, before[1] + 1)
    assert answer.speculation.n_drafted == n_drafted
    ahead.finish()
    assert talking.find_done().usage.drafted_tokens > n_drafted  # alone again
    assert talking.tokens == ask(plain, long).tokens
    assert joining.tokens == ask(plain, other).tokens


@pytest.mark.parametrize("seed", sample(range(20), 2))
def test_conversations_with_edits_and_forks_are_the_same(
    engines: tuple[LocalEngine, LocalEngine], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(lookup, "N_GRAM", 2)  # so that much is drafted, right or wrong
    ahead, plain = engines
    dice = random.Random(seed)
    steps = walk(dice, 8)
    chat, n_drafted = next(steps), 0
    while True:
        request = make_request(chat, thinking=bool(seed % 2), tools=False)
        request = replace(request, sampling=replace(GREEDY, max_tokens=60))
        ours, theirs = ahead.ask(request), plain.ask(request)
        assert ours.tokens == theirs.tokens, (seed, chat)
        n_drafted += ours.find_done().usage.drafted_tokens
        try:
            chat = steps.send({"role": "assistant", "content": ours.join("answer")})  # type: ignore[attr-defined]
        except StopIteration:
            break
    assert n_drafted > 0


@pytest.mark.parametrize("budget", [ThinkingBudget(tokens=400), None])
def test_thinking_lands_at_the_same_token(tmp_path: Path, budget: ThinkingBudget | None) -> None:
    """A model that goes round for ever: by its budget, or for going round."""
    script = [START, *ROUND, ROUND[0], 255, END_THINK, *b"!=%", IM_END]
    path = write_model(tmp_path / "round.gguf", script=script, n_ctx_train=8192)
    request = ChatRequest((), sampling=GREEDY, thinking_budget=budget)
    prompt = Prompt(request, (1, 2, START), opens_thinking=True)
    plain, ahead = (LocalEngine(load(path, replace(OPTIONS, n_ctx=8192))) for _ in range(2))
    ours, theirs = ask(run_ahead(ahead), prompt), ask(plain, prompt)
    assert ours.tokens == theirs.tokens
    assert ours.join("answer") == "!=%"
    closing = CLOSINGS["tokens" if budget else "loop"]
    assert ours.join("thinking").rstrip().endswith(closing)
    assert ours.find_done().usage.accepted_tokens > 100


def test_a_context_that_fills_ends_it_at_the_same_token(rounds: Path) -> None:
    options = replace(OPTIONS, n_ctx=256, n_parallel=1)
    prompt = make_loop(10_000)
    plain, ahead = (LocalEngine(load(rounds, options)) for _ in range(2))
    ours, theirs = ask(run_ahead(ahead), prompt), ask(plain, prompt)
    assert ours.tokens == theirs.tokens
    assert len(ours.tokens) == 256 - 3 + 1
    assert ours.find_done().reason == "length"


def test_few_outputs_bound_the_drafts(rounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = run_ahead(LocalEngine(load(rounds, replace(OPTIONS, n_parallel=1, n_outputs=2))))
    lengths: set[int] = set()
    advance = speculation.Speculation.advance

    def listen(self: speculation.Speculation, row: int, drafts: list[int]) -> object:
        lengths.add(len(drafts))
        return advance(self, row, drafts)

    monkeypatch.setattr(speculation.Speculation, "advance", listen)
    ask(engine, make_loop(100))
    assert lengths == {0, 1}


def test_auto_drafts_only_what_pays(rounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: steps with drafts take as long as we say."""
    used = []
    for cost_s in (1.1, 20.0):
        engine = run_ahead(LocalEngine(load(rounds, OPTIONS)), "auto")
        pace = engine.scheduler.pace
        note_plain, note_ahead = pace.note_plain, pace.note_ahead
        monkeypatch.setattr(pace, "note_plain", lambda _s, note=note_plain: note(1.0))
        monkeypatch.setattr(
            pace, "note_ahead", lambda _s, n, note=note_ahead, s=cost_s: note(s if n else 1.0, n)
        )
        used.append(ask(engine, make_loop(900)).find_done().usage.drafted_tokens)
    assert used[0] > 3 * used[1] > 0
