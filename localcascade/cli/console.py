"""What reaches the terminal: data on stdout, all else on stderr, and one table of exit codes.

Rich is imported only when something is drawn, so that `--help` and plain errors stay quick.
Errors are text on stderr even under `--json`: stdout then holds one whole object or nothing,
and the exit code says which.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import unicodedata
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TextIO

import quantize.errors as quantizing
from localcascade import errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

DEBUG_VARIABLE = "LOCALCASCADE_DEBUG"
_PIPE_WIDTH = 1000  # columns; a pipe has no edge to fold lines at
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class ExitCode(IntEnum):
    """What the shell is told; part of the contract with scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DOES_NOT_FIT = 4
    BAD_FILE = 5
    OFFLINE = 6
    INTERRUPTED = 130


class UsageError(errors.CascadeError):
    """The command line itself is wrong, in a way its parser could not see."""


# The first row whose type matches decides, so children stand above their parents.
EXIT_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (UsageError, ExitCode.USAGE),
    (errors.EvaluationError, ExitCode.USAGE),
    (errors.ModelNotFound, ExitCode.NOT_FOUND),
    (errors.SessionNotFound, ExitCode.NOT_FOUND),
    (errors.OutOfBudget, ExitCode.DOES_NOT_FIT),
    (errors.ModelFileError, ExitCode.BAD_FILE),
    (errors.HistoryDamaged, ExitCode.BAD_FILE),
    (errors.UnsafeName, ExitCode.BAD_FILE),
    (errors.TemplateError, ExitCode.BAD_FILE),
    (errors.OfflineError, ExitCode.OFFLINE),
    (quantizing.BudgetTooSmall, ExitCode.DOES_NOT_FIT),
    (quantizing.TypeMismatch, ExitCode.USAGE),
    (quantizing.RecipeError, ExitCode.BAD_FILE),
    (quantizing.ChoiceRefused, ExitCode.BAD_FILE),
    (quantizing.CheckpointError, ExitCode.BAD_FILE),
    (quantizing.UnsupportedModel, ExitCode.BAD_FILE),
    (quantizing.GGUFError, ExitCode.BAD_FILE),
    (quantizing.SensitivityError, ExitCode.BAD_FILE),
)

N_LOG_LINES = 6
"""Last lines of the log of an engine that died; what it died of is among them."""


def find_exit_code(error: BaseException) -> ExitCode:
    """Look an error up in the table; what it does not name is 1."""
    for error_type, code in EXIT_CODES:
        if isinstance(error, error_type):
            return code
    return ExitCode.FAILED


def print_error(error: BaseException) -> None:
    """Say on stderr what is wrong and what to do; a traceback only with LOCALCASCADE_DEBUG=1."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, errors.EngineDied):
        for line in errors.cut_fault(error.log_tail).strip().splitlines()[-N_LOG_LINES:]:
            _print_labelled("engine", "2", line)
    message, hint = describe_error(error)
    print_problem(message, hint)


def print_problem(message: str, hint: str = "") -> None:
    """Write the two lines every failure gets: "error: …" and, where there is one, "hint: …"."""
    _print_labelled("error", "31", message)
    if hint:
        _print_labelled("hint", "36", hint)


def print_note(text: str) -> None:
    """Write one line that a person may want to know, and that is no failure."""
    _print_labelled("note", "33", text)


def _print_labelled(label: str, colour: str, text: str) -> None:
    if use_colour(sys.stderr):
        label = f"\x1b[1;{colour}m{label}\x1b[0m"
    print(f"{label}: {escape_controls(text)}", file=sys.stderr)


def describe_error(error: BaseException) -> tuple[str, str]:
    """Put an error into words.

    Returns:
        The message, and a hint that may be empty.
    """
    if isinstance(error, errors.CascadeError | quantizing.QuantizeError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", ""
    problem = f"{type(error).__name__}: {error}"
    return (
        f"this is a fault of LocalCascade, not yours: {problem}",
        f"Run it again with {DEBUG_VARIABLE}=1 for the traceback, and report that.",
    )


def escape_controls(text: str) -> str:
    """Make text of unknown origin safe to print: control and direction characters become \\x….

    A file's metadata, its name or a model's answer could otherwise clear the screen, retitle
    the window or reorder what is read. Newline and tab stay, and so do the joiners of emoji.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape_control(character) for character in text)


def _escape_control(character: str) -> str:
    if character in "\n\t":
        return character
    if character not in _DIRECTIONS and unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def use_colour(stream: TextIO) -> bool:
    """Say whether a stream may get escape codes: a terminal, not a dumb one, and NO_COLOR unset."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def make_console(stream: TextIO) -> Console:
    """Make a Rich console on a stream; no escape codes unless `use_colour` allows them.

    Args:
        stream: sys.stdout for what was asked for, sys.stderr for everything else.
    """
    from rich.console import Console

    return Console(
        file=stream,
        highlight=False,
        emoji=False,
        markup=False,
        force_terminal=use_colour(stream),
        width=None if stream.isatty() else _PIPE_WIDTH,
    )


def make_table(*headings: str) -> Table:
    """Make a table without frames; a heading that ends in ">" aligns its column to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        right = heading.endswith(">")
        table.add_column(heading.removesuffix(">"), justify="right" if right else "left")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables to stdout, an empty line between them, without blanks at the ends of lines."""
    output = make_console(sys.stdout)
    for i, table in enumerate(tables):
        with output.capture() as capture:
            output.print(table)
        lines = (line.rstrip() for line in capture.get().splitlines())
        print("\n" * bool(i) + "\n".join(lines))


def make_text(text: str, style: str = "") -> Text:
    """Make a table cell of text of unknown origin: controls escaped, no markup read."""
    from rich.text import Text

    return Text(escape_controls(text), style)


def print_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout, as `--json` promises."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
