"""Bodies of chat requests, and what they ask of the engine. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localcascade.prompt.budget import ThinkingBudget
from localcascade.prompt.events import ChatRequest, Sampling
from localcascade.server.body import read_body
from localcascade.server.problems import Problem, Refusal
from localcascade.server.request import Defaults, make_request

HELLO = [{"role": "user", "content": "hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def call_with(arguments: str) -> dict[str, Any]:
    return {"function": {"name": "add", "arguments": arguments}}


def ask(defaults: Defaults | None = None, **fields: Any) -> ChatRequest:
    body = json.dumps({"messages": HELLO} | fields).encode()
    return make_request(read_body(body), defaults or Defaults())


def refuse(data: bytes | None = None, **fields: Any) -> Problem:
    data = json.dumps({"messages": HELLO} | fields).encode() if data is None else data
    with pytest.raises(Refusal) as caught:
        read_body(data)
    return caught.value.problem


def test_what_is_not_said_is_left_to_the_engine() -> None:
    assert ask() == ChatRequest(({"role": "user", "content": "hello"},))
    nothing = dict.fromkeys(["temperature", "tools", "stop", "n", "functions", "user", "audio"])
    assert ask(**nothing) == ask(), "null is as if it were left out"


def test_every_field_of_sampling_has_its_place() -> None:
    asked = ask(
        temperature=1, top_p=0.9, top_k=40, min_p=0.05, seed=7, max_tokens=99,
        repeat_penalty=1.1, repeat_last_n=64, frequency_penalty=0.2, presence_penalty=0.3,
        logit_bias={"12": -100, "7": 1.5}, stop=["a", "b"], grammar="root ::= [a-z]", n=3,
        logprobs=True, top_logprobs=5,
    )  # fmt: skip
    assert asked.sampling == Sampling(
        1.0, 0.9, 40, 0.05, 7, 99, 1.1, 0.2, 0.3, 64, {12: -100.0, 7: 1.5}, "root ::= [a-z]",
        None, ("a", "b"),
    )  # fmt: skip
    assert (asked.n, asked.logprobs) == (3, 5)
    assert ask(logprobs=True).logprobs == 0
    assert ask(stop="x").sampling.stop == ("x",)


def test_other_names_and_minus_one_mean_what_they_mean_elsewhere() -> None:
    assert ask(max_completion_tokens=5).sampling.max_tokens == 5
    assert ask(repetition_penalty=1.2, repeat_penalty=1.2).sampling.repeat_penalty == 1.2
    free = ask(max_tokens=-1, top_k=-1, seed=-1, repeat_last_n=-1).sampling
    assert free == Sampling(top_k=0)


def test_the_form_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"name": "answer", "schema": schema, "strict": True}
    forms: list[tuple[dict[str, Any], object]] = [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": schema}, schema),
        ({"type": "json_schema", "json_schema": named}, schema),
    ]
    for form, wanted in forms:
        assert ask(response_format=form).sampling.json_schema == wanted
    assert refuse(response_format={"type": "json_schema"}).param == "response_format"


@pytest.mark.parametrize(
    ("fields", "thinking", "budget"),
    [
        ({}, True, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "low"}, True, ThinkingBudget(2048)),
        ({"reasoning_effort": "high"}, True, None),
        ({"thinking_budget_tokens": 0}, False, None),
        ({"thinking_budget_tokens": -1}, True, None),
        ({"thinking_budget_tokens": 9, "reasoning_effort": "high"}, True, ThinkingBudget(9)),
        ({"thinking_budget_seconds": 2.5}, True, ThinkingBudget(None, 2.5)),
    ],
)
def test_thinking(fields: dict[str, Any], thinking: bool, budget: ThinkingBudget | None) -> None:
    asked = ask(**fields)
    assert (asked.thinking, asked.thinking_budget) == (thinking, budget)


def test_the_servers_defaults_hold_where_a_request_says_nothing() -> None:
    short = Defaults(thinking=False, thinking_tokens=100)
    assert ask(short).thinking is False
    assert ask(short, chat_template_kwargs={"enable_thinking": True}).thinking is True
    assert ask(short, reasoning_effort="high").thinking_budget is None
    asked = ask(Defaults(thinking_tokens=100), thinking_budget_seconds=1.0)
    assert asked.thinking_budget == ThinkingBudget(100, 1.0)


def test_messages_come_as_templates_know_them() -> None:
    call = {"id": "c1", "index": 0, "type": "function"}
    call |= {"function": {"name": "add", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "one", "cache_control": {}}, {"type": "text", "text": "two"}]
    asked = ask(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ada"},
            {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call],
             "refusal": None, "annotations": []},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ]
    ).messages  # fmt: skip
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert asked == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "", "reasoning_content": "hm",
         "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    )  # fmt: skip


def test_tools_can_be_kept_from_the_model() -> None:
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}  # type: ignore[operator]
    assert ask(tools=[strict], tool_choice="auto").tools == (TOOL,)
    assert ask(tools=[TOOL], tool_choice="none").tools == ()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content is missing"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "'developer'"),
        ({"messages": [HELLO[0] | {"content": [IMAGE]}]}, "messages[0].content[0]", "no images"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "assistant", "tool_calls": [call_with("[1]")]}]},
         "messages[0].tool_calls[0].function", "JSON of an object"),
        ({"messages": [{"role": "assistant", "tool_calls": [call_with('{"a"')]}]},
         "messages[0].tool_calls[0].function", "JSON of an object"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"max_tokens": 2.5}, "max_tokens", "integer"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the", "integer"),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"nonsense": 1}, "nonsense", "unknown field"),
        ({"functions": []}, "functions", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "'text'"),
        ({"tool_choice": "required"}, "tool_choice", "cannot be made to call"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "cannot be made to call"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "required"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "two values"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "unknown field"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "'none'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    problem = refuse(**fields)
    assert (problem.status, problem.param) == (400, param)
    assert words in problem.message
    assert param in problem.message


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"messages": "\\ud800"}'])
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    assert "no JSON" in refuse(data).message


def test_a_body_that_is_no_object() -> None:
    assert refuse(b"[]").message == "Input should be an object"


def test_a_complaint_repeats_nothing_of_what_was_said() -> None:
    secret = "my secret diary"
    for fields in (
        {"messages": [{"role": "user", "content": {"a": secret}}]},
        {"stop": {"a": secret}},
    ):
        assert secret not in refuse(**fields).message
