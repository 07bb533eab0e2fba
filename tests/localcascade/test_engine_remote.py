"""The remote engine, against a server that says what a test wants (on 127.0.0.1), and how it fails.

Against the real llama-server: test_engine_llama_server.py.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse

from localcascade.engine.chat import AsyncChat, Chat
from localcascade.engine.client import Engine
from localcascade.engine.remote import RemoteEngine
from localcascade.engine.remote.endpoint import find_endpoint
from localcascade.errors import ContextFull, ModelNotFound, OfflineError, RemoteError
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    PromptProgress,
    Sampling,
    TokenLogprob,
    ToolCall,
    Usage,
)
from tests.localcascade.asking import ask, end, fail, join
from tests.localcascade.openai_server import (
    Stub,
    chunk,
    refuse,
    say,
    serve,
    speak_endlessly,
    stream,
)

KEY = "sk-very-secret"
INTEGERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
ADD = {"name": "add", "parameters": {"type": "object", "properties": INTEGERS}}
TOOLS = ({"type": "function", "function": ADD},)


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub) -> Stub:
    """The server, with nothing remembered."""
    fresh = Stub(server.url)
    server.__dict__.update(vars(fresh))
    return server


def hear(stub: Stub, request: ChatRequest | None = None, **options: Any) -> list[Event]:
    """Everything that an engine yields for one request."""
    with RemoteEngine(stub.url, **{"key": KEY, **options}) as engine:
        return list(engine.chat(request or ask("hi")))


def join_channel(events: list[Event], channel: str, index: int = 0) -> str:
    mine = [e for e in events if isinstance(e, Delta) and e.channel == channel]
    return "".join(event.text for event in mine if event.index == index)


def test_an_answer_with_counts_and_times(stub: Stub) -> None:
    timings = {"prompt_n": 5, "cache_n": 2, "prompt_ms": 20.0, "predicted_n": 2,
               "predicted_ms": 40.0, "predicted_per_second": 50.0}  # fmt: skip
    progress = {"total": 7, "cache": 2, "processed": 4, "time_ms": 1}
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    pieces = [chunk({}, prompt_progress=progress), chunk({"content": "Hel"}),
              chunk({"content": "lo"}), chunk({}, end="stop"),
              chunk(usage=usage, timings=timings), b"data: [DONE]\n\n"]  # fmt: skip
    stub.answer = lambda body: stream(pieces)
    events = hear(stub)
    done = end(events)
    assert events[0] == PromptProgress(4, 7, 2)
    assert join(events) == "Hello"
    assert (done.reason, done.usage) == ("stop", Usage(7, 2, 0, 2))
    assert (done.timings.prompt_s, done.timings.generation_s) == (0.02, 0.04)
    assert done.timings.tokens_per_s == 50


def test_the_openai_client_hears_the_same(stub: Stub) -> None:
    calls = [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a": 1,'}}]
    more = [{"index": 0, "function": {"arguments": ' "b": 2}'}}]
    pieces = [chunk({"content": "Wait."}), chunk({"tool_calls": calls}),
              chunk({"tool_calls": more}), chunk({}, end="tool_calls"),
              b"data: [DONE]\n\n"]  # fmt: skip
    stub.answer = lambda body: stream(pieces)
    ours = hear(stub, ChatRequest(({"role": "user", "content": "hi"},), tools=TOOLS))
    client = openai.OpenAI(base_url=stub.url, api_key=KEY)
    theirs = list(client.chat.completions.create(model="stub", messages=[], stream=True))
    deltas = [piece.choices[0].delta for piece in theirs]
    parts = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert join_channel(ours, "answer") == "".join(delta.content or "" for delta in deltas)
    assert [call for call in ours if isinstance(call, ToolCall)] == [
        ToolCall("c1", parts[0].name, json.loads("".join(part.arguments for part in parts)))
    ]
    assert end(ours).reason == theirs[-1].choices[0].finish_reason == "tool_calls"
    assert stub.headers[0]["authorization"] == stub.headers[-1]["authorization"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_that_the_server_tells_apart(stub: Stub, key: str) -> None:
    pieces = [chunk({key: "so "}), chunk({key: "2"}), chunk({"content": "It is <think> 2"})]
    stub.answer = lambda body: stream([*pieces, *say()[-3:]])
    events = hear(stub)
    assert join_channel(events, "thinking") == "so 2"
    assert join_channel(events, "answer") == "It is <think> 2", "tags are text where it splits"


def test_thinking_and_calls_that_the_server_leaves_in_the_text(stub: Stub) -> None:
    text = "<think>\nadd them\n</think>\n\nSure.<tool_call>\n<function=add>\n<parameter=a>\n1\n"
    text += "</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>"
    stub.answer = lambda body: stream(say(*text))
    events = hear(stub, ChatRequest(({"role": "user", "content": "hi"},), tools=TOOLS))
    assert join_channel(events, "thinking") == "add them"
    assert join_channel(events, "answer") == "Sure."
    assert [(e.name, e.arguments) for e in events if isinstance(e, ToolCall)] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert end(events).reason == "tool_calls"


def test_what_is_sent(stub: Stub) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    request = ChatRequest(
        messages=({"role": "assistant", "content": "", "tool_calls": [call]},),
        tools=TOOLS,
        thinking=False,
        sampling=Sampling(temperature=0.5, stop=("x",), logit_bias={3: -1.0}, json_schema={"a": 1}),
        logprobs=2,
    )
    hear(stub, request, model="mine")
    (body,) = stub.bodies
    assert body["model"] == "mine"
    assert json.loads(body["messages"][0]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["temperature"], body["stop"], body["logit_bias"]) == (0.5, ["x"], {"3": -1.0})
    assert body["response_format"]["json_schema"]["schema"] == {"a": 1}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert "top_p" not in body and "n" not in body, "what is open is the server's to choose"
    assert isinstance(call["function"]["arguments"], dict), "the request is left as it was"


def test_several_answers_and_their_log_probabilities(stub: Stub) -> None:
    told = {"content": [{"token": "b", "logprob": -1.0, "top_logprobs": [
        {"token": "a", "logprob": -0.5}]}]}  # fmt: skip
    pieces = [chunk({"content": "a"}), chunk({"content": "b"}, 1, logprobs=told),
              chunk({}, 1, end="length"), chunk({}, end="stop"), b"data: [DONE]\n\n"]  # fmt: skip
    stub.answer = lambda body: stream(pieces)
    events = hear(stub, ChatRequest((), n=2, logprobs=1))
    assert [join_channel(events, "answer", index) for index in (0, 1)] == ["a", "b"]
    assert TokenLogprob("b", -1.0, (("a", -0.5),), 1) in events
    assert [(e.index, e.reason) for e in events if isinstance(e, Done)] == [
        (0, "stop"), (1, "length")]  # fmt: skip


def test_heartbeats_line_ends_and_cuts_anywhere(stub: Stub) -> None:
    data = b"\xef\xbb\xbf: heartbeat\n\nevent: ping\n\n" + b"".join(say("Größe ", "😀"))
    for form in (data, data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r")):
        pieces = [form[i : i + 3] for i in range(0, len(form), 3)]
        stub.answer = lambda body, pieces=pieces: stream(pieces)  # type: ignore[misc]
        assert join(hear(stub)) == "Größe 😀"


def test_the_asynchronous_twin_yields_the_same(stub: Stub) -> None:
    stub.answer = lambda body: stream(say("<think>a</think>", "b"))

    async def hear_async() -> list[Event]:
        engine = RemoteEngine(stub.url)
        return [event async for event in engine.achat(ask("hi"))]

    events, same = asyncio.run(hear_async()), hear(stub)
    assert [e for e in events if isinstance(e, Delta)] == [e for e in same if isinstance(e, Delta)]
    assert end(events).usage == end(same).usage


def test_the_model_that_the_server_lists_first_is_asked(stub: Stub) -> None:
    rows = [{"id": "big", "meta": {"n_ctx": 4096, "n_vocab": 10}}, {"id": "b", "max_model_len": 8}]
    stub.models = lambda body: JSONResponse({"data": rows})
    hear(stub)
    assert stub.bodies[0]["model"] == "big"
    info = RemoteEngine(stub.url).load()
    assert (info.name, info.n_ctx, info.n_vocab) == ("big", 4096, 10)
    assert RemoteEngine(stub.url, model="b").load().n_ctx == 8
    with pytest.raises(ModelNotFound, match="no model c") as caught:
        RemoteEngine(stub.url, model="c").load()
    assert "big, b" in caught.value.hint


def test_hanging_up_is_heard(stub: Stub) -> None:
    stub.answer = lambda body: speak_endlessly(stub)
    with RemoteEngine(stub.url) as engine:
        chat = engine.chat(ask("hi"))
        assert isinstance(next(chat), Delta)
        chat.close()
        stub.has_hung_up.wait()
        assert list(chat) == []


def test_answer_now_reaches_the_server(stub: Stub) -> None:
    stub.answer = lambda body: speak_endlessly(stub)
    with RemoteEngine(stub.url, KEY) as engine:
        chat = engine.chat(ask("hi"))
        chat.answer_now()
        while not stub.controls:
            next(chat)
        chat.close()
    (control,) = stub.controls
    assert (control["id"], control["action"]) == ("chat-1", "reasoning_end")


def test_fields_that_a_server_does_not_know_are_taken_back(stub: Stub) -> None:
    """As OpenAI's own does: Unrecognized request argument supplied: return_progress."""

    def judge(body: dict[str, Any]) -> Any:
        strange = body.keys() & {"return_progress", "chat_template_kwargs"}
        message = f"Unrecognized request arguments supplied: {', '.join(sorted(strange))}"
        return refuse(400, message) if strange else stream(say("yes"))

    stub.answer = judge
    assert join(hear(stub)) == "yes"
    assert len(stub.bodies) == 2 and stub.bodies[1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (401, f"Incorrect API key: {KEY}", r"status 401: Incorrect API key: \*\*\*"),
        (403, "no", "status 403"),
        (404, "", "status 404"),
        (422, "temperature is wrong", "temperature is wrong"),
        (500, "a\nb\tc", "status 500: a b c"),
    ],
)
def test_refusals_are_typed_and_never_hold_the_key(
    stub: Stub, status: int, message: str, words: str
) -> None:
    stub.answer = lambda body: refuse(status, message)
    error = fail(hear(stub))
    assert isinstance(error, RemoteError) and error.status == status
    with pytest.raises(RemoteError, match=words):
        raise error
    assert KEY not in f"{error!r} {vars(error)}"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_says_how_long_to_wait(stub: Stub, status: int) -> None:
    stub.answer = lambda body: refuse(status, "busy", retry_after="17")
    error = fail(hear(stub))
    assert isinstance(error, RemoteError) and error.retry_after_s == 17
    assert "17 s" in error.hint


def test_a_model_or_a_context_that_it_has_not(stub: Stub) -> None:
    stub.answer = lambda body: refuse(404, "The model `x` does not exist", "model_not_found")
    assert isinstance(fail(hear(stub, model="x")), ModelNotFound)
    told = {"code": 400, "type": "exceed_context_size_error", "message": "too long",
            "n_prompt_tokens": 900, "n_ctx": 512}  # fmt: skip
    stub.answer = lambda body: JSONResponse({"error": told}, 400)
    error = fail(hear(stub))
    assert isinstance(error, ContextFull) and (error.need_tokens, error.have_tokens) == (900, 512)


def test_a_reply_that_breaks_off_keeps_what_came(stub: Stub) -> None:
    said = say("Hel", "lo <thi")[:3]
    for answer in (stream(said), stream(said, cut=True)):
        stub.answer = lambda body, answer=answer: answer  # type: ignore[misc]
        events = hear(stub)
        assert join(events) == "Hello <thi"
        assert isinstance(fail(events), RemoteError)
        assert "broke off" in str(fail(events))
        assert not any(isinstance(event, Done) for event in events)


def test_a_call_that_breaks_off_is_not_made(stub: Stub) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a": 1'}}
    pieces = [chunk({"tool_calls": [call]}), chunk({}, end="length"), b"data: [DONE]\n\n"]
    stub.answer = lambda body: stream(pieces)
    events = hear(stub)
    assert not any(isinstance(event, ToolCall) for event in events)
    assert join_channel(events, "answer") == 'add{"a": 1'
    assert end(events).reason == "length"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"data: {nonsense\n\n", "no JSON"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no JSON"),
        (b"data: [1]\n\n", "breaks the OpenAI format"),
        (b'data: {"choices": [{"index": 5, "delta": {}}]}\n\n', "answer 5"),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n', "content is 7, not str"),
        (b'data: {"choices": {"a": 1}}\n\n', "not list"),
        (b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', "out of memory"),
        (b"data: " + b"x" * (5 << 20), "more than 4 MiB"),
        ((b"data: " + b"x" * (1 << 20) + b"\n") * 5, "more than 4 MiB"),
    ],
    ids=["text", "nested", "list", "index", "number", "object", "error", "line", "lines"],
)
def test_what_is_no_chunk_fails_with_what_came(stub: Stub, data: bytes, words: str) -> None:
    stub.answer = lambda body: stream([chunk({"content": "so"}), data])
    events = hear(stub)
    assert join(events) == "so"
    with pytest.raises(RemoteError, match=words):
        raise fail(events)


def test_a_server_of_another_kind_is_recognized(stub: Stub) -> None:
    stub.answer = lambda body: HTMLResponse("<html>log in</html>")
    assert "text/html" in str(fail(hear(stub)))
    stub.models = lambda body: HTMLResponse("<html>log in</html>")
    with pytest.raises(RemoteError, match="no list of models"):
        RemoteEngine(stub.url).load()


def test_a_redirect_is_not_followed(stub: Stub) -> None:
    stub.answer = lambda body: RedirectResponse("http://127.0.0.1:9/elsewhere")
    error = fail(hear(stub, model="m"))
    assert isinstance(error, RemoteError) and "127.0.0.1:9/elsewhere" in error.hint


def test_silence_is_not_waited_for(stub: Stub) -> None:
    stub.answer = lambda body: stream([*say("a")[:2], *say("b")], pause_s=30)
    events = hear(stub, silence_s=0.3)
    assert "silent" in str(fail(events))


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = RemoteEngine(f"http://127.0.0.1:{port}", KEY)
    (failed,) = engine.chat(ask("hi"))
    assert "cannot be reached" in str(fail([failed]))
    with pytest.raises(RemoteError, match="cannot be reached"):
        engine.load()


def test_offline_only_this_machine_is_asked(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    assert join(hear(stub)) == "hello", "no proxy stands between us and this machine"
    engine = RemoteEngine("http://192.0.2.7:8080", model="m")
    assert isinstance(fail(list(engine.chat(ask("hi")))), OfflineError)
    with pytest.raises(OfflineError):
        engine.load()


def test_a_proxy_is_used_for_other_machines(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has 192.0.2.7, but our server, taken for a proxy, knows no such path."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", stub.url.removesuffix("/v1"))
    error = fail(list(RemoteEngine("http://192.0.2.7", model="m").chat(ask("hi"))))
    assert isinstance(error, RemoteError) and error.status == 404


@pytest.mark.parametrize(
    ("given", "base", "is_loopback"),
    [
        ("http://localhost:8080", "http://localhost:8080/v1", True),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1", True),
        ("https://a.example/api/v1/chat/completions", "https://a.example/api/v1", False),
        ("http://[::1]:80", "http://[::1]:80/v1", True),
        ("http://127.1.2.3", "http://127.1.2.3/v1", True),
        ("http://localhost.example", "http://localhost.example/v1", False),
    ],
)
def test_addresses(given: str, base: str, is_loopback: bool) -> None:
    endpoint = find_endpoint(given, None, 1.0)
    assert (endpoint.url, endpoint.is_loopback) == (base, is_loopback)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("localhost:8080", None),
        ("ftp://a", None),
        ("http://", None),
        ("http://a:0", None),
        (f"http://me:{KEY}@a", None),
        (f"http://a/v1?key={KEY}", None),
        ("http://a", f"{KEY}\n"),
        ("http://a", f"{KEY}é"),
    ],
)
def test_misuse_is_refused_without_telling_the_key(url: str, key: str | None) -> None:
    with pytest.raises(ValueError) as caught:
        RemoteEngine(url, key)
    assert KEY not in str(caught.value)


def test_requests_that_make_no_sense_are_refused_at_once(stub: Stub) -> None:
    engine = RemoteEngine(stub.url, KEY)
    with pytest.raises(ValueError, match="temperature"):
        engine.chat(ask("hi", temperature=-1.0))
    assert not stub.headers and KEY not in repr(engine.endpoint)


def test_it_offers_what_the_engine_of_a_file_offers() -> None:
    def describe(owner: type, name: str) -> str:
        names = inspect.signature(getattr(owner, name)).parameters
        return f"{name}({', '.join(names)})"

    shared = ("load", "chat", "achat", "close", "__enter__", "__exit__")
    assert [describe(RemoteEngine, n) for n in shared] == [describe(Engine, n) for n in shared]
    engine = RemoteEngine("http://127.0.0.1:9")
    assert type(engine.chat(ask("hi"))) is Chat
    assert type(engine.achat(ask("hi"))) is AsyncChat
