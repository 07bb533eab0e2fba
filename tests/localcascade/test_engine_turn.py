"""One turn, in process: text sorted into channels, tokens counted, every way to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcascade.engine.composer import Prompt
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    PromptProgress,
    Sampling,
    ToolCall,
)
from tests.localcascade.local_engine import GREEDY, LocalEngine, load
from tests.localcascade.models import (
    CALL,
    END_THINK,
    END_TOOL_CALL,
    IM_END,
    TOOL_CALL,
    write_model,
)

START = 10


def run(
    path: Path,
    script: list[int],
    *,
    sampling: Sampling = GREEDY,
    thinking: bool = False,
    n_steps: int | None = None,
) -> list[Event]:
    """Let a model say a script after START; n_steps is after how many steps it is cancelled."""
    model = load(write_model(path / "script.gguf", script=[START, *script]))
    engine = LocalEngine(model)
    request = ChatRequest((), tools=({"name": "now"},), sampling=sampling)
    heard = engine.start(request, Prompt(request, (1, 2, START), opens_thinking=thinking))
    for _ in range(n_steps or 0):
        engine.scheduler.step()
    heard.wishes.is_cancelled = n_steps is not None
    engine.finish()
    return heard.events


def join(events: list[Event], channel: str) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.channel == channel)


def end(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


def test_thinking_and_answer_are_told_apart_and_counted(tmp_path: Path) -> None:
    events = run(tmp_path, [*b"Hm", END_THINK, *b"Yes", IM_END], thinking=True)
    assert join(events, "thinking") == "Hm"
    assert join(events, "answer") == "Yes"
    assert end(events).reason == "stop"
    usage = end(events).usage
    # </think> belongs to the thinking it ends; what ends the turn is not counted.
    assert (usage.prompt_tokens, usage.thinking_tokens, usage.completion_tokens) == (3, 3, 6)


def test_progress_comes_first_and_done_last(tmp_path: Path) -> None:
    events = run(tmp_path, [*b"Yes", IM_END])
    assert events[:2] == [PromptProgress(0, 3, 0), PromptProgress(3, 3, 0)]
    assert [type(event) for event in events[2:]] == [Delta, Delta, Delta, Done]


@pytest.mark.parametrize("text", ["é", "€", "𝄞", "é€𝄞"])
def test_a_character_of_several_tokens_comes_whole(tmp_path: Path, text: str) -> None:
    events = run(tmp_path, [*text.encode(), IM_END])
    assert [e.text for e in events if isinstance(e, Delta)] == list(text)
    assert end(events).usage.completion_tokens == len(text.encode())


def test_bytes_that_are_no_character_are_marked_and_not_lost(tmp_path: Path) -> None:
    events = run(tmp_path, [0x41, 0xF0, 0x9D, 0x42, 0xE2, IM_END])
    assert join(events, "answer") == "A\ufffdB\ufffd"


def test_a_tool_call_is_an_event_and_the_reason(tmp_path: Path) -> None:
    events = run(tmp_path, [TOOL_CALL, CALL, END_TOOL_CALL, IM_END])
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [(call.name, call.arguments) for call in calls] == [("now", {"zone": "UTC"})]
    assert end(events).reason == "tool_calls"


def test_a_call_cut_off_by_the_limit_is_not_made(tmp_path: Path) -> None:
    sampling = Sampling(temperature=0, max_tokens=2)
    events = run(tmp_path, [TOOL_CALL, *b"{x", END_TOOL_CALL], sampling=sampling)
    assert not [event for event in events if isinstance(event, ToolCall)]
    assert end(events).reason == "length"


def test_the_limit_counts_tokens_and_says_length(tmp_path: Path) -> None:
    events = run(tmp_path, [*b"abcdef", IM_END], sampling=Sampling(temperature=0, max_tokens=4))
    assert join(events, "answer") == "abcd"
    assert end(events).reason == "length"
    assert end(events).usage.completion_tokens == 4


def test_the_contexts_end_says_length(tmp_path: Path) -> None:
    # Two tokens that lead to each other, for ever.
    events = run(tmp_path, [*b"ab", *b"a"])
    assert end(events).reason == "length"
    assert end(events).usage.completion_tokens == 512 - 3 + 1


def test_a_cancel_while_generating_stops_before_the_next_token(tmp_path: Path) -> None:
    events = run(tmp_path, [*b"abcdef", IM_END], n_steps=3)
    assert end(events).reason == "cancelled"
    assert join(events, "answer") == "abc"


def test_a_cancel_before_it_began_reads_nothing(tmp_path: Path) -> None:
    events = run(tmp_path, [*b"abc", IM_END], n_steps=0)
    assert [type(event) for event in events] == [Done]
    assert end(events).reason == "cancelled"


def test_timings_add_up(tmp_path: Path) -> None:
    timings = end(run(tmp_path, [*b"abc", IM_END])).timings
    assert timings.load_s > 0
    assert timings.prompt_s > 0
    assert timings.tokens_per_s == pytest.approx(3 / timings.generation_s)
