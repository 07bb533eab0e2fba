"""The clipboard: what reaches a terminal, bare or behind tmux or screen, and what programs get."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App

from localcascade.tui.clipboard import (
    MAX_OSC_BYTES,
    copy_text,
    list_programs,
    make_sequence,
    write_to_terminal,
)

BARE = {"TERM": "xterm-256color"}
TMUX = {"TERM": "tmux-256color", "TMUX": "/tmp/tmux-0/default,1,0"}
SCREEN = {"TERM": "screen.xterm-256color"}
SCREEN_LIMIT_BYTES = 768
"""Of one string, in GNU screen's source: MAXSTR."""


class Terminal:
    """What a terminal makes of what is written to it; through tmux or screen as these do it."""

    def __init__(self) -> None:
        self.clipboard: str | None = None
        self.stray = ""

    def feed(self, text: str) -> None:
        """Obey OSC 52 and keep everything else as stray."""
        match = re.search("\x1b]52;c;([A-Za-z0-9+/=]*)(?:\x07|\x1b\\\\)", text)
        if match:
            self.clipboard = base64.b64decode(match[1], validate=True).decode()
        self.stray += text.replace(match[0], "") if match else text

    def feed_through_tmux(self, text: str) -> None:
        """Pass on what is in a tmux wrapper, doubled escapes single again; the rest is stray."""
        match = re.fullmatch("\x1bPtmux;((?:\x1b\x1b|[^\x1b])*)\x1b\\\\", text)
        assert match
        self.feed(match[1].replace("\x1b\x1b", "\x1b"))

    def feed_through_screen(self, text: str) -> None:
        """Pass on device control strings, none of them longer than screen's buffer."""
        parts = re.findall("\x1bP((?:(?!\x1b\\\\).)*)\x1b\\\\", text, re.DOTALL)
        assert "".join(f"\x1bP{part}\x1b\\" for part in parts) == text
        assert all(len(part) < SCREEN_LIMIT_BYTES for part in parts)
        self.feed("".join(parts))


@pytest.mark.parametrize(
    ("environment", "feed"),
    [(BARE, "feed"), (TMUX, "feed_through_tmux"), (SCREEN, "feed_through_screen")],
    ids=["bare", "tmux", "screen"],
)
@given(text=st.text(max_size=2000))
def test_a_terminal_gets_every_character(environment: dict[str, str], feed: str, text: str) -> None:
    terminal = Terminal()
    sequence = make_sequence(text, environment)
    assert sequence is not None
    getattr(terminal, feed)(sequence)
    assert terminal.clipboard == text.encode("utf-8", "replace").decode()
    assert terminal.stray == ""


def test_what_a_terminal_would_drop_is_not_sent() -> None:
    fits = MAX_OSC_BYTES // 4 * 3
    assert make_sequence("x" * fits, BARE) is not None
    assert make_sequence("x" * (fits + 1), BARE) is None


@pytest.mark.parametrize(
    ("environment", "platform", "names"),
    [
        ({}, "linux", []),
        ({}, "darwin", ["pbcopy"]),
        ({"DISPLAY": ":0"}, "linux", ["xclip", "xsel"]),
        ({"DISPLAY": ":0", "WAYLAND_DISPLAY": "w"}, "linux", ["wl-copy", "xclip", "xsel"]),
        (TMUX, "linux", ["tmux"]),
    ],
)
def test_only_programs_of_this_display_are_asked(
    environment: dict[str, str], platform: str, names: list[str]
) -> None:
    assert [program[0] for program in list_programs(environment, platform)] == names


@pytest.fixture
def fake_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Wayland program that fails, and one for X that keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kept = tmp_path / "kept"
    for name, body in (("wl-copy", "exit 1"), ("xclip", f'/bin/cat > "{kept}"')):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("TMUX", raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "x")
    return kept


@pytest.mark.asyncio
async def test_the_next_program_is_asked_where_one_fails(
    fake_programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, app = Terminal(), App[None]()
    async with app.run_test():
        assert app._driver is not None
        monkeypatch.setattr(app._driver, "write", terminal.feed)
        ways = await copy_text(app, "grüße\n")
        long_ways = await copy_text(app, "x" * MAX_OSC_BYTES)
    assert (ways, long_ways) == (("terminal", "xclip"), ("xclip",))
    assert terminal.clipboard == "grüße\n"
    assert fake_programs.read_text() == "x" * MAX_OSC_BYTES


def test_without_a_terminal_nothing_is_sent() -> None:
    assert not write_to_terminal(App[None](), "x", BARE)
