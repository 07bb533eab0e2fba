"""The list of conversations: what it shows, finds, opens, deletes, above a real history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from localcascade.chat.archive import Archive, Entry
from localcascade.chat.conversation import Conversation, MemoryJournal
from localcascade.chat.journal import HistoryJournal, open_session
from localcascade.errors import HistoryError, ModelNotFound
from localcascade.history import History, ModelIdentity
from localcascade.prompt.events import Delta
from localcascade.tui.app import ChatApp
from localcascade.tui.opening import Opening, Preferences
from localcascade.tui.screens.chat import ChatScreen
from localcascade.tui.screens.sessions import SessionScreen, draw_row, write_age
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.transcript import Transcript
from tests.localcascade.scripted_engine import ScriptedEngine, end, think_and_say
from tests.localcascade.shelves import Stage, name_size, wait_for_commands, wait_until

NOW_S = 1_800_000_000.0
ENTRIES = (
    Entry("a1", "Roots of a quadratic", "nemotron-cascade-2", NOW_S - 40, 8),
    Entry("b2", "大きな表 in one line\nand a second", "cascade-24g", NOW_S - 7300, 1234),
    Entry("c3", "", "tiny", NOW_S - 3 * 86_400, 2),
    Entry("d4", "rm -rf \x1b[2J", "by-hand\x1b", NOW_S - 1e8, 1),
)
FOUND = Entry("b2", "Integrals", "tiny", NOW_S - 90, 4, ("…the ", "discriminant", " is 1, so…"))


class FakeArchive:
    """Answers at once with what it was given."""

    def __init__(self, *entries: Entry, error: HistoryError | None = None) -> None:
        self.entries, self.error, self.deleted = list(entries), error, list[str]()

    def list_entries(self, query: str = "") -> list[Entry]:
        if self.error:
            raise self.error
        return [entry for entry in self.entries if query in entry.title or entry.snippet]

    def delete(self, id: str) -> None:
        self.deleted.append(id)
        self.entries = [entry for entry in self.entries if entry.id != id]


def show(archive: Any, current: str | None = None) -> SessionScreen:
    return SessionScreen(archive, current, lambda: NOW_S)


def read(app: Any, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).content)


def count_rows(app: Any) -> int:
    return app.screen.query_one(OptionList).option_count


async def wait_for_rows(pilot: Pilot[Any]) -> None:
    await wait_until(pilot, lambda: count_rows(pilot.app) > 0)
    await pilot.pause()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        (["enter"], ENTRIES[0]),
        (["down", "down", "enter"], ENTRIES[2]),
        (["pagedown", "up", "enter"], ENTRIES[2]),
        (["ctrl+n"], "new"),
        (["escape"], None),
    ],
)
async def test_keys_answer(keys: list[str], answer: object) -> None:
    app = Stage(show(FakeArchive(*ENTRIES)))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press(*keys)
        await pilot.pause()
        assert app.answers == [answer]


@pytest.mark.asyncio
async def test_a_click_opens() -> None:
    app = Stage(show(FakeArchive(*ENTRIES)))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.click("#sessions-list", offset=(4, 1))
        await pilot.pause()
        assert app.answers == [ENTRIES[1]]


@pytest.mark.asyncio
async def test_words_are_looked_for_as_they_are_typed() -> None:
    app = Stage(show(FakeArchive(*ENTRIES, FOUND)))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press(*"Roots")
        await wait_until(pilot, lambda: count_rows(app) == 2)
        assert not app.screen.query_one("#sessions-found").display
        await pilot.press("down")
        await pilot.pause()
        assert read(app, "#sessions-found") == "…the discriminant is 1, so…"
        await pilot.press(*" nowhere")
        await wait_until(pilot, lambda: count_rows(app) == 1)
        app.screen._archive.entries = []  # type: ignore[attr-defined]
        await pilot.press("x")
        await wait_until(pilot, lambda: count_rows(app) == 0)
        assert read(app, "#sessions-hint").startswith("Nothing is found.")
        await pilot.press("enter", "ctrl+d")
        assert app.answers == []


@pytest.mark.asyncio
async def test_it_deletes_only_when_asked_twice() -> None:
    archive = FakeArchive(*ENTRIES)
    app = Stage(show(archive, current="a1"))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press("ctrl+d", "down")
        await pilot.pause()
        for keys in (["escape"], ["up", "down"], ["x", "ctrl+u", "up", "up", "down"]):
            await pilot.press("ctrl+d")
            assert "Delete “大きな表 in one line and a second”?" in read(app, "#sessions-hint")
            for key in keys:
                await pilot.press(key)
                await wait_until(pilot, lambda key=key: count_rows(app) == (key != "x") * 4)
                await pilot.pause()
        assert archive.deleted == []
        await pilot.press("ctrl+d", "enter")
        await wait_until(pilot, lambda: count_rows(app) == 3)
        assert (archive.deleted, app.answers) == (["b2"], [])
        await pilot.press("enter")
        await pilot.pause()
        assert app.answers == [ENTRIES[2]]


@pytest.mark.asyncio
async def test_the_open_one_is_not_deleted() -> None:
    archive = FakeArchive(*ENTRIES)
    app = Stage(show(archive, current="a1"))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_for_rows(pilot)
        await pilot.press("ctrl+d")
        assert read(app, "#sessions-hint").startswith("This one is open.")
        await pilot.press("enter")
        await pilot.pause()
        assert (archive.deleted, app.answers) == ([], [ENTRIES[0]])


@pytest.mark.asyncio
async def test_a_history_that_cannot_be_read_says_so() -> None:
    error = HistoryError(Path("s.sqlite3"), "the disk is full", "Free some space.")
    app = Stage(show(FakeArchive(error=error)))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until(pilot, lambda: "the disk is full" in read(app, "#sessions-hint"))
        assert "Free some space." in read(app, "#sessions-hint")


@pytest.mark.parametrize("width", [30, 56, 76, 100])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_a_row_is_one_line_as_wide_as_it_may_be(entry: Entry, width: int) -> None:
    drawn = draw_row(entry, width, NOW_S).plain
    assert cell_len(drawn) == width
    assert drawn.isprintable()


def test_a_row_tells_title_model_messages_and_age() -> None:
    words = draw_row(ENTRIES[1], 100, NOW_S).plain.split()
    assert words[-5:] == ["cascade-24g", "1,234", "messages", "2", "h"]
    assert "(no title)" in draw_row(ENTRIES[2], 80, NOW_S).plain
    assert draw_row(ENTRIES[0], 80, NOW_S, is_open=True).plain.startswith("● Roots")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "now"), (59, "now"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86_399, "23 h"),
     (86_400, "1 d"), (2.5e6, "28 d"), (1e8, "2023-11-1")],
)  # fmt: skip
def test_an_age_is_for_people(seconds: float, words: str) -> None:
    assert write_age(seconds, NOW_S).startswith(words)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "sessions.sqlite3") as history:
        yield history


def keep(history: History, title: str, *texts: str, model: str = "tiny") -> str:
    """Keep a conversation; questions and answers in turn."""
    session = history.create_session(title, ModelIdentity(model, f"/models/{model}.gguf")).id
    parent = None
    for number, text in enumerate(texts):
        role: Any = "assistant" if number % 2 else "user"
        parent = history.append(session, parent, role, text).id
    return session


def test_the_archive_finds_by_title_and_by_message(history: History) -> None:
    old = keep(history, "Old things", "What is a matrix?", "A table of numbers.")
    keep(history, "Weather", "Will it rain?", "Who knows.")
    new = keep(history, "Matrix product", "How?", "Row by column.")
    archive = Archive(history)
    assert [entry.id for entry in archive.list_entries()][::2] == [new, old]
    found = archive.list_entries("matr")
    assert [(entry.id, entry.n_messages) for entry in found] == [(new, 2), (old, 2)]
    assert (found[0].snippet, found[1].snippet[1]) == ((), "matrix")
    assert archive.list_entries("matrix rain") == []
    archive.delete(old)
    assert [entry.id for entry in archive.list_entries("matr")] == [new]


@pytest.mark.parametrize("query", ["what", '"What is"', "hat is", "?"])
def test_a_long_conversation_does_not_hide_the_others(
    history: History, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr("localcascade.chat.archive.MAX_MATCHES", 3)
    short = keep(history, "Short", "What is this?", "That.")
    keep(history, "Other", "Nothing of it", "here.")
    gone = keep(history, "Gone", "What is that?")
    history.delete(gone)
    long = keep(history, "Long", *["What is it?"] * 20)
    found = Archive(history).list_entries(query)
    assert [entry.id for entry in found] == [long, short]
    assert found[0].snippet != ()


class KeptSource:
    """Conversations of a history, with one engine for each model that is installed."""

    def __init__(self, history: History, *installed: str) -> None:
        self.history = history
        self.engines = {name: ScriptedEngine([think_and_say("", "yes")]) for name in installed}

    def begin(self, model: str | None) -> Opening:
        name = model or next(iter(self.engines))
        identity = ModelIdentity(name, f"/models/{name}.gguf")
        journal = HistoryJournal(self.history, identity)
        return Opening(Conversation(journal), name, self.engines[name])

    def resume(self, session: str | None, model: str | None) -> Opening:
        found = self.history.find_session(session)
        name = model or found.model.name
        if name not in self.engines:
            raise ModelNotFound(f"no model {name!r}")
        conversation = open_session(self.history, found, ModelIdentity(name, ""))
        return Opening(conversation, name, self.engines[name], found.title)


def chat_with(source: KeptSource) -> ChatApp:
    archive = Archive(source.history)
    return ChatApp(source, source.begin(None), Preferences(checks=False), archive=archive)


def read_texts(app: ChatApp) -> list[str]:
    return [entry.message.text for entry in app.screen.query_one(Transcript).entries]


async def choose(pilot: Pilot[None], *keys: str) -> None:
    """Open the list, press keys, and wait for a chat to be there again."""
    await pilot.press("ctrl+l")
    await wait_for_rows(pilot)
    await pilot.press(*keys)
    await wait_until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen))
    await pilot.pause()


@pytest.mark.asyncio
async def test_a_conversation_is_opened_with_its_model(history: History) -> None:
    keep(history, "Sums", "2 + 2?", "4", model="large")
    source = KeptSource(history, "tiny", "large")
    app = chat_with(source)
    async with app.run_test(size=(100, 30)) as pilot:
        await choose(pilot, "enter")
        assert read_texts(app) == ["2 + 2?", "4"]
        assert read(app, "#top") == "large — Sums"
        await wait_until(pilot, lambda: source.engines["tiny"].is_closed)
        app.screen.query_one(Composer).insert("sure?")
        await pilot.press("enter")
        await wait_until(pilot, lambda: read_texts(app)[-1] == "yes")
        assert len(source.engines["large"].requests) == 1
        history.flush()
        assert history.list_sessions()[0].n_messages == 4


@pytest.mark.asyncio
async def test_where_its_model_is_gone_the_present_one_goes_on(history: History) -> None:
    keep(history, "Sums", "2 + 2?", "4", model="gone")
    app = chat_with(KeptSource(history, "tiny"))
    async with app.run_test(size=(100, 30)) as pilot:
        await choose(pilot, "enter")
        assert read_texts(app) == ["2 + 2?", "4"]
        assert read(app, "#notice").startswith("gone is not installed: tiny goes on")


@pytest.mark.asyncio
async def test_a_new_one_is_begun_and_nothing_is_lost(history: History) -> None:
    keep(history, "Sums", "2 + 2?", "4")
    app = chat_with(KeptSource(history, "tiny"))
    async with app.run_test(size=(100, 30)) as pilot:
        await choose(pilot, "enter")
        await choose(pilot, "ctrl+n")
        assert read_texts(app) == []
        await choose(pilot, "escape")
        assert read_texts(app) == []
        assert [session.n_messages for session in history.list_sessions()] == [2]
        assert read(app, "#top") == "tiny"
        app.screen.query_one(Composer).insert("And now?\nWell?")
        await pilot.press("enter")
        await wait_until(pilot, lambda: read(app, "#top") == "tiny — And now?")


@pytest.mark.asyncio
async def test_an_answer_that_is_left_is_kept_as_stopped(history: History) -> None:
    keep(history, "Sums", "2 + 2?", "4")
    source = KeptSource(history, "tiny")
    source.engines["tiny"].scripts = [[Delta("half an ans", "answer"), None, end()]]
    app = chat_with(source)
    async with app.run_test(size=(100, 30)) as pilot:
        app.screen.query_one(Composer).insert("well?")
        await pilot.press("enter")
        await wait_until(pilot, lambda: read_texts(app)[-1:] == ["half an ans"])
        await choose(pilot, "down", "enter")
        assert read_texts(app) == ["2 + 2?", "4"]
        assert source.engines["tiny"].chats[0].is_closed
    history.flush()
    left = history.export(history.list_sessions()[0].id).path[-1]
    assert (left.state, left.text) == ("stopped", "half an ans")


@pytest.mark.asyncio
async def test_without_a_history_it_says_so() -> None:
    engine = ScriptedEngine([[end()]])
    app = ChatApp(
        KeptSource.__new__(KeptSource), Opening(Conversation(MemoryJournal()), "tiny", engine)
    )
    async with app.run_test() as pilot:
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert isinstance(app.screen, ChatScreen)
        assert next(note.message for note in app._notifications).startswith("There is no history")


@pytest.mark.asyncio
async def test_the_palette_offers_it(history: History) -> None:
    keep(history, "Sums", "2 + 2?", "4")
    app = chat_with(KeptSource(history, "tiny"))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("ctrl+p")
        await pilot.press(*"Conversations")
        await wait_for_commands(pilot)
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: isinstance(app.screen, SessionScreen))


@pytest.mark.parametrize(
    ("size", "theme"),
    [((120, 36), "cascade-dark"), ((80, 24), "cascade-light"), ((60, 16), "cascade-contrast")],
    ids=name_size,
)
def test_it_looks_as_it_did(
    snap_compare: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    async def settle(pilot: Pilot[Any]) -> None:
        pilot.app.screen.query_one(Input).cursor_blink = False
        await wait_for_rows(pilot)
        await pilot.press(*"so", "end", "down", "down", "down", "down")
        await pilot.pause()

    archive = FakeArchive(*ENTRIES[:3], FOUND)
    archive.list_entries = lambda query="": archive.entries  # type: ignore[method-assign]
    app = Stage(show(archive, "a1"), theme)
    assert snap_compare(app, terminal_size=size, run_before=settle)
