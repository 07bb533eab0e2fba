"""The wire: what goes in at one end comes out at the other, and nothing but plain data passes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade import errors
from localcascade.engine.wire import (
    Channel,
    decode_chat_request,
    decode_error,
    decode_event,
    encode_chat_request,
    encode_error,
    encode_event,
)
from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import (
    ChatRequest,
    ContextEnd,
    Delta,
    Done,
    Event,
    PromptProgress,
    Sampling,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

# Lone surrogates included: a terminal may hand them over.
ANY_TEXT = st.text(st.characters())
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


def pass_over(frame: object) -> object:
    left, right = (Channel(end) for end in socket.socketpair())
    left.send({"frame": frame})
    received, _ = right.receive()
    left.close()
    right.close()
    return received["frame"]


@given(ANY_TEXT, PLAIN)
def test_a_chat_request_arrives_as_it_was(text: str, arguments: object) -> None:
    request = ChatRequest(
        messages=({"role": "user", "content": text}, {"role": "tool", "arguments": arguments}),
        tools=({"type": "function", "function": {"name": text}},),
        thinking=False,
        sampling=Sampling(
            temperature=0.5, seed=3, logit_bias={7: -1.5}, stop=(text or "x",), json_schema={}
        ),
        n=3,
        logprobs=2,
        thinking_budget=ThinkingBudget(tokens=9),
        session=text,
    )
    frame = pass_over(encode_chat_request(request))
    assert isinstance(frame, dict)
    assert decode_chat_request(frame) == request


@pytest.mark.parametrize(
    "event",
    [
        PromptProgress(3, 9, 2),
        Delta("é\n\x00", "thinking"),
        Delta("x", "answer", 2),
        ToolCall("call_0", "calculator", {"a": [1, {"b": None}]}),
        TokenLogprob("x", -0.5, (("x", -0.5), ("y", -1.25)), 1),
        ContextEnd(512, (3, 9, 8, 2), ((1,), (2, 3)), 1),
        Done("tool_calls", Usage(1, 2, 3, 4), Timings(0.5, 1.0, 2.0, 2.0), 1),
    ],
)
def test_an_event_arrives_as_it_was(event: Event) -> None:
    encoded = pass_over(encode_event(event))
    assert isinstance(encoded, list)
    assert decode_event(encoded) == event


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelFileError(Path("a.gguf"), "is odd", tensor="t", hint="Look."),
        errors.TemplateError("line 3", "Look."),
        errors.ContextFull(900, 512, [3, 97, 800], [[1]], is_least=True),
        errors.NativeError("llama_decode", -3),
        ValueError("temperature is 9"),
    ],
)
def test_an_error_arrives_with_its_fields_and_its_message_said_once(error: Exception) -> None:
    frame = pass_over(encode_error(error))
    assert isinstance(frame, dict)
    arrived = decode_error(frame)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    fields = {key: str(value) for key, value in vars(error).items()}
    assert {key: str(value) for key, value in vars(arrived).items()} == fields


def test_a_kind_of_error_that_the_client_does_not_know_arrives_as_the_nearest() -> None:
    try:
        "\ud800".encode()
    except UnicodeEncodeError as error:
        arrived = decode_error(encode_error(error))
        assert type(arrived) is ValueError and str(arrived) == str(error)


def test_what_is_nested_too_deeply_is_misuse(ends: tuple[Channel, Channel]) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        ends[0].send({"a": deep})
    schema: dict[str, object] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="JSON schema: it is nested too deeply"):
        encode_chat_request(ChatRequest((), sampling=Sampling(json_schema=schema)))


def test_a_payload_follows_its_header(ends: tuple[Channel, Channel]) -> None:
    payload = bytes(range(256)) * 20_000  # more than a socket's buffer
    sender = threading.Thread(target=ends[0].send, args=({"id": 1}, payload))
    sender.start()
    header, received = ends[1].receive()
    sender.join()
    assert header == {"id": 1}
    assert received == payload


def test_frames_of_many_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    senders = [
        threading.Thread(target=lambda i=i: [ends[0].send({"id": i}, bytes([i]) * 5000)] * 20)
        for i in range(8)
    ]
    for sender in senders:
        sender.start()
    for _ in senders:
        header, payload = ends[1].receive()
        assert payload == bytes([header["id"]]) * 5000
    for sender in senders:
        sender.join()


def test_a_hang_up_is_the_end_and_not_a_wait(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_a_frame_cut_short_is_the_end(ends: tuple[Channel, Channel]) -> None:
    left, right = socket.socketpair()
    left.sendall(b"\x00\x00\x00\x40")
    left.close()
    with pytest.raises(EOFError):
        Channel(right).receive()
    right.close()


def test_mappings_and_paths_are_plain_and_objects_are_not(ends: tuple[Channel, Channel]) -> None:
    ends[0].send({"a": MappingProxyType({"b": Path("c")})})
    assert ends[1].receive()[0] == {"a": {"b": "c"}}
    with pytest.raises(TypeError, match="plain data"):
        ends[0].send({"a": object()})
