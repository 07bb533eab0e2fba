"""Events in the OpenAI format, checked by OpenAI's own types. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from localcascade.prompt.events import (
    ContextEnd,
    Delta,
    Event,
    PromptProgress,
    TokenLogprob,
    ToolCall,
)
from localcascade.server.chunks import Chunk, ChunkWriter, Label, Wants, merge
from tests.localcascade.server.serving import end

EVENTS: list[Event] = [
    PromptProgress(20, 40, 30),
    TokenLogprob("so", -0.5, (("so", -0.5), ("no", float("-inf")))),
    Delta("so ", "thinking"),
    TokenLogprob("4", -0.25, ()),
    Delta("4", "answer"),
    Delta("<function=add>", "tool_call"),
    ToolCall("call_1", "add", {"a": 1, "b": "é"}),
    ToolCall("call_2", "now", {}),
    ContextEnd(1000, (3,), ()),
    TokenLogprob("\ufffd", -1.0, ()),
    end("tool_calls"),
]


def write(events: Sequence[Event], **wants: Any) -> list[Chunk]:
    writer = ChunkWriter(Label("tiny", "chatcmpl-0123456789abcdef", 5), Wants(**wants))
    chunks = [*writer.begin(), *(c for event in events for c in writer.take(event)), *writer.end()]
    assert writer.is_complete
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        json.dumps(chunk, allow_nan=False)
    return chunks


def read_deltas(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_a_stream() -> None:
    chunks = write(EVENTS)
    role, thinking, answer, call, second, last = read_deltas(chunks)
    assert role == {"role": "assistant", "content": ""}
    assert (thinking, answer) == ({"reasoning_content": "so "}, {"content": "4"})
    (told,) = call["tool_calls"]
    assert (told["index"], told["function"]["name"]) == (0, "add")
    assert json.loads(told["function"]["arguments"]) == {"a": 1, "b": "é"}
    assert second["tool_calls"][0]["index"] == 1
    assert second["tool_calls"][0]["id"] != told["id"]
    assert last == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 5 + ["tool_calls"]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-0123456789abcdef"}


def test_log_probabilities_stand_with_the_text_they_are_of() -> None:
    told = [c["choices"][0]["logprobs"] for c in write(EVENTS)]
    texts = [[one["token"] for one in each["content"]] if each else [] for each in told]
    assert texts == [[], ["so"], ["4"], [], [], ["\ufffd"]]
    first = told[1]["content"][0]
    assert first["bytes"] == [115, 111]
    assert [one["logprob"] for one in first["top_logprobs"]] == [-0.5, -9999.0]
    assert told[5]["content"][0]["bytes"] is None, "a piece of a character has no bytes to tell"


def test_usage_and_progress_where_they_are_wanted() -> None:
    chunks = write(EVENTS, usage=True, progress=True)
    assert chunks[1]["prompt_progress"] == {"total": 40, "cache": 30, "processed": 20}
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        40,
        20,
        60,
    )
    assert usage["prompt_tokens_details"] == {"cached_tokens": 30}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 8}
    assert chunks[-1]["choices"] == []
    timings = chunks[-2]["timings"]
    assert (timings["prompt_n"], timings["prompt_ms"], timings["prompt_per_second"]) == (
        10,
        50,
        200,
    )
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (6, 5)


def test_one_call_if_no_more_are_wanted() -> None:
    deltas = read_deltas(write(EVENTS, many_calls=False))
    assert sum("tool_calls" in delta for delta in deltas) == 1


def make_whole(events: Sequence[Event], **wants: Any) -> dict[str, Any]:
    writer = ChunkWriter(Label("tiny"), Wants(**wants))
    chunks = [*writer.begin(), *(c for event in events for c in writer.take(event))]
    whole = merge(chunks, writer.write_usage())
    ChatCompletion.model_validate(whole, strict=True)
    return whole


def test_the_whole_is_the_sum_of_its_chunks() -> None:
    whole = make_whole(EVENTS)
    (choice,) = whole["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("so ", "4")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add", "now"]
    assert "index" not in message["tool_calls"][0]
    assert [one["token"] for one in choice["logprobs"]["content"]] == ["so", "4", "\ufffd"]
    assert (choice["finish_reason"], whole["object"]) == ("tool_calls", "chat.completion")
    assert whole["timings"]["predicted_per_second"] == 50


def test_an_answer_of_calls_alone_has_no_content() -> None:
    whole = make_whole([ToolCall("c", "now", {}), end("tool_calls")])
    assert whole["choices"][0]["message"]["content"] is None
    empty = make_whole([end("length")])["choices"][0]
    assert (empty["message"]["content"], empty["logprobs"]) == ("", None)


def test_several_answers_share_one_prompt() -> None:
    events = [Delta("b", "answer", 1), Delta("a", "answer"), end(index=1), end("length", 0, 5)]
    whole = make_whole(events, n=2)
    told = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in whole["choices"]]
    assert told == [(0, "a", "length"), (1, "b", "stop")]
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == (40, 25)
    assert "timings" not in whole
