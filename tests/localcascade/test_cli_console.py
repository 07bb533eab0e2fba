"""Exit codes, error text, and what is kept from the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantize.errors as quantizing
from localcascade import errors
from localcascade.chat.attachments import AttachmentRefused
from localcascade.cli import console
from localcascade.cli.console import ExitCode, UsageError, escape_controls, find_exit_code
from localcascade.maths import LayoutError

# One of every error, with the code that the README promises for it.
ERRORS: tuple[tuple[BaseException, int], ...] = (
    (errors.CascadeError("x"), 1),
    (errors.ConfigError("file", "key", "x"), 1),
    (errors.ModelNotFound("x"), 3),
    (errors.ModelFileError("file", "x"), 5),
    (errors.UnsafeName("x"), 5),
    (errors.StoreError("x"), 1),
    (errors.HistoryError("file", "x"), 1),
    (errors.HistoryDamaged("file", "x"), 5),
    (errors.SessionNotFound("file", "x"), 3),
    (errors.TemplateError("x"), 5),
    (errors.DownloadError("x"), 1),
    (errors.OfflineError("x"), 6),
    (errors.OutOfBudget("x", need_bytes=2, have_bytes=1), 4),
    (errors.EvaluationError("x"), 2),
    (errors.ContextFull(2, 1), 1),
    (errors.NativeError("x", 1), 1),
    (errors.EngineDied("x"), 1),
    (LayoutError("x"), 1),
    (AttachmentRefused("x"), 1),
    (errors.RemoteError("x"), 1),
    (errors.ToolError("x"), 1),
    (UsageError("x"), 2),
    (quantizing.QuantizeError("x"), 1),
    (quantizing.CheckpointError(Path("f"), "x"), 5),
    (quantizing.NotFinite(Path("f"), "t", (0,), 1.0), 5),
    (quantizing.UnsupportedModel("x"), 5),
    (quantizing.ChoiceRefused("x"), 5),
    (quantizing.BudgetTooSmall(2, 1), 4),
    (quantizing.RecipeError("file", "key", "x"), 5),
    (quantizing.SensitivityError(Path("f"), "key", "x"), 5),
    (quantizing.TypeMismatch("t", 1, "q", 2, ("f32",)), 2),
    (quantizing.GGUFError(Path("f"), "x"), 5),
    (quantizing.OutputError("x"), 1),
    (quantizing.NativeError("x"), 1),
    (KeyboardInterrupt(), 130),
    (RuntimeError("x"), 1),
)


def list_children(error_type: type[BaseException]) -> Iterator[type[BaseException]]:
    yield error_type
    for child in error_type.__subclasses__():
        yield from list_children(child)


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert find_exit_code(error) == code


def test_no_error_of_either_tree_is_forgotten() -> None:
    roots = (errors.CascadeError, quantizing.QuantizeError)
    ours = {
        child
        for root in roots
        for child in list_children(root)
        if child.__module__.startswith(("localcascade", "quantize"))
    }
    assert ours == {type(error) for error, _ in ERRORS} & ours


def test_an_error_is_its_message_and_its_hint(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.print_error(errors.ConfigError("file", "key", "is wrong", "Mend it."))
    captured = capsys.readouterr()
    assert captured.err == "error: file: key: is wrong\nhint: Mend it.\n"
    assert captured.out == ""


def test_the_last_words_of_an_engine_come_before_its_death(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = "\n".join(f"line {number}" for number in range(20)) + "\x1b[2J"
    log += "\n\nFatal Python error: Aborted\n\nThread 1:\n"
    console.print_error(errors.EngineDied("it ended", log_tail=log))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "engine: line 14" and len(lines) == 7
    assert lines[5:] == ["engine: line 19\\x1b[2J", "error: it ended"]


def test_a_system_error_names_its_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Path("missing").read_bytes()
    except OSError as error:
        console.print_error(error)
    assert capsys.readouterr().err == "error: missing: No such file or directory\n"


def test_a_fault_of_ours_says_how_to_report_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.print_error(KeyError("tokens"))
    text = capsys.readouterr().err
    assert "KeyError: 'tokens'" in text
    assert "LOCALCASCADE_DEBUG=1" in text
    assert "Traceback" not in text


def test_debugging_adds_the_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALCASCADE_DEBUG", "1")
    try:
        raise errors.ToolError("broken")
    except errors.ToolError as error:
        console.print_error(error)
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert text.endswith("error: broken\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colour: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.use_colour(Terminal()) is colour
    assert not console.use_colour(io.StringIO())
    output = Terminal()
    console.make_console(output).print(console.make_text("text", "bold red"))
    assert ("\x1b[" in output.getvalue()) is colour


def test_terminal_codes_in_a_message_are_shown_and_not_obeyed() -> None:
    hostile = "a\x1b]0;title\x07\x1b[2J\r\u202eb\x9bm\udcff"
    assert escape_controls(hostile) == "a\\x1b]0;title\\x07\\x1b[2J\\x0d\\u202eb\\x9bm\\udcff"


@pytest.mark.parametrize("text", ["plain", "tab\tand\nline", "ünï ∑ 漢字 🏅", "👩\u200d🔬", ""])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert escape_controls(text) == text


@given(st.text(st.characters()))
def test_no_control_character_survives(text: str) -> None:
    escaped = escape_controls(text)
    left = [
        character for character in escaped if ord(character) < 32 or 127 <= ord(character) < 160
    ]
    assert set(left) <= {"\n", "\t"}
    assert escape_controls(escaped) == escaped


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = console.make_table("Name", "Size>")
    table.add_row(console.make_text("[red]a[/red]:smile:"), "1")
    table.add_row(console.make_text("b"), "1234")
    console.print_tables(table, table)
    one = "Name                 Size\n[red]a[/red]:smile:     1\nb                    1234\n"
    assert capsys.readouterr().out == f"{one}\n{one}"


def test_json_is_one_object_in_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"text": "π", "n": [1, 2]})
    text = capsys.readouterr().out
    assert "π" in text
    assert json.loads(text) == {"text": "π", "n": [1, 2]}


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NOT_FOUND": 3,
        "DOES_NOT_FIT": 4,
        "BAD_FILE": 5,
        "OFFLINE": 6,
        "INTERRUPTED": 130,
    }
