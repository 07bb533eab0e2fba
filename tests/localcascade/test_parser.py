"""Generated text sorted into thinking, answer and calls, wherever it is cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.prompt.calls import parse_calls, read_schemas
from localcascade.prompt.events import Delta, ToolCall
from localcascade.prompt.parser import OutputParser

SCHEMAS = {
    "calc": {
        "properties": {
            "expression": {"type": "string"},
            "digits": {"type": "integer"},
            "ratio": {"type": "number"},
            "exact": {"type": "boolean"},
            "steps": {"type": "array"},
            "options": {"type": "object"},
            "maybe": {"type": ["integer", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "some": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        }
    }
}
CALL = (
    "<tool_call>\n<function=calc>\n<parameter=expression>\n2*3\n</parameter>\n"
    "</function>\n</tool_call>"
)
PARSED = ("calc", {"expression": "2*3"})


def parse(
    pieces: Iterable[str], thinking: bool = True, tools: bool = True, truncated: bool = False
) -> tuple[str, str, str, list[ToolCall]]:
    """(thinking, answer, raw calls, calls) of a whole generation."""
    parser = OutputParser(thinking, tools, SCHEMAS)
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish(truncated)
    texts = {"thinking": "", "answer": "", "tool_call": ""}
    for event in events:
        if isinstance(event, Delta):
            assert event.text
            texts[event.channel] += event.text
    calls = [event for event in events if isinstance(event, ToolCall)]
    return texts["thinking"], texts["answer"], texts["tool_call"], calls


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("a</think>b", "a", "b"),
        ("\n\na\n\n</think>\n\nb\n", "a", "b\n"),
        ("a", "a", ""),
        ("a\n", "a\n", ""),
        ("a\n\nb</think>c\n\nd", "a\n\nb", "c\n\nd"),
        ("a</think>b</think>c", "a", "bc"),
        ("a</think>\nb\n</think>\nc", "a", "bc"),
        ("a</think>b\n<think>\nc\n</think>\nd", "ac", "bd"),
        ("<think>\na</think>b", "a", "b"),
        ("a < b <thin </thin> </think", "a < b <thin </thin> </think", ""),
        ("a <</think>< b", "a <", "< b"),
        ("</think>", "", ""),
        ("a</think>b\n\n<", "a", "b\n\n<"),
        ("a</tool_call>b", "ab", ""),
        ("", "", ""),
    ],
)
def test_thinking_and_answer(text: str, thinking: str, answer: str) -> None:
    assert parse([text]) == (thinking, answer, "", [])


def test_an_instruct_prompt_begins_with_the_answer() -> None:
    assert parse(["\n\nhi"], thinking=False) == ("", "hi", "", [])


def test_without_tools_a_call_is_text() -> None:
    assert parse([CALL], thinking=False, tools=False) == ("", CALL, "", [])


def test_text_streams_as_soon_as_it_is_certain() -> None:
    parser = OutputParser(thinking=True, tools=True)
    assert parser.feed("a <") == [Delta("a ", "thinking")]
    assert parser.feed("b\n") == [Delta("<b", "thinking")]
    assert parser.feed("\n</th") == []
    assert parser.feed("e\n") == [Delta("\n\n</the", "thinking")]
    assert parser.feed("</think>\n") == []
    assert parser.feed("\nx") == [Delta("x", "answer")]


def test_a_call_streams_raw_and_then_arrives_whole() -> None:
    thinking, answer, raw, calls = parse([f"t</think>\n\nLet me see.\n{CALL}\n\nDone."])
    assert (thinking, answer) == ("t", "Let me see.Done.")
    assert raw == CALL.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert calls == [ToolCall("call_1", *PARSED)]


@pytest.mark.parametrize(
    "text",
    [
        f"t\n{CALL}",
        f"t</think>{CALL}",
        f"t</think>\n{CALL}\n</think>",
        f"t{CALL}</tool_call>",
        "t" + CALL.replace("</parameter>\n", ""),
        f"t{CALL.replace('</parameter>', '</parameter></parameter>')}",
        f"t{CALL.replace('</function>', '')}",
        "t" + CALL.replace("</parameter>\n</function>\n", ""),
        f"t{CALL.replace('</tool_call>', '')}",
        f"t{CALL.replace('</function>', '</function></parameter></function>')}",
        f"t{CALL.removesuffix('</function>' + chr(10) + '</tool_call>')}",
        "t" + CALL.replace("\n", ""),
        "t" + CALL.replace("\n<", "\n  <"),
        't<tool_call>\n{"name": "calc", "arguments": {"expression": "2*3"}}\n</tool_call>',
        't<tool_call>{"name": "calc", "arguments": "{\\"expression\\": \\"2*3\\"}"}</tool_call>',
        't<tool_call>[{"name": "calc", "parameters": {"expression": "2*3"}}]',
        't<tool_call><function=calc>{"expression": "2*3"}</function></tool_call>',
        't<tool_call><function="calc"><parameter="expression">2*3</parameter></tool_call>',
    ],
)
def test_calls_as_models_write_them(text: str) -> None:
    thinking, answer, _, calls = parse([text])
    assert (thinking, answer) == ("t", "")
    assert calls == [ToolCall("call_1", *PARSED)]


def test_several_calls_in_every_arrangement() -> None:
    open_call = CALL.removesuffix("\n</tool_call>")
    inner = open_call.removeprefix("<tool_call>\n")
    for text in (CALL + CALL, f"{CALL}\n{CALL}", open_call + CALL, f"{open_call}\n{inner}"):
        *_, calls = parse([text])
        assert calls == [ToolCall("call_1", *PARSED), ToolCall("call_2", *PARSED)]
    hermes = '<tool_call>{"name": "a"}\n{"name": "b"}</tool_call>'
    assert [call.name for call in parse([hermes])[3]] == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("x", "x"),
        ("a\nb", "a\nb"),
        ("\nx\n", "\nx\n"),  # one newline on either side belongs to the format
        ("", ""),
        ("if a <b> </b>:", "if a <b> </b>:"),
        ("see </parameter> here", "see </parameter> here"),
        ("a</function>b", "a</function>b"),
        ("a <parameter=x> b", "a <parameter=x> b"),
        ("print('<tool_call>')", "print('<tool_call>')"),
        ("12", "12"),
        ("null", "null"),
    ],
)
def test_string_values_come_back_as_they_were(written: str, value: str) -> None:
    text = CALL.replace("2*3", written)
    *_, calls = parse([text])
    assert [call.arguments for call in calls] == [{"expression": value}]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("digits", "12", 12),
        ("digits", " 12 ", 12),
        ("digits", "12.0", 12),
        ("digits", "12.5", "12.5"),
        ("digits", "true", "true"),
        ("digits", "about 3", "about 3"),
        ("ratio", "2", 2),
        ("ratio", "2.5e3", 2500.0),
        ("ratio", "NaN", "NaN"),
        ("exact", "true", True),
        ("exact", "False", False),
        ("exact", "1", "1"),
        ("steps", '[1, "a"]', [1, "a"]),
        ("steps", "{}", "{}"),
        ("options", '{"a": null}', {"a": None}),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe", "3", 3),
        ("either", "3", "3"),
        ("some", "3", 3),
        ("unknown", "3", "3"),
        ("steps", "[" * 100_000, "[" * 100_000),
    ],
)
def test_values_are_read_as_their_declared_type(key: str, written: str, value: Any) -> None:
    raw = f"<function=calc>\n<parameter={key}>\n{written}\n</parameter>\n</function>"
    ((_, arguments),) = parse_calls(raw, SCHEMAS)
    assert arguments == {key: value}
    assert type(arguments[key]) is type(value)


def test_schemas_are_read_from_tools_and_odd_ones_are_harmless() -> None:
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "a", "parameters": {"properties": {}}}},
        {"name": "b", "parameters": {"properties": 3}},
        {"function": "c"},
        {"name": "d"},
    ]
    schemas = read_schemas(tools)
    assert schemas == {"a": {"properties": {}}, "b": {"properties": 3}}
    raw = "<function=b><parameter=x>1</parameter>"
    assert parse_calls(raw, schemas) == [("b", {"x": "1"})]


@pytest.mark.parametrize(
    "inner",
    ["calc 2*3", '{"name": "calc", "arguments": {', '{"arguments": {}}', "<function=>", "[1]"],
)
def test_what_is_no_call_goes_to_the_answer(inner: str) -> None:
    thinking, answer, raw, calls = parse([f"t\n<tool_call>\n{inner}\n</tool_call>\nafter"])
    assert (thinking, answer, raw, calls) == ("t", inner + "after", inner, [])


def test_a_call_cut_off_in_the_middle_of_a_value_is_not_made() -> None:
    cut = CALL[: CALL.index("*3")]
    assert parse([cut], truncated=True)[3] == []
    assert parse([cut], truncated=True)[1] == cut.removeprefix("<tool_call>\n")
    whole = CALL.removesuffix("\n</tool_call>")
    assert parse([whole], truncated=True)[3] == [ToolCall("call_1", *PARSED)]
    hermes = '<tool_call>{"name": "calc"}'
    assert [call.name for call in parse([hermes], truncated=True)[3]] == ["calc"]


TOKENS = st.sampled_from(
    [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "</function>",
        "<parameter=k>", "</parameter>", '{"name": "f"}', "<", ">", "</", "t", "\n", "\n\n",
        " ", "é",
    ]
)  # fmt: skip
TEXTS = st.lists(TOKENS, max_size=20).map("".join)


@given(text=TEXTS, thinking=st.booleans(), tools=st.booleans(), data=st.data())
def test_the_cut_does_not_matter(
    text: str, thinking: bool, tools: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    whole = parse([text], thinking, tools)
    assert parse(pieces, thinking, tools) == whole
    assert parse(text, thinking, tools) == whole  # character by character


@given(text=TEXTS, thinking=st.booleans())
def test_nothing_is_lost_but_tags_and_newlines(text: str, thinking: bool) -> None:
    seen_thinking, answer, _, _ = parse([text], thinking, tools=False)
    bare = text.replace("<think>", "").replace("</think>", "").replace("\n", "")
    n_kept = len((seen_thinking + answer).replace("\n", ""))
    assert n_kept == len(bare)
    assert "<think>" not in seen_thinking + answer
    assert "</think>" not in seen_thinking + answer
