"""Every action of the chat, by its keys, with an engine that follows a script."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input, Static, Switch

from localcascade.chat.composition import CONTINUE
from localcascade.chat.conversation import Message
from localcascade.chat.lines import read_text
from localcascade.engine.wire import ModelInfo
from localcascade.errors import ContextFull, ModelFileError
from localcascade.prompt.events import Delta, Failed, PromptProgress
from localcascade.tui.app import ChatApp
from localcascade.tui.widgets.attach import AttachPicker
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.finder import Finder
from localcascade.tui.widgets.gauge import Gauge, Readings, list_figures
from localcascade.tui.widgets.panel import Panel
from localcascade.tui.widgets.transcript import Transcript
from tests.localcascade.scripted_engine import ScriptedEngine, end, open_chat, think_and_say
from tests.localcascade.shelves import settle, wait_until

pytestmark = pytest.mark.asyncio

ANSWER = "The **sum** is 4.\n\n```py\nx = 4\n```\n\n```sh\nls\n```\n"


def read_screen(app: App[None]) -> str:
    """The text of the conversation."""
    transcript = app.screen.query_one(Transcript)
    return "\n".join(transcript.render_line(y).text.rstrip() for y in range(transcript.size.height))


def read_messages(app: App[None]) -> list[str]:
    return [entry.message.text for entry in app.screen.query_one(Transcript).entries]


def read_notice(app: App[None]) -> str:
    notice = app.screen.query_one("#notice", Static)
    return str(notice.content) if notice.display else ""


async def say(pilot: Pilot[None], text: str) -> None:
    """Write a question and send it."""
    pilot.app.screen.query_one(Composer).insert(text)
    await pilot.press("enter")
    await settle(pilot)


def chat_with(*scripts: list, **options: object) -> tuple[ChatApp, ScriptedEngine]:  # type: ignore[type-arg]
    engine = ScriptedEngine(list(scripts), **options)  # type: ignore[arg-type]
    return open_chat(engine), engine


async def test_a_question_is_answered() -> None:
    app, engine = chat_with(think_and_say("First I add.\nIt is 4.\n", ANSWER))
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "2 + 2?")
        assert engine.requests[0].messages == ({"role": "user", "content": "2 + 2?"},)
        assert read_messages(app) == ["2 + 2?", ANSWER]
        screen = read_screen(app)
        assert "❯ 2 + 2?" in screen and "The sum is 4." in screen
        assert "▸ Thought 8 tokens" in screen and "First I add." not in screen
        readings = app.screen.query_one(Gauge).readings
        assert (readings.state, readings.context_tokens, readings.n_ctx) == ("ready", 60, 1000)
        assert (readings.tokens_per_s, readings.prompt_tokens_per_s) == (50.0, 200.0)
    assert engine.is_closed


async def test_a_new_line_is_no_question() -> None:
    app, engine = chat_with([end()])
    async with app.run_test() as pilot:
        await pilot.press("a", "shift+enter", "b", "ctrl+j", "c")
        assert app.screen.query_one(Composer).text == "a\nb\nc"
        await pilot.press("enter")
        await settle(pilot)
        assert engine.requests[0].messages[0]["content"] == "a\nb\nc"
        await pilot.press("enter")
        assert len(engine.requests) == 1


async def test_a_long_paste_is_undone_and_made_again() -> None:
    app, _ = chat_with(think_and_say("", "ok"))
    lines = "\n".join(f"line {number}" for number in range(30))
    async with app.run_test(size=(80, 24)) as pilot:
        composer = app.screen.query_one(Composer)
        composer.insert(lines)
        await settle(pilot)
        for text in ("", lines, "", lines):
            await pilot.press("ctrl+z" if not text else "alt+z")
            await settle(pilot)
            assert composer.text == text
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("ctrl+z")
        await settle(pilot)
        assert composer.text == lines and composer.cursor_location == (29, 7)


async def test_an_answer_is_stopped_and_goes_on() -> None:
    app, engine = chat_with(
        [PromptProgress(5, 9, 0), Delta("one, ", "answer"), None, end()],
        [Delta("two", "answer"), end()],
    )
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await say(pilot, "count")
        assert app.screen.query_one(Gauge).readings.is_busy
        await say(pilot, "too early")
        assert len(engine.requests) == 1
        assert app.screen.query_one(Composer).text == "too early"
        assert any("Esc stops it" in told.message for told in app._notifications)
        app.screen.query_one(Composer).clear()
        await pilot.press("escape")
        await settle(pilot)
        assert engine.chats[0].is_closed
        assert "■ Stopped." in read_screen(app)
        await pilot.press("f9")
        await settle(pilot)
        assert engine.requests[1].messages[-1]["content"] == CONTINUE
        assert read_messages(app) == ["count", "one, two"]
        assert "■" not in read_screen(app)


async def test_answer_now_reaches_the_engine() -> None:
    app, engine = chat_with([Delta("hm", "thinking"), None, Delta("4", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q")
        assert "▸ Thinking" in read_screen(app)
        await pilot.press("f5")
        await settle(pilot)
        assert engine.chats[0].was_hurried
        assert read_messages(app) == ["q", "4"]


async def test_regenerating_makes_branches_to_walk_between() -> None:
    app, _ = chat_with([Delta("a1", "answer"), end()], [Delta("a2", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q")
        await pilot.press("ctrl+r")
        await settle(pilot)
        assert read_messages(app) == ["q", "a2"]
        assert "‹ 2/2 ›" in read_screen(app)
        await pilot.press("alt+left")
        assert read_messages(app) == ["q", "a1"]
        assert "‹ 1/2 ›" in read_screen(app)
        await pilot.press("alt+left", "alt+right")
        assert read_messages(app) == ["q", "a2"]


async def test_a_turn_is_edited_or_left() -> None:
    app, engine = chat_with([Delta("a", "answer"), end()], [Delta("b", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "old")
        await pilot.press("ctrl+e")
        assert "Editing" in read_notice(app)
        await pilot.press("escape")
        assert (app.screen.query_one(Composer).text, read_notice(app)) == ("", "")
        await pilot.press("ctrl+e", "e", "r", "enter")
        await settle(pilot)
        assert engine.requests[1].messages == ({"role": "user", "content": "older"},)
        assert read_messages(app) == ["older", "b"]
        await pilot.press("alt+left")
        assert read_messages(app) == ["old", "a"]


async def test_a_draft_outlives_the_editing_of_a_turn() -> None:
    app, _ = chat_with(think_and_say("", "1"), think_and_say("", "2"))
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "one")
        composer = app.screen.query_one(Composer)
        for leave in ("escape", "enter"):
            composer.insert("begun")
            await pilot.press("ctrl+e")
            assert composer.text == "one"
            await pilot.press("!", leave)
            await settle(pilot)
            assert composer.text == "begun"
            await pilot.press("ctrl+u")
        assert read_messages(app) == ["one!", "2"]
        await pilot.press("ctrl+z")
        assert composer.text == "begun"


async def test_a_message_is_selected_and_edited() -> None:
    app, _ = chat_with([Delta("wrong", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q")
        await pilot.press("alt+up")
        assert app.screen.query_one(Transcript).selected == 1
        assert "▎" in read_screen(app)
        await pilot.press("ctrl+e")
        app.screen.query_one(Composer).text = "right"
        await pilot.press("enter")
        await settle(pilot)
        assert read_messages(app) == ["q", "right"]
        await pilot.press("alt+up", "alt+down")
        assert app.screen.query_one(Transcript).selected is None


async def test_thinking_opens_in_three_steps() -> None:
    thinking = "".join(f"step {n}\n\n" for n in range(30))
    app, _ = chat_with(think_and_say(thinking, "end"))
    async with app.run_test(size=(80, 80)) as pilot:
        await say(pilot, "q")
        counts = []
        for _ in range(3):
            counts.append(read_screen(app).count("│ step") + read_screen(app).count("│\n"))
            await pilot.press("ctrl+t")
        assert counts[0] == 0 < counts[1] <= 8 < counts[2]
        assert "│ step 0" not in read_screen(app)


async def test_a_click_opens_thinking() -> None:
    app, _ = chat_with(think_and_say("secret\nthought\n", "end"))
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "q")
        await pilot.click(Transcript, offset=(5, 2))
        await settle(pilot)
        assert "│ secret" in read_screen(app)


async def test_what_is_typed_after_a_click_is_written() -> None:
    app, _ = chat_with(think_and_say("hm", "1"))
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "one")
        transcript = app.screen.query_one(Transcript)
        for type_it in (lambda: pilot.press("t", "w", "o"), lambda: paste(pilot, "two")):
            await pilot.click(transcript, offset=(10, 10))
            assert app.focused is transcript
            await type_it()
            await settle(pilot)
            assert app.focused is app.screen.query_one(Composer)
        assert app.screen.query_one(Composer).text == "twotwo"


async def paste(pilot: Pilot[None], text: str) -> None:
    pilot.app.post_message(events.Paste(text))


async def test_messages_and_code_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = chat_with([Delta(ANSWER, "answer"), end()])
    async with app.run_test() as pilot:
        copied: list[str] = []

        async def copy(_app: object, text: str) -> tuple[str, ...]:
            copied.append(text)
            return ("terminal",)

        monkeypatch.setattr("localcascade.tui.screens.reading.copy_text", copy)
        await say(pilot, "q $x$")
        await pilot.press("ctrl+y", "alt+c", "alt+c", "alt+c", "alt+up", "alt+up", "ctrl+y")
        await settle(pilot)
        assert copied == [ANSWER, "ls\n", "x = 4\n", "ls\n", "q $x$"]


async def test_words_are_found_also_in_thinking() -> None:
    app, _ = chat_with(think_and_say("a needle here\n", "hay\n\n" * 60 + "a Needle there"))
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "q")
        await pilot.press("ctrl+f", *"needle")
        await settle(pilot)
        assert "a Needle there" in read_screen(app)
        await pilot.press("up")
        await settle(pilot)
        assert "a needle here" in read_screen(app)
        await pilot.press("escape")
        assert not app.screen.query_one(Finder).display
        assert app.screen.query_one(Composer).has_focus


async def test_mode_budget_and_sampling_go_into_the_request() -> None:
    app, engine = chat_with([end()])
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("f6", "f6")
        await say(pilot, "a")
        await pilot.press("f3", "f4")
        panel = app.screen.query_one(Panel)
        assert not panel.query_one("#field-thinking", Switch).value
        panel.query_one("#field-temperature", Input).value = "0.5"
        panel.query_one("#field-system", Input).value = "Be brief."
        await pilot.press("f4")
        assert not app.screen.query(Panel)
        await say(pilot, "b")
        first, second = engine.requests
        assert first.thinking and first.thinking_budget is not None
        assert first.thinking_budget.tokens == 2048
        assert (second.thinking, second.sampling.temperature) == (False, 0.5)
        assert second.messages[0] == {"role": "system", "content": "Be brief."}
        assert app.screen.query_one(Gauge).readings.mode == "instruct"


async def test_a_full_context_is_told_and_compacted() -> None:
    app, engine = chat_with(
        think_and_say("", "a"),
        think_and_say("", "b", n_prompt=900),
        think_and_say("", "in short"),
    )
    async with app.run_test() as pilot:
        await say(pilot, "q1")
        assert read_notice(app) == ""
        await say(pilot, "q2")
        assert "92 % full" in read_notice(app)
        await pilot.press("f8")
        await settle(pilot)
        assert not engine.requests[2].thinking
        assert read_messages(app) == ["in short", "q2", "b"]
        assert "Compacted" in read_notice(app)
        await pilot.press("alt+left")
        assert read_messages(app) == ["q1", "a", "q2", "b"]


async def test_a_question_without_room_is_answered_after_compacting() -> None:
    full = Failed(ContextFull(1100, 1000))
    app, engine = chat_with(
        think_and_say("", "a"),
        think_and_say("", "b"),
        think_and_say("", "c"),
        [full],
        [full],
        think_and_say("", "in short"),
        think_and_say("", "d"),
    )
    async with app.run_test(size=(100, 40)) as pilot:
        for question in ("q1", "q2", "q3", "q4"):
            await say(pilot, question)
        assert "The context is full. F8 compacts" in read_notice(app)
        await pilot.press("f8")
        for _ in range(3):  # a summary that has no room, one that has, the answer
            await settle(pilot)
        assert [len(request.messages) for request in engine.requests[4:]] == [7, 3, 6]
        assert read_messages(app) == ["in short", "q2", "b", "q3", "c", "q4", "d"]
        assert "Compacted" in read_notice(app)


async def test_formulas_turn_into_their_source() -> None:
    app, _ = chat_with([Delta("so $\\alpha^2$\n", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q")
        assert "so α²" in read_screen(app)
        await pilot.press("f7")
        assert "so $\\alpha^2$" in read_screen(app)


async def test_the_users_editor_changes_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localcascade.tui.editor import edit_text

    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s more\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IEXEC)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    assert edit_text("some") == ("some more", "")
    monkeypatch.setenv("EDITOR", "false")
    assert edit_text("some")[0] == "some" and "ended with 1" in edit_text("some")[1]
    monkeypatch.setenv("EDITOR", "'unfinished")
    assert edit_text("some")[0] == "some" and "'unfinished" in edit_text("some")[1]
    monkeypatch.setenv("EDITOR", str(tmp_path / "none"))
    assert edit_text("some")[0] == "some" and "none" in edit_text("some")[1]


async def test_reading_above_stays_where_it_is_while_an_answer_grows() -> None:
    text = "".join(f"line {n}\n\n" for n in range(80))
    app, engine = chat_with([Delta(text, "answer"), None, Delta(text, "answer"), end()])
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "q")
        transcript = app.screen.query_one(Transcript)
        await pilot.press("pageup")
        await settle(pilot)
        before = read_screen(app)
        engine.chats[0].release()
        await settle(pilot)
        assert read_messages(app)[1] == text + text
        assert read_screen(app) == before
        transcript.select_message(None)
        await settle(pilot)
        assert transcript.is_at_end and "line 79" in read_screen(app)


async def test_the_end_stays_in_sight_when_there_is_less_room() -> None:
    lines = [Delta(f"line {number}\n\n", "answer") for number in range(40)]
    app, _ = chat_with([*lines, None, Delta("the last one", "answer"), end()])
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "count")
        assert "line 39" in read_screen(app)
        app.screen.query_one(Composer).insert("a\nb\nc\nd\ne")
        await settle(pilot)
        assert "line 39" in read_screen(app)
        await pilot.resize_terminal(60, 16)
        await settle(pilot)
        assert "line 39" in read_screen(app)


async def test_a_long_conversation_is_made_as_it_is_read() -> None:
    messages = [
        Message(str(n), str(n - 1) if n else None, "assistant" if n % 2 else "user", f"word {n}")
        for n in range(500)
    ]
    app = open_chat(ScriptedEngine([[end()]]), messages)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        transcript = app.screen.query_one(Transcript)
        assert transcript.n_cards <= 60
        assert "word 499" in read_screen(app)
        seen = set()
        for _ in range(80):
            seen |= {word for word in read_screen(app).split("\n") if "word" in word}
            await pilot.press("pageup")
            await settle(pilot)
        assert transcript.n_cards == 500
        assert len(seen) == 500
        assert "❯ word 0" in read_screen(app)


async def test_a_new_width_sets_the_lines_anew() -> None:
    app, _ = chat_with([Delta("word " * 40 + "end", "answer"), end()])
    async with app.run_test(size=(120, 30)) as pilot:
        await say(pilot, "q")
        wide = read_screen(app).count("\n" + "  word")
        await pilot.resize_terminal(60, 16)
        await settle(pilot)
        assert read_screen(app).count("\n" + "  word") > wide
        assert read_screen(app).split().count("word") == 40
        assert max(len(line) for line in read_screen(app).split("\n")) <= 58


async def test_what_the_model_writes_cannot_reach_the_terminal() -> None:
    app, _ = chat_with([Delta("a\x1b]0;title\x07\u202eb\x9bc\n", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q\x1b[31m")
        screen = read_screen(app)
        assert not any(c in screen for c in "\x1b\x07\x9b\u202e")
        assert "a␛]0;title␇⟨U+202E⟩b�c" in screen


async def test_a_model_that_cannot_be_loaded_is_told() -> None:
    failure = ModelFileError("x.gguf", "cut off", hint="Get it again.")
    app, _ = chat_with([end()], failure=failure)
    async with app.run_test() as pilot:
        await settle(pilot)
        assert app.screen.query_one(Gauge).readings.state == "no model"
        assert read_notice(app) == "x.gguf: cut off Get it again."


async def test_a_new_conversation_is_begun() -> None:
    app, _ = chat_with([Delta("a", "answer"), end()])
    async with app.run_test() as pilot:
        await say(pilot, "q")
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert read_messages(app) == []
        await say(pilot, "other")
        assert read_messages(app) == ["other", "a"]


async def test_a_draft_goes_along_into_another_conversation() -> None:
    app, _ = chat_with(think_and_say("", "1"))
    async with app.run_test(size=(80, 24)) as pilot:
        app.screen.query_one(Composer).insert("begun\nto write")
        await pilot.press("ctrl+n")
        await settle(pilot)
        await pilot.press("!")
        assert app.screen.query_one(Composer).text == "begun\nto write!"
        await pilot.press("enter")
        await settle(pilot)
        assert app.screen.query_one(Composer).text == ""


async def test_selected_text_is_what_stands_there() -> None:
    app, _ = chat_with([Delta("one two\n\nthree", "answer"), end()])
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "q")
        transcript = app.screen.query_one(Transcript)
        card_lines = read_text(transcript._cards[1].lines).split("\n")
        assert card_lines[0] == "one two"
        await pilot.mouse_down(transcript, offset=(6, 2))
        await pilot.hover(transcript, offset=(7, 4))
        await pilot.mouse_up(transcript, offset=(7, 4))
        assert app.screen.get_selected_text() == "two\n\nthree"


@pytest.mark.parametrize("width", [30, 60, 200])
async def test_the_gauge_keeps_what_matters(width: int) -> None:
    class Alone(App[None]):
        def compose(self) -> ComposeResult:
            yield Gauge()

    app = Alone()
    async with app.run_test(size=(width, 20)) as pilot:
        gauge = app.query_one(Gauge)
        gauge.readings = Readings("ready", False, 41.6, 1234, 6800, 8192, 2000, 3 << 30, "thinking")
        await pilot.pause()
        text = str(gauge.render())
        assert len(text) <= width
        figures = list_figures(gauge.readings)
        assert figures[:2] == ["▰▰▰▰▰▰▰▱ 6.8k / 8.2k", "42 tok/s"]
        assert figures[3:] == ["prompt 1.2k tok/s", "2.0k reused", "3.0 GiB"]
        n_shown = sum(figure in text for figure in figures)
        assert n_shown == {30: 1, 60: 3, 200: 6}[width]


class SlowEngine(ScriptedEngine):
    """Loads only when it is let."""

    def load(self, on_progress: object = None) -> ModelInfo:
        self.gate.wait()
        return super().load()

    gate = threading.Event()


async def attach(pilot: Pilot[None], name: str) -> None:
    await pilot.press("@")
    await wait_until(pilot, lambda: "files" in read_state(pilot.app))
    await pilot.press(*name, "enter")


def read_state(app: App[None]) -> str:
    return str(app.screen.query_one("#attach-state", Static).content)


@pytest.mark.parametrize(
    ("counts", "told"),
    [(True, "notes.txt (11 B, 2 tokens)"), (False, "notes.txt (11 B, ~4 tokens)")],
)
async def test_a_file_goes_along_with_its_tokens_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: bool, told: str
) -> None:
    (tmp_path / "notes.txt").write_text("hello world")
    monkeypatch.chdir(tmp_path)
    app, engine = chat_with(think_and_say("", "ok"))
    engine.counts = counts
    async with app.run_test() as pilot:
        await settle(pilot)
        await attach(pilot, "notes")
        await wait_until(pilot, lambda: told in read_notice(app))
        await say(pilot, "What is this?")
        (message,) = engine.requests[0].messages
        assert "hello world" in message["content"]
        assert message["content"].endswith("What is this?")


async def test_a_file_is_chosen_in_the_middle_of_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("hello world")
    monkeypatch.chdir(tmp_path)
    app, _ = chat_with()
    async with app.run_test() as pilot:
        await settle(pilot)
        composer = app.screen.query_one(Composer)
        composer.insert("see \nand more")
        composer.move_cursor((0, 4))
        await attach(pilot, "notes")
        await wait_until(pilot, lambda: "notes.txt" in read_notice(app))
        await pilot.press("x")
        assert composer.text == "see x\nand more"


async def test_once_the_model_is_there_files_are_counted_and_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.txt").write_text("one two three")
    (tmp_path / "large.txt").write_text("x " * 1500)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SlowEngine, "gate", threading.Event())
    engine = SlowEngine([think_and_say("", "ok")], n_ctx=1000)
    app = open_chat(engine)
    async with app.run_test(notifications=True) as pilot:
        await attach(pilot, "small")
        await wait_until(pilot, lambda: "small.txt (13 B, ~4 tokens)" in read_notice(app))
        await attach(pilot, "large")
        await wait_until(pilot, lambda: "large.txt (2.9 KiB, ~858 tokens)" in read_notice(app))
        engine.gate.set()
        await wait_until(pilot, lambda: "small.txt (13 B, 3 tokens)" in read_notice(app))
        assert "large.txt" not in read_notice(app)
        told = [note.message for note in app._notifications]
        assert any("Taken off: large.txt" in text and "1,500 tokens" in text for text in told)
        await attach(pilot, "large")
        await wait_until(pilot, lambda: "1,500 tokens" in read_state(app))


async def test_escape_leaves_the_files_and_then_what_is_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("hello world")
    monkeypatch.chdir(tmp_path)
    app, _ = chat_with([end()])
    async with app.run_test() as pilot:
        await settle(pilot)
        await attach(pilot, "notes")
        await wait_until(pilot, lambda: "notes.txt" in read_notice(app))
        await pilot.press("@")
        picker = app.screen.query_one(AttachPicker)
        await wait_until(pilot, lambda: picker.display)
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.screen.query_one(Composer).has_focus)
        assert not picker.display and "notes.txt" in read_notice(app)
        await pilot.press("escape")
        assert read_notice(app) == ""
