"""The whole way with the bundled model: OpenAI's client, HTTP, the engine, llama.cpp."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from localcascade.engine.client import Engine
from localcascade.engine.remote import RemoteEngine
from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    PromptProgress,
    Sampling,
    TokenLogprob,
    ToolCall,
)
from quantize.convert import quantize_checkpoint
from tests.localcascade.asking import ask, find_new_worker
from tests.localcascade.models import NEVER_SPECIAL, write_model
from tests.localcascade.server.serving import Served, serve
from tests.quantize.models import TINY

N_CTX = 2048
QUESTION = "What is 347 + 586?"
SUM = "347 + 586 = 933"
TWICE = "What is 347 * 586? Use the calculator."
CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0", n_threads=1, name="tiny")
    return path


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with Engine(tiny, n_ctx=N_CTX, n_threads=1, n_parallel=3, n_outputs=64) as engine:
        engine.load()
        yield engine


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with serve(engine, info=engine.load()) as served:
        yield served
        assert served.faults == []


def complete(served: Served, question: str = QUESTION, **fields: Any) -> Any:
    extra = {key: fields.pop(key) for key in [*fields] if key in _EXTRA}
    message: Any = {"role": "user", "content": question}
    return served.connect().chat.completions.create(
        model="tiny", messages=[message], extra_body=extra, **{"temperature": 0} | fields
    )


_EXTRA = {"chat_template_kwargs", "thinking_budget_tokens", "grammar", "top_k"}


def test_it_thinks_and_answers(served: Served) -> None:
    whole = complete(served)
    message = whole.choices[0].message
    assert message.content == SUM
    assert "7+6=13" in message.reasoning_content
    details = whole.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < whole.usage.completion_tokens
    assert whole.timings["predicted_n"] == whole.usage.completion_tokens
    assert complete(served).choices[0].message == message


def test_a_conversation_goes_on_where_it_stopped(served: Served) -> None:
    long = "These are my notes. " * 30 + QUESTION
    first, again = (complete(served, long, max_tokens=9, **NO_THINKING).usage for _ in range(2))
    assert again.prompt_tokens_details.cached_tokens > first.prompt_tokens / 2


def test_a_stream_says_the_same(served: Served) -> None:
    chunks = list(complete(served, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == SUM
    thinking = "".join(delta.model_extra.get("reasoning_content", "") for delta in deltas)
    assert thinking == complete(served).choices[0].message.reasoning_content
    assert len(deltas) > 20, "it comes piece by piece"


def test_thinking_can_be_left_out_or_cut_short(served: Served) -> None:
    whole = complete(served, **NO_THINKING, max_tokens=60)
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    assert not hasattr(whole.choices[0].message, "reasoning_content")
    short = complete(served, thinking_budget_tokens=12)
    assert 0 < short.usage.completion_tokens_details.reasoning_tokens <= 12
    assert short.choices[0].message.content


def test_it_calls_a_tool_and_reads_the_result(served: Served) -> None:
    whole = complete(served, TWICE, tools=[CALCULATOR])
    message = whole.choices[0].message
    (call,) = message.tool_calls
    assert (whole.choices[0].finish_reason, call.function.name) == ("tool_calls", "calculator")
    assert json.loads(call.function.arguments) == {"expression": "347*586"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "203342"}
    conversation: Any = [{"role": "user", "content": TWICE}, message, result]
    after = served.connect().chat.completions.create(
        model="tiny", messages=conversation, tools=[CALCULATOR], temperature=0
    )
    assert "203342" in (after.choices[0].message.content or "")
    none = complete(served, TWICE, tools=[CALCULATOR], tool_choice="none")
    assert none.choices[0].message.tool_calls is None


def test_answers_of_a_given_form(served: Served) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    told = json.loads(complete(served, response_format=form).choices[0].message.content)
    assert isinstance(told["sum"], int)
    plain = complete(served, grammar='root ::= "yes" | "no"', **NO_THINKING)
    assert plain.choices[0].message.content in ("yes", "no")


def test_limits_and_stops(served: Served) -> None:
    short = complete(served, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
    stopped = complete(served, stop=["=", "@"]).choices[0]
    assert (stopped.message.content.strip(), stopped.finish_reason) == ("347 + 586", "stop")


def test_several_answers(served: Served) -> None:
    whole = complete(
        served, "Hello!", n=3, temperature=3, top_p=1, seed=5, max_tokens=30, **NO_THINKING
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3
    assert whole.usage.completion_tokens > 3


def test_log_probabilities(served: Served) -> None:
    whole = complete(served, logprobs=True, top_logprobs=3)
    told = whole.choices[0].logprobs.content
    message = whole.choices[0].message
    text = "".join(one.token for one in told)
    assert message.content in text and message.reasoning_content in text
    for one in told:
        assert one.logprob == one.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"logit_bias": {"999999": 1}}, "logit_bias", "token 999999"),
        ({"response_format": {"type": "json_object", "schema": {"type": "x"}}},
         "response_format", "'x' is no type"),
        ({"response_format": {"type": "json_object", "schema": {"properties": [1]}}},
         "response_format", "malformed"),
        ({"response_format": {"type": "json_object", "schema": {"minItems": "a", "items": 1}}},
         "response_format", "JSON schema"),
        ({"grammar": "nonsense"}, "grammar", "GBNF"),
        ({"grammar": "root ::= root"}, "grammar", "GBNF"),
    ],
)  # fmt: skip
def test_what_only_the_engine_can_judge(
    served: Served, fields: dict[str, Any], param: str, words: str
) -> None:
    """Refused, and nobody else's answer ends with it: the engine goes on."""
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        complete(served, **fields)
    assert caught.value.param == param
    assert complete(served, max_tokens=1).choices


def test_a_prompt_longer_than_the_context(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(served, "word " * N_CTX)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    body: Any = caught.value.body
    assert body["n_prompt_tokens"] > N_CTX == body["n_ctx"]


def test_two_streams_run_side_by_side(served: Served) -> None:
    """Each goes on while the other is read, and says what it says alone."""
    questions = [QUESTION, "What is 123 + 456?"]
    alone = [complete(served, question).choices[0].message.content for question in questions]
    streams = [iter(complete(served, question, stream=True)) for question in questions]
    texts, n_alive = ["", ""], []
    while streams:
        n_alive.append(len(streams))
        for index, stream in enumerate(list(streams)):
            chunk = next(stream, None)
            if chunk is None:
                streams.remove(stream)
            elif len(streams) == 2:
                texts[index] += chunk.choices[0].delta.content or ""
    assert n_alive.count(2) > 20
    assert alone[0] == SUM and texts[0] in alone[0]


def hear(engine: Engine | RemoteEngine, request: ChatRequest) -> list[Event]:
    return list(engine.chat(request))


def strip(events: list[Event]) -> list[Event]:
    """What must be the same: all but progress, times, names of calls, and their raw text."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, ToolCall):
            kept.append(replace(event, id=""))
        elif isinstance(event, Done):
            usage = replace(event.usage, reused_tokens=0, drafted_tokens=0, accepted_tokens=0)
            kept.append(replace(event, usage=usage, timings=None))  # type: ignore[arg-type]
        elif not isinstance(event, PromptProgress) and getattr(event, "channel", "") != "tool_call":
            kept.append(event)
    return kept


GREEDY = ask(QUESTION, 300)
REQUESTS = {
    "thinking": replace(GREEDY, thinking=True),
    "instruct": GREEDY,
    "budget": replace(GREEDY, thinking=True, thinking_budget=ThinkingBudget(12)),
    "length": replace(GREEDY, sampling=Sampling(temperature=0, max_tokens=9)),
    "schema": replace(GREEDY, sampling=Sampling(temperature=0, max_tokens=99,
                                                json_schema={"enum": ["a", "b"]})),
    "calls": replace(ask(TWICE, 300), thinking=True, tools=(CALCULATOR,)),
    "logprobs": replace(GREEDY, logprobs=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(served: Served) -> Iterator[dict[str, RemoteEngine]]:
    """Engines of the server, and of a server that stands before it."""
    with (
        RemoteEngine(served.url) as near,
        serve(near, "far", near.load()) as second,
        RemoteEngine(second.url) as far,
    ):
        yield {"near": near, "far": far}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("distance", ["near", "far"])
def test_a_remote_engine_says_what_the_engine_says(
    engine: Engine, chain: dict[str, RemoteEngine], name: str, distance: str
) -> None:
    request = REQUESTS[name]
    ours, theirs = hear(engine, request), hear(chain[distance], request)
    assert [e for e in strip(theirs) if not isinstance(e, TokenLogprob)] == [
        e for e in strip(ours) if not isinstance(e, TokenLogprob)
    ]
    assert [e.text for e in theirs if isinstance(e, TokenLogprob)] == [
        e.text for e in ours if isinstance(e, TokenLogprob)
    ]
    read = [event for event in theirs if isinstance(event, PromptProgress)]
    assert read[-1].done == read[-1].total
    if name == "calls":
        assert any(isinstance(event, ToolCall) for event in theirs)


def test_a_remote_engine_knows_the_model(engine: Engine, chain: dict[str, RemoteEngine]) -> None:
    info = engine.load()
    for name, far in (("tiny", chain["near"]), ("far", chain["far"])):
        told = far.load()
        assert (told.name, told.n_ctx, told.n_ctx_train, told.n_vocab) == (
            name, info.n_ctx, info.n_ctx_train, info.n_vocab,
        )  # fmt: skip


@pytest.fixture
def tireless(tmp_path: Path) -> Iterator[Engine]:
    """A model that never stops, one request at a time."""
    path = write_model(tmp_path / "endless.gguf", n_ctx_train=1 << 17)
    with Engine(path, n_ctx=1 << 16, n_threads=1, n_parallel=1) as engine:
        yield engine


@pytest.fixture
def endless(tireless: Engine) -> Iterator[Served]:
    with serve(tireless, info=tireless.load()) as served:
        yield served


def test_hanging_up_makes_room_for_the_next(endless: Served) -> None:
    stream = complete(endless, stream=True)
    next(iter(stream))
    waiting: list[Any] = []
    second = threading.Thread(target=lambda: waiting.append(complete(endless, max_tokens=2)))
    second.start()
    second.join(0.5)
    assert waiting == [], "it waits for its turn"
    stream.close()
    second.join()
    assert waiting[0].usage.completion_tokens == 2


@pytest.mark.parametrize("budget", [None, ThinkingBudget(seconds=0.01)], ids=["asked", "seconds"])
def test_thinking_can_be_ended_from_afar(endless: Served, budget: ThinkingBudget | None) -> None:
    request = ChatRequest(
        ({"role": "user", "content": "hi"},),
        sampling=Sampling(temperature=1, logit_bias=NEVER_SPECIAL),
        thinking_budget=budget,
    )
    with (
        RemoteEngine(endless.url) as near,
        serve(near, "far", near.load()) as second,
        RemoteEngine(second.url) as far,
    ):
        chat, thinking = far.chat(request), ""
        for event in chat:
            if isinstance(event, Delta) and event.channel == "answer":
                break
            if isinstance(event, Delta) and not thinking and budget is None:
                chat.answer_now()
            thinking += event.text if isinstance(event, Delta) else ""
        chat.close()
    assert "I am asked to answer right away" in thinking


def test_an_engine_that_dies_is_told_of_and_started_again(tireless: Engine) -> None:
    worker = find_new_worker(tireless.load)
    with serve(tireless, info=tireless.load()) as served:
        stream = complete(served, stream=True)
        next(iter(stream))
        worker.kill()
        with pytest.raises(openai.APIError, match="the engine was killed"):
            list(stream)
        assert complete(served, max_tokens=2).usage.completion_tokens == 2
