"""Conversations as trees, and what an engine is asked in each case."""

from __future__ import annotations

import pytest

from localcascade.chat.blocks import find_code
from localcascade.chat.composition import CONTINUE, SUMMARIZE, SUMMARY_HEAD, Manner
from localcascade.chat.conversation import Conversation, MemoryJournal, Message, Stats
from localcascade.chat.exchange import Exchange
from localcascade.chat.search import Match, find_matches
from localcascade.chat.turn import Turn
from localcascade.engine.chat import AsyncChat
from localcascade.engine.client import Engine
from localcascade.errors import ContextFull, EngineDied
from localcascade.prompt.events import ContextEnd, Delta, Done, Event, Failed, PromptProgress
from localcascade.tui.speaker import Chat, ChatEngine
from tests.localcascade.scripted_engine import end


def finish(exchange: Exchange, *events: Event) -> Message | None:
    """Let a turn run through."""
    turn = Turn(0.0)
    for number, event in enumerate(events):
        turn.take(event, number * 0.5)
    return exchange.end(turn)


def begin(manner: Manner | None = None) -> Exchange:
    return Exchange(Conversation(MemoryJournal()), manner or Manner(), "tiny")


def ask(exchange: Exchange, question: str, answer: str) -> Message:
    exchange.ask(question)
    message = finish(exchange, Delta("hm", "thinking"), Delta(answer, "answer"), end())
    assert message is not None
    return message


def read_path(exchange: Exchange) -> list[str]:
    return [message.text for message in exchange.conversation.path]


def test_an_answer_is_asked_for_with_all_that_was_said() -> None:
    exchange = begin(Manner(system="Be kind.", budget_tokens=99))
    ask(exchange, "one?", "1")
    request = exchange.ask("two?")
    assert [(m["role"], m["content"]) for m in request.messages] == [
        ("system", "Be kind."),
        ("user", "one?"),
        ("assistant", "1"),
        ("user", "two?"),
    ]
    assert request.thinking_budget is not None
    assert request.thinking_budget.tokens == 99


def test_branches_keep_everything_and_can_be_walked() -> None:
    exchange = begin()
    first = ask(exchange, "q", "a1")
    exchange.regenerate(first.id)
    second = finish(exchange, Delta("a2", "answer"), end())
    assert second is not None
    tree = exchange.conversation
    assert (read_path(exchange), tree.count_branches(second.id)) == (["q", "a2"], (2, 2))
    ask(exchange, "more", "b")
    assert tree.walk(second.id, -1)
    assert read_path(exchange) == ["q", "a1"]
    assert not tree.walk(first.id, -1)
    assert tree.walk(first.id, 1)
    assert read_path(exchange) == ["q", "a2", "more", "b"]


def test_an_edited_question_is_asked_beside_the_old_one() -> None:
    exchange = begin()
    ask(exchange, "old", "a")
    question = exchange.conversation.path[0]
    request = exchange.edit(question.id, "new")
    assert request is not None
    assert [m["content"] for m in request.messages] == ["new"]
    finish(exchange, Delta("b", "answer"), end())
    assert exchange.conversation.count_branches(exchange.conversation.path[0].id) == (2, 2)


def test_an_edited_answer_is_kept_as_it_was_written() -> None:
    exchange = begin()
    answer = ask(exchange, "q", "wrong")
    assert exchange.edit(answer.id, "right") is None
    assert read_path(exchange) == ["q", "right"]


def test_going_on_adds_to_the_answer_and_its_figures() -> None:
    exchange = begin()
    exchange.ask("count")
    stopped = Turn(0.0)
    stopped.take(Delta("1, 2", "answer"), 1.0)
    stopped.stop()
    first = exchange.end(stopped)
    assert first is not None
    assert (first.text, first.state) == ("1, 2", "stopped")
    request = exchange.go_on()
    assert request is not None
    assert [m["content"] for m in request.messages[-2:]] == ["1, 2", CONTINUE]
    last = finish(exchange, Delta(", 3", "answer"), end(n_tokens=20))
    assert last is not None
    assert (last.id, last.text, last.stats.completion_tokens) == (first.id, "1, 2, 3", 21)
    assert read_path(exchange) == ["count", "1, 2, 3"]


def test_compacting_loses_nothing() -> None:
    exchange = begin()
    for n in range(3):
        ask(exchange, f"q{n}", f"a{n}")
    before = read_path(exchange)
    request = exchange.compact()
    assert request is not None
    assert [m["content"] for m in request.messages] == ["q0", "a0", "q1", "a1", SUMMARIZE]
    assert finish(exchange, Delta("short", "answer"), end()) is None
    assert read_path(exchange) == ["short", "q2", "a2"]
    asked = exchange.ask("q3")
    assert asked.messages[0] == {"role": "system", "content": SUMMARY_HEAD + "short"}
    finish(exchange, Delta("a3", "answer"), end())
    assert exchange.conversation.walk(exchange.conversation.path[0].id, -1)
    assert read_path(exchange) == before


def test_a_summary_without_room_is_tried_with_the_older_half() -> None:
    exchange = begin()
    for n in range(5):
        ask(exchange, f"q{n}", f"a{n}")
    sizes = []
    request = exchange.compact()
    while request is not None:
        sizes.append(len(request.messages) - 1)
        finish(exchange, Failed(ContextFull(99, 64)))
        request = exchange.compact(is_shorter=True)
    assert sizes == [8, 4, 2]
    exchange.compact()
    finish(exchange, Failed(ContextFull(99, 64)))
    exchange.compact(is_shorter=True)
    finish(exchange, Delta("short", "answer"), end())
    assert read_path(exchange) == ["short", "q2", "a2", "q3", "a3", "q4", "a4"]


def test_a_question_that_had_no_room_is_asked_again_after_compacting() -> None:
    exchange = begin()
    for n in range(2):
        ask(exchange, f"q{n}", f"a{n}")
    exchange.ask("q2")
    finish(exchange, Failed(ContextFull(99, 64)))
    assert exchange.answer() is None
    request = exchange.compact()
    assert request is not None and len(request.messages) == 5
    finish(exchange, Delta("short", "answer"), end())
    assert read_path(exchange) == ["short", "q2"]
    again = exchange.answer()
    assert again is not None and again.messages[-1]["content"] == "q2"
    finish(exchange, Delta("a2", "answer"), end())
    assert read_path(exchange) == ["short", "q2", "a2"]


def test_a_summary_that_was_stopped_changes_nothing() -> None:
    exchange = begin()
    for n in range(2):
        ask(exchange, f"q{n}", f"a{n}")
    exchange.compact()
    turn = Turn(0.0)
    turn.take(Delta("sho", "answer"), 0.1)
    turn.stop()
    exchange.end(turn)
    assert (read_path(exchange), exchange.is_busy) == (["q0", "a0", "q1", "a1"], False)


@pytest.mark.parametrize(
    ("events", "state", "note"),
    [
        ((Delta("a", "answer"), end()), "complete", ""),
        ((Delta("a", "answer"), end("length")), "stopped", "Cut off"),
        ((ContextEnd(10, (1,), ()), end("length")), "stopped", "The context is full"),
        ((Failed(EngineDied("gone")),), "failed", "gone"),
    ],
)
def test_the_end_of_a_turn_is_told(events: tuple[Event, ...], state: str, note: str) -> None:
    exchange = begin()
    exchange.ask("q")
    message = finish(exchange, *events)
    assert message is not None
    assert message.state == state
    assert note in message.note and bool(note) == bool(message.note)


def test_figures_of_a_turn() -> None:
    turn = Turn(10.0)
    turn.take(PromptProgress(7, 9, 3), 10.5)
    for second in (11.0, 11.5, 12.0):
        turn.take(Delta("t", "thinking"), second)
    turn.take(Delta("a", "answer"), 13.0)
    assert (turn.tokens_per_s, turn.thinking_s, turn.n_thinking) == (1.5, 1.0, 3)
    assert turn.stats == Stats(9, 3, 3, 4, 0.0, 2.0, 1.0)
    assert turn.drain() == ("ttt", "a")
    assert turn.drain() == ("", "")
    done: Done = end(n_prompt=40, n_tokens=20)
    turn.take(done, 14.0)
    assert turn.stats == Stats(40, 30, 8, 20, 0.05, 0.4, 1.0)


def test_words_are_found_in_thinking_too() -> None:
    path = [
        Message("1", None, "user", "Sum?"),
        Message("2", "1", "assistant", "no", "the SUM, sum"),
    ]
    assert find_matches(path, "sum") == [Match(0, 0), Match(1, 0), Match(1, 1)]
    assert find_matches(path, " ") == []


def test_code_is_copied_without_its_fence() -> None:
    assert find_code("a\n\n```py\nx\n\ty\n```\n\n- b\n\n      z\n") == ["x\n\ty\n", "z\n"]


def test_the_engine_is_what_the_chat_asks_for() -> None:
    engine: type[ChatEngine] = Engine
    chat: type[Chat] = AsyncChat
    assert engine.achat is Engine.achat and chat.answer_now is AsyncChat.answer_now
