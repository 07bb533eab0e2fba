"""Checked steps on the command line: an answer's equalities marked on stderr, behind the answer."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from localcascade.cli import console

if TYPE_CHECKING:
    from localcascade.chat.checking import Findings
    from localcascade.cli.stream import Screen

MOST_CELLS = 100


def check_outcome(answer: str, question: str, screen: Screen) -> Findings:
    """Check an answer; a note says if SymPy is not there to do it fully.

    Args:
        answer: In Markdown.
        question: What was asked.
        screen: Where it is said that this takes a moment.
    """
    from localcascade.chat.checking import HOW_TO_INSTALL, Task, check_task
    from localcascade.maths.algebra import Algebra, is_available

    if not is_available():
        console.print_note(HOW_TO_INSTALL)
    screen.show_status("Checking the steps")
    try:
        with Algebra() as algebra:
            return check_task(Task("", answer, (question,)), algebra)
    finally:
        screen.show_status("")


def print_findings(findings: Findings) -> None:
    """Write what was found to stderr; signs and words tell the verdicts, never a colour alone."""
    from localcascade.chat.checking import draw_findings
    from localcascade.chat.lines import read_text
    from localcascade.chat.markdown import Look

    width = min(shutil.get_terminal_size().columns, MOST_CELLS)
    lines = draw_findings(findings, Look(width, ascii=not _writes_unicode()))
    text = read_text(lines) or "There is no step to check in this answer."
    print(console.escape_controls(text), file=sys.stderr)


def _writes_unicode() -> bool:
    return (sys.stderr.encoding or "").lower().replace("-", "").startswith("utf")
