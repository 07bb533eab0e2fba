"""Tutor mode without a screen: what the model is told, what is sealed, what the history keeps."""

from __future__ import annotations

from pathlib import Path

from localcascade.chat.archive import Archive
from localcascade.chat.composition import Manner, compose_summary, write_messages
from localcascade.chat.conversation import Conversation, MemoryJournal, Message
from localcascade.chat.exchange import Exchange
from localcascade.chat.journal import HistoryJournal, open_session
from localcascade.chat.search import find_matches
from localcascade.chat.turn import Turn
from localcascade.chat.tutor import ATTEMPT, LEVELS, load_tutor, read_attempt
from localcascade.history import History, ModelIdentity
from localcascade.prompt.events import Delta
from tests.localcascade.scripted_engine import end

TUTOR = load_tutor()
TAUGHT = Manner(tutor=TUTOR)
MODEL = ModelIdentity("scripted", "/models/scripted.gguf")


def answer(exchange: Exchange, thinking: str, text: str) -> Message:
    turn = Turn(0.0)
    for event in (Delta(thinking, "thinking"), Delta(text, "answer"), end()):
        turn.take(event, 1.0)
    message = exchange.end(turn)
    assert message is not None
    return message


def test_the_system_message_has_every_level_and_stays_the_same() -> None:
    exchange = Exchange(Conversation(MemoryJournal()), TAUGHT)
    systems = []
    for level in LEVELS:
        request = exchange.ask(TUTOR.ask(level, "Solve $2x = 6$."))
        systems.append(request.messages[0])
        assert request.messages[-1]["content"] == f"Solve $2x = 6$.\n\n{TUTOR.helps[level].wish}"
        answer(exchange, "", "So?")
    assert systems[0]["role"] == "system" and systems[0] == systems[1] == systems[2]
    for level in LEVELS:
        assert f'"{TUTOR.helps[level].wish}"' in systems[0]["content"]
        assert TUTOR.helps[level].rule in systems[0]["content"]


def test_the_users_system_message_comes_before_the_tutor() -> None:
    manner = Manner(system="Speak French.", tutor=TUTOR)
    exchange = Exchange(Conversation(MemoryJournal()), manner)
    content = exchange.ask("q").messages[0]["content"]
    assert content == f"Speak French.\n\n{TUTOR.system}"


def test_a_summary_is_not_asked_of_the_tutor() -> None:
    path = [Message("1", None, "user", "q"), Message("2", "1", "assistant", "a")]
    assert compose_summary(path, TAUGHT).messages[0]["role"] == "user"


def test_questions_without_an_answer_between_them_are_one_turn() -> None:
    path = [
        Message("1", None, "user", "a"),
        Message("2", "1", "user", "b"),
        Message("3", "2", "assistant", "c"),
        Message("4", "3", "user", "d"),
    ]
    turns = [(turn["role"], turn["content"]) for turn in write_messages(path)]
    assert turns == [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]


def test_answers_of_the_tutor_are_sealed_and_others_are_not() -> None:
    exchange = Exchange(Conversation(MemoryJournal()), TAUGHT)
    exchange.ask("q")
    taught = answer(exchange, "secret", "hint")
    exchange.manner = Manner()
    exchange.ask("q")
    plain = answer(exchange, "open", "answer")
    assert (taught.is_sealed, taught.thinking, taught.open_thinking) == (True, "secret", "")
    assert (plain.is_sealed, plain.open_thinking) == (False, "open")


def test_sealed_thinking_is_not_found_until_it_is_opened() -> None:
    exchange = Exchange(Conversation(MemoryJournal()), TAUGHT)
    exchange.ask("q")
    message = answer(exchange, "secret", "a secret hint")
    assert len(find_matches(exchange.conversation.path, "secret")) == 1
    exchange.conversation.unseal(message.id)
    assert len(find_matches(exchange.conversation.path, "secret")) == 2


def test_thinking_can_be_unsealed_while_it_comes() -> None:
    exchange = Exchange(Conversation(MemoryJournal()), TAUGHT)
    exchange.ask("q")
    turn = Turn(0.0)
    turn.take(Delta("one ", "thinking"), 1.0)
    streaming = exchange.take(turn)
    assert streaming is not None and streaming.open_thinking == ""
    exchange.conversation.unseal(streaming.id)
    turn.take(Delta("two", "thinking"), 2.0)
    taken = exchange.take(turn)
    assert taken is not None and taken.open_thinking == "one two"


def test_the_history_keeps_the_thinking_and_its_seal(tmp_path: Path) -> None:
    with History.open(tmp_path / "history.sqlite3") as history:
        journal = HistoryJournal(history, MODEL)
        exchange = Exchange(Conversation(journal), TAUGHT)
        exchange.ask("q")
        message = answer(exchange, "secret", "hint")
        exchange.conversation.unseal(message.id)
        history.flush()
        session = history.find_session(None)
        again = open_session(history, session, MODEL)
        assert again.is_tutored
        assert (again.path[-1].thinking, again.path[-1].open_thinking) == ("secret", "")


def test_sealed_thinking_does_not_list_a_conversation(tmp_path: Path) -> None:
    with History.open(tmp_path / "history.sqlite3") as history:
        exchange = Exchange(Conversation(HistoryJournal(history, MODEL)), TAUGHT)
        exchange.ask("q")
        answer(exchange, "nineteen", "a hint")
        exchange.manner = Manner()
        exchange.ask("q")
        answer(exchange, "twenty", "an answer")
        history.flush()
        archive = Archive(history)
        found = {word: len(archive.list_entries(word)) for word in ("nineteen", "twenty", "hint")}
        assert found == {"nineteen": 0, "twenty": 1, "hint": 1}


def test_a_plain_conversation_is_not_tutored(tmp_path: Path) -> None:
    with History.open(tmp_path / "history.sqlite3") as history:
        exchange = Exchange(Conversation(HistoryJournal(history, MODEL)), Manner())
        exchange.ask("q")
        answer(exchange, "open", "answer")
        history.flush()
        assert not open_session(history, history.find_session(None), MODEL).is_tutored


def test_what_is_put_is_asked_with_the_next_question() -> None:
    exchange = Exchange(Conversation(MemoryJournal()), TAUGHT)
    exchange.put("problem")
    assert not exchange.is_busy
    assert exchange.ask("hint").messages[-1] == {"role": "user", "content": "problem\n\nhint"}


def test_an_attempt_is_known_by_its_beginning() -> None:
    assert read_attempt(f"{ATTEMPT}3/4 ") == "3/4"
    assert read_attempt("What is my answer: 3?") is None
