"""Text to the clipboard: through the terminal (OSC 52), and to the system's own if there is one.

Source: xterm's ctlseqs.html (OSC 52); tmux(1), `allow-passthrough` and `load-buffer -w`; screen's
string escapes, which hold at most 768 bytes.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from textual.app import App

MAX_OSC_BYTES = 100_000
"""Of a sequence; many terminals drop longer ones whole, or print what is over."""
SCREEN_CHUNK_BYTES = 76
_TIMEOUT_S = 3.0
_ESC = "\x1b"


async def copy_text(app: App[object], text: str) -> tuple[str, ...]:
    """Copy a text everywhere it may be pasted from.

    The terminal's way also works over ssh, but it never answers; so the system's program, where
    there is one, is asked as well, beside the program's own loop.

    Args:
        app: Whose terminal it is.
        text: To copy.

    Returns:
        Where it went: "terminal", and the name of the system's program that took it; empty if it
        went nowhere because it is too long for the terminal and there is no such program.
    """
    environment = dict(os.environ)
    ways = ["terminal"] if write_to_terminal(app, text, environment) else []
    programs = list_programs(environment, sys.platform)
    return (*ways, *await asyncio.to_thread(_copy_with, programs, text))


def write_to_terminal(app: App[object], text: str, environment: Mapping[str, str]) -> bool:
    """Send a text to the terminal's clipboard.

    Returns:
        False if it is too long for that.
    """
    sequence = make_sequence(text, environment)
    driver = app._driver
    if sequence is None or driver is None:
        return False
    driver.write(sequence)
    driver.flush()
    return True


def make_sequence(text: str, environment: Mapping[str, str]) -> str | None:
    """Make the characters that set a terminal's clipboard.

    Args:
        text: To copy.
        environment: TMUX and TERM say through what the terminal is reached.

    Returns:
        Control characters and ASCII; None if the text is too long for most terminals.
    """
    encoded = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    if len(encoded) > MAX_OSC_BYTES:
        return None
    plain = f"{_ESC}]52;c;{encoded}\a"
    if environment.get("TMUX"):
        return wrap_for_tmux(plain)
    if environment.get("TERM", "").startswith("screen"):
        return wrap_for_screen(plain)
    return plain


def wrap_for_tmux(sequence: str) -> str:
    """Let tmux pass a sequence on; it does where `allow-passthrough` is on."""
    return f"{_ESC}Ptmux;{sequence.replace(_ESC, _ESC + _ESC)}{_ESC}\\"


def wrap_for_screen(sequence: str) -> str:
    """Let screen pass a sequence on, in parts that are short enough for it."""
    starts = range(0, len(sequence), SCREEN_CHUNK_BYTES)
    parts = (sequence[at : at + SCREEN_CHUNK_BYTES] for at in starts)
    return "".join(f"{_ESC}P{part}{_ESC}\\" for part in parts)


def list_programs(environment: Mapping[str, str], platform: str) -> list[Sequence[str]]:
    """List the programs that may set a clipboard here; the first that works is enough.

    Args:
        environment: Says which display there is.
        platform: As sys.platform.
    """
    programs: list[Sequence[str]] = []
    if platform == "darwin":
        programs.append(("pbcopy",))
    if environment.get("WAYLAND_DISPLAY"):
        programs.append(("wl-copy",))
    if environment.get("DISPLAY"):
        programs += [("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input")]
    if environment.get("TMUX"):
        # Works whatever tmux lets through, and tmux tells the terminal too.
        programs.append(("tmux", "load-buffer", "-w", "-"))
    return programs


def _copy_with(programs: Sequence[Sequence[str]], text: str) -> tuple[str, ...]:
    for program in programs:
        if shutil.which(program[0]) and _feed(program, text):
            return (program[0],)
    return ()


def _feed(program: Sequence[str], text: str) -> bool:
    try:
        # Its output goes nowhere: xclip stays behind, and would keep a pipe open.
        done = subprocess.run(
            program,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
