"""Requests that did harm: each is refused by name, and costs nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localcascade.engine.client import Engine
from localcascade.errors import ContextFull, TemplateError
from localcascade.prompt.events import ChatRequest, Delta, Done, Event, Failed, Sampling
from quantize.convert import quantize_checkpoint
from tests.localcascade.asking import ask, end, fail, find_workers, join
from tests.quantize.models import TINY

N_CTX = 2048
LONG = 3_000_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("requests") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0", n_threads=1)
    with Engine(path, n_ctx=N_CTX, n_threads=1, n_parallel=2) as engine:
        engine.load()
        yield engine


@pytest.fixture(autouse=True)
def unharmed(engine: Engine) -> Iterator[None]:
    """The worker is the same after each test, and still answers."""
    before = find_workers()
    yield
    assert find_workers() == before
    assert end(list(engine.chat(ask("Hello", 3)))).reason == "length"


def nest(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"items": value}
    return value


GRAMMARS = {
    "zero byte": 'root ::= "a\0"',
    "zero escape": 'root ::= "\\x00"',
    "no such token": "root ::= <[99999999]>",
    "token that ends": 'root ::= "a" <|im_end|>',
    "backwards": "root ::= [z-a]",
    "counting down": 'root ::= "a"{5,3}',
    "much": f'root ::= "{"a" * 100_000}"{{2000}}',
    "endless": 'root ::= b root "x" | "y"\nb ::= c\nc ::= ""',
    "surrogate": 'root ::= "\ud800"',
}


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_a_grammar_is_refused_and_the_answer_beside_it_goes_on(
    engine: Engine, grammar: str
) -> None:
    beside = engine.chat(ask("Tell me.", 60))
    said = [next(event for event in beside if isinstance(event, Delta))]
    with pytest.raises(ValueError, match=r"^grammar: "):
        refuse(engine, Sampling(grammar=grammar, temperature=0))
    said += [event for event in beside if isinstance(event, Delta)]
    assert join([*said]) == join(list(engine.chat(ask("Tell me.", 60))))


def refuse(engine: Engine, sampling: Sampling) -> None:
    """Raise what a request with this sampling is refused with, at once or as an event."""
    raise fail(list(engine.chat(replace(ask("x"), sampling=sampling))))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"minLength": 5, "maxLength": 3}, "minLength is 5"),
        ({"type": "array", "minItems": 5, "maxItems": 3}, "minItems is 5"),
        ({"enum": ["\ud800"]}, "half a character"),
        ({"enum": [f"v{i}" for i in range(100_000)]}, "characters, but may have"),
        (nest(500), "too deeply"),
        (nest(3000), "too deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schema_is_refused(engine: Engine, schema: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^JSON schema.*{problem}"):
        refuse(engine, Sampling(json_schema=schema))


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(stop=("a" * 1_000_000,)), "stop"),
        (Sampling(stop=(1,)), "stop"),  # type: ignore[arg-type]
        (Sampling(seed=0.5), "seed"),  # type: ignore[arg-type]
        (Sampling(max_tokens=10**400), "max_tokens"),
        (Sampling(logit_bias={2: 10**400}), "logit_bias"),
        (Sampling(logit_bias={2**40: 1.0}), "logit_bias"),
    ],
)
def test_a_value_is_refused_by_name(engine: Engine, sampling: Sampling, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        refuse(engine, sampling)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-300, top_p=1, seed=1),
        Sampling(temperature=1e9, repeat_penalty=1e9, seed=1),
        Sampling(temperature=1, presence_penalty=1e9, frequency_penalty=-1e9, seed=1),
        Sampling(temperature=1, presence_penalty=1, penalty_tokens=2**31 - 1, seed=1),
        Sampling(temperature=1e-5, logit_bias=dict.fromkeys(range(500), 1e9), seed=1),
        Sampling(top_k=2**31 - 1, seed=-(2**63)),
    ],
)
def test_an_extreme_value_is_harmless(engine: Engine, sampling: Sampling) -> None:
    request = replace(ask("x"), sampling=replace(sampling, max_tokens=5))
    assert end(list(engine.chat(request))).reason in ("length", "stop")


@pytest.mark.parametrize(
    "change",
    [
        {"tools": (5,)},
        {"tools": (None,)},
        {"tools": ({"function": {"name": "f", "parameters": nest(20_000)}},)},
        {"messages": ({"role": "user", "content": 10**5000},)},
        {"messages": (nest(900),)},
    ],
    ids=["number", "nothing", "deep tool", "long number", "deep message"],
)
def test_what_is_no_request_is_refused(engine: Engine, change: dict[str, Any]) -> None:
    try:
        events: list[Event] = list(engine.chat(replace(ask("x"), **change)))
    except ValueError:
        return
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, ValueError | TemplateError)


# ---- length ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["a", " ", "漢", "<|im_end|>", "a'", "some words. "])
def test_a_prompt_of_any_length_ends_in_a_full_context(engine: Engine, unit: str) -> None:
    error = fail(list(engine.chat(ask(unit * (LONG // len(unit))))))
    assert isinstance(error, ContextFull)
    assert error.is_least and error.have_tokens == N_CTX
    assert 2 * N_CTX < error.need_tokens <= LONG + 100
    assert error.message_tokens[0] > 100 * N_CTX


def test_a_prompt_of_very_many_messages_does_too(engine: Engine) -> None:
    messages = tuple({"role": "user", "content": f"message {i}"} for i in range(5000))
    error = fail(list(engine.chat(ChatRequest(messages))))
    assert isinstance(error, ContextFull) and len(error.droppable) == 4999


# ---- seeds -----------------------------------------------------------------------------------


def test_a_seed_repeats_every_answer_whatever_came_between(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0", n_threads=1)
    sampling = Sampling(temperature=3.0, top_p=1.0, seed=7, max_tokens=80)
    dice = replace(ask("Tell me about the sea."), sampling=sampling, n=3)
    with Engine(path, n_ctx=N_CTX, n_threads=1) as engine:
        first = list_texts(engine, dice)
        assert len(set(first)) == 3
        assert list_texts(engine, dice) == first
        list_texts(engine, ask("Something else. " * 30, 40))
        beside = engine.chat(ask("And beside it?", 30))
        next(beside)
        assert list_texts(engine, dice) == first
        assert isinstance(list(beside)[-1], Done)
        alone = (replace(dice, n=1, sampling=replace(sampling, seed=7 + i)) for i in range(3))
        assert [list_texts(engine, one)[0] for one in alone] == first


def list_texts(engine: Engine, request: ChatRequest) -> list[str]:
    """The text of each answer."""
    events = list(engine.chat(request))
    assert isinstance(events[-1], Done), events[-1]
    return [
        join([event for event in events if isinstance(event, Delta) and event.index == index])
        for index in range(request.n)
    ]
