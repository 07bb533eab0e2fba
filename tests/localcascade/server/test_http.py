"""The server over HTTP, with an engine that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

from localcascade.errors import (
    ContextFull,
    EngineDied,
    OutOfBudget,
    RemoteError,
    TemplateError,
)
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Event,
    Failed,
    PromptProgress,
    ToolCall,
)
from localcascade.server import app as app_module
from localcascade.server import reply
from localcascade.server.gate import Guard
from tests.localcascade.server.serving import ScriptedEngine, Served, end, say, serve

HELLO: Any = [{"role": "user", "content": "hello"}]
ENDLESS = [PromptProgress(1, 1, 0), Delta("on ", "answer"), None, *say()]


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.005)


def connect(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)))


def post(served: Served, body: Any, **headers: str) -> httpx2.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{served.url}/chat/completions"
    return httpx2.post(url, content=data, headers=headers, trust_env=False, timeout=120)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(say("It is 4.", "2 and 2\n"))


@pytest.fixture
def served(engine: ScriptedEngine) -> Iterator[Served]:
    with serve(engine) as served:
        yield served
        assert served.faults == []


def test_openais_client_hears_an_answer(served: Served, engine: ScriptedEngine) -> None:
    whole = served.connect().chat.completions.create(model="tiny", messages=HELLO, seed=3)
    message = whole.choices[0].message
    assert (message.content, message.to_dict()["reasoning_content"]) == ("It is 4.", "2 and 2\n")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage and whole.usage.prompt_tokens_details
    assert whole.usage.prompt_tokens_details.cached_tokens == 30
    assert engine.requests[0].sampling.seed == 3


def test_openais_client_hears_a_stream(served: Served) -> None:
    stream = served.connect().chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (text, chunks[-2].choices[0].finish_reason) == ("It is 4.", "stop")
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 60


def test_a_stream_on_the_wire(served: Served) -> None:
    answer = post(served, {"messages": HELLO, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith('data: {"id":"chatcmpl-') for line in lines[:-2])


def test_models_and_health(served: Served) -> None:
    models = served.connect().models
    (model,) = models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert models.retrieve("tiny") == model
    assert model.to_dict()["meta"] == {"n_ctx": 1000, "n_ctx_train": 4000, "n_vocab": 300}
    health = httpx2.get(served.url.replace("/v1", "/health"), trust_env=False, timeout=120)
    assert health.json() == {"status": "ok"}


def test_another_model_is_not_there(served: Served, engine: ScriptedEngine) -> None:
    client = served.connect()
    with pytest.raises(openai.NotFoundError, match="this server has tiny") as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/nothing", 404, "/v1/chat/completions"),
        ("GET", "/", 404, "/v1/chat/completions"),
        ("GET", "/v1/chat/completions", 405, "does not take 'GET'"),
        ("POST", "/v1/models", 405, "does not take 'POST'"),
        ("POST", "/v1/completions", 404, "nothing at '/v1/completions'"),
    ],
)
def test_paths_and_methods_that_are_none(
    served: Served, method: str, path: str, status: int, words: str
) -> None:
    answer = httpx2.request(method, served.url.replace("/v1", path), trust_env=False, timeout=120)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert (status == 405) == ("allow" in answer.headers)


def test_bodies_that_are_wrong(served: Served, engine: ScriptedEngine) -> None:
    answer = post(served, {"messages": HELLO, "temperature": "hot"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (
        400, "temperature", "invalid_request_error",
    )  # fmt: skip
    assert post(served, b"nonsense").status_code == 400
    assert post(served, b"").status_code == 400
    assert engine.requests == []


def test_numbers_that_make_no_sense_are_the_engines_to_refuse() -> None:
    from localcascade.engine.client import Engine

    with serve(Engine("/nowhere.gguf")) as served:  # type: ignore[arg-type]
        answers = [post(served, {"messages": HELLO} | fields) for fields in
                   ({"top_p": 7}, {"n": 1000}, {"logprobs": True, "top_logprobs": 99},
                    {"thinking_budget_tokens": -5}, {"thinking_budget_seconds": 0},
                    {"grammar": "x", "response_format": {"type": "json_object"}})]  # fmt: skip
    assert [a.status_code for a in answers] == [400] * 6
    assert [a.json()["error"]["param"] for a in answers] == [
        "top_p", "n", "top_logprobs", "thinking_budget_tokens", "thinking_budget_seconds", None,
    ]  # fmt: skip


def test_a_body_that_is_too_long_is_not_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(served) as connection:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999"
        )
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 100)
    pieces = iter([b" " * 60] * 3)
    answer = httpx2.post(
        f"{served.url}/chat/completions", content=pieces, trust_env=False, timeout=120
    )
    assert answer.status_code == 413, "also where the length is not told ahead"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextFull(900, 512), 400, "context_length_exceeded"),
        (TemplateError("no system message, please", "Leave it out."), 400, "template_error"),
        (ValueError("logit_bias: token 999 is not among 300"), 400, None),
        (ValueError("JSON schema, #: 'x' is no type"), 400, None),
        (EngineDied("the engine was killed"), 503, "engine_died"),
        (OutOfBudget("too large", need_bytes=2, have_bytes=1), 503, "out_of_memory"),
        (RemoteError("no", status=401), 502, "remote_error"),
        (RemoteError("temperature is wrong", status=400), 400, None),
        (RemoteError("gone"), 502, "remote_error"),
        (RemoteError("busy", status=429, retry_after_s=7), 429, "remote_error"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_what_fails_before_the_first_word_has_a_status(
    served: Served,
    engine: ScriptedEngine,
    error: Exception,
    status: int,
    code: str | None,
    streams: bool,
) -> None:
    engine.script = [Failed(error)]
    answer = post(served, {"messages": HELLO, "stream": streams})
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (status, code)
    assert str(error) in told["message"]
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_a_context_that_is_full_tells_the_numbers(served: Served, engine: ScriptedEngine) -> None:
    engine.script = [Failed(ContextFull(900, 512))]
    with pytest.raises(openai.BadRequestError, match=r"900 tokens.*512") as caught:
        served.connect().chat.completions.create(model="tiny", messages=HELLO)
    body: Any = caught.value.body
    assert (body["n_prompt_tokens"], body["n_ctx"], body["param"]) == (900, 512, "messages")


def test_what_fails_later_is_told_in_the_stream(served: Served, engine: ScriptedEngine) -> None:
    engine.script = [Delta("half", "answer"), Failed(EngineDied("the engine was killed"))]
    heard = ""
    with pytest.raises(openai.APIError, match="the engine was killed"):
        for chunk in served.connect().chat.completions.create(
            model="tiny", messages=HELLO, stream=True
        ):
            heard += chunk.choices[0].delta.content or ""
    assert heard == "half"
    assert post(served, {"messages": HELLO}).status_code == 503, "who waits gets no half"


def test_an_answer_without_an_end_is_a_failure(served: Served, engine: ScriptedEngine) -> None:
    engine.script = [Delta("half", "answer")]
    assert post(served, {"messages": HELLO}).status_code == 503
    assert "in the middle of an answer" in post(served, {"messages": HELLO, "stream": True}).text


def test_a_fault_of_ours_is_reported_here_and_not_to_the_client() -> None:
    def play(_request: ChatRequest) -> list[Event]:
        raise KeyError("my secret diary")

    with serve(ScriptedEngine(play)) as served:
        answer = post(served, {"messages": HELLO})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "diary" not in answer.text
        (fault,) = served.faults
        assert isinstance(fault, KeyError)
        assert post(served, {"messages": HELLO}).status_code == 500, "it goes on"


def test_tool_calls(served: Served, engine: ScriptedEngine) -> None:
    call_of_add = ToolCall("call_1", "add", {"a": "\ud800é"})
    engine.script = [Delta("<function=add>", "tool_call"), call_of_add, end("tool_calls")]
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    client = served.connect().chat.completions
    first = client.create(model="tiny", messages=HELLO, tools=[tool]).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.tool_calls
    call: Any = first.message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"a": "?é"}, "half a character is no text"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    again = client.create(
        model="tiny", messages=[*HELLO, first.message, result], tools=[tool], tool_choice="auto"
    )
    assert again.choices[0].message.tool_calls
    assert again.choices[0].message.tool_calls[0].id != call.id, "no call is named as another"
    sent = engine.requests[1].messages
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == call.id


def test_hanging_up_cancels_the_generation(served: Served, engine: ScriptedEngine) -> None:
    engine.script = ENDLESS
    stream = served.connect().chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert next(iter(stream)).choices
    stream.close()
    wait_until(lambda: engine.n_cancelled == 1)
    assert engine.n_running == 0


@pytest.mark.parametrize("script", [ENDLESS, [None, *say()]], ids=["midway", "before"])
@pytest.mark.parametrize("streams", [False, True])
def test_hanging_up_while_nothing_comes_cancels_too(
    served: Served, engine: ScriptedEngine, script: list[Event | None], streams: bool
) -> None:
    engine.script = script
    body = json.dumps({"messages": HELLO, "stream": streams})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    with connect(served) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        wait_until(lambda: engine.n_running == 1)
    wait_until(lambda: engine.n_cancelled == 1)
    assert engine.n_running == 0


def test_two_streams_at_once(served: Served, engine: ScriptedEngine) -> None:
    """The first one waits in the middle while the second one is answered whole."""
    engine.script = lambda request: (
        ENDLESS if request.n == 1 and len(engine.requests) == 1 else say()
    )
    client = served.connect()
    slow = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    chunks = iter(slow)
    first = next(chunks)
    quick = client.chat.completions.create(model="tiny", messages=HELLO)
    assert quick.choices[0].message.content == "It is 4."
    assert engine.n_running == 1
    wish = {"id": first.id, "action": "reasoning_end", "model": "tiny"}
    control = f"{served.url}/chat/completions/control"
    assert httpx2.post(control, json=wish, trust_env=False, timeout=120).json() == {"success": True}
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "on It is 4."
    wait_until(
        lambda: httpx2.post(control, json=wish, trust_env=False, timeout=120).status_code == 404
    )
    gone = httpx2.post(control, json=wish, trust_env=False, timeout=120)
    assert gone.json()["error"]["param"] == "id"


def test_a_silent_stream_gives_signs_of_life(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply.follow, "__defaults__", (0.05,))
    engine.script = [None, *say()]
    with serve(engine) as served, httpx2.stream(
        "POST", f"{served.url}/chat/completions", json={"messages": HELLO, "stream": True},
        trust_env=False, timeout=120,
    ) as answer:  # fmt: skip
        lines = answer.iter_lines()
        heard = [next(lines)]
        while heard[-1] != ": waiting":
            heard.append(next(lines))


def test_a_crowd_is_asked_to_come_back(
    served: Served, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_WAITING", 1)
    engine.script = ENDLESS
    stream = served.connect().chat.completions.create(model="tiny", messages=HELLO, stream=True)
    answer = post(served, {"messages": HELLO})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    stream.close()
    wait_until(lambda: engine.n_running == 0)
    engine.script = say()
    wait_until(lambda: post(served, {"messages": HELLO}).status_code == 200)


def test_stopping_ends_what_is_under_way(engine: ScriptedEngine) -> None:
    engine.script = ENDLESS
    with serve(engine) as served:
        stream = served.connect().chat.completions.create(model="tiny", messages=HELLO, stream=True)
        next(iter(stream))
        served.server.should_exit = True
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
    assert (engine.n_running, engine.n_cancelled) == (0, 1)


def test_a_line_for_each_request_tells_nothing_that_was_said(engine: ScriptedEngine) -> None:
    lines: list[str] = []
    with serve(engine, log=lines.append) as served:
        for number, body in enumerate(({"messages": HELLO}, b"hello"), 1):
            post(served, body)
            wait_until(lambda number=number: len(lines) == number)  # type: ignore[misc]
    assert lines[0].startswith("POST /v1/chat/completions 200 ")
    assert lines[1].startswith("POST /v1/chat/completions 400 ")
    assert "hello" not in "".join(lines)


KEY = "a-secret"


@pytest.fixture
def locked(engine: ScriptedEngine) -> Iterator[Served]:
    with serve(engine, guard=Guard(KEY)) as served:
        yield served


@pytest.mark.parametrize("given", ["", "a", "a-secret-too", "é"])
def test_a_wrong_key_is_refused(locked: Served, engine: ScriptedEngine, given: str) -> None:
    headers = {"Authorization": f"Bearer {given}".encode()} if given else {}
    for path in ("/models", "/nothing"):
        answer = httpx2.get(f"{locked.url}{path}", headers=headers, trust_env=False, timeout=120)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert KEY not in answer.text
    assert engine.requests == []


def test_the_right_key_opens(locked: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.connect("wrong").models.list()
    client = locked.connect(KEY)
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices
    health = httpx2.get(locked.url.replace("/v1", "/health"), trust_env=False, timeout=120)
    assert health.status_code == 200, "whether it lives may be known to all"


def test_events_are_not_mixed_up_between_answers(served: Served, engine: ScriptedEngine) -> None:
    engine.script = [Delta("a", "answer", 0), Delta("b", "answer", 1), Delta("c", "answer", 0),
                     end(index=1), end("length", index=0)]  # fmt: skip
    whole = served.connect().chat.completions.create(model="tiny", messages=HELLO, n=2)
    told = [(c.message.content, c.finish_reason) for c in whole.choices]
    assert told == [("ac", "length"), ("b", "stop")]


def test_many_clients_at_once(served: Served, engine: ScriptedEngine) -> None:
    async def ask_all() -> list[str | None]:
        client = openai.AsyncOpenAI(base_url=served.url, api_key="any", max_retries=0)
        ask = client.chat.completions.create
        answers = await asyncio.gather(*(ask(model="tiny", messages=HELLO) for _ in range(40)))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == ["It is 4."] * 40
