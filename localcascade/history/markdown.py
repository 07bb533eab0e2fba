"""A session as Markdown: one heading for each turn, thinking folded away. Pure; no I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from localcascade.history.records import Message, Session, Transcript

ROLE_NAMES = {
    "system": "System",
    "summary": "Summary",
    "user": "You",
    "assistant": "Answer",
    "tool": "Tool result",
}
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")


def write_markdown(transcript: Transcript) -> str:
    """Write the path of a session that is on the screen.

    Args:
        transcript: The session.

    Returns:
        Markdown, with a newline at its end.
    """
    parts = [f"# {_write_title(transcript.session)}", describe_session(transcript.session)]
    for message in transcript.path:
        parts += _write_message(message)
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def describe_session(session: Session) -> str:
    """Say in one line when a session was begun, and with which model."""
    moment = datetime.fromtimestamp(session.created_s, UTC)
    model = f", {session.model.name}" if session.model.name else ""
    return f"{moment:%Y-%m-%d %H:%M} UTC{model}, session {session.id}"


def describe_state(message: Message) -> str:
    """Say how a message ended, if not well; empty if it did."""
    if message.state == "complete":
        return message.note
    return f"{message.state}: {message.note}" if message.note else message.state


def find_open_fence(text: str) -> str:
    """Find the fence that a text leaves open, as when it was stopped in the middle of code.

    Returns:
        What closes it; empty if none is open.
    """
    fence = ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if match and not fence:
            fence = "" if match[1][0] == "`" and "`" in match[2] else match[1]
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return fence


def _write_title(session: Session) -> str:
    return " ".join(session.title.split()) or f"Session {session.id}"


def _write_message(message: Message) -> list[str]:
    parts = [f"## {ROLE_NAMES[message.role]}", _fold(message.thinking), _close(message.text)]
    parts += [_write_code(str(call.get("function", call))) for call in message.tool_calls]
    state = describe_state(message)
    return [*parts, f"*({state})*" if state else ""]


def _close(text: str) -> str:
    fence = find_open_fence(text)
    return f"{text.rstrip()}\n{fence}" if fence else text.strip("\n")


def _fold(thinking: str) -> str:
    """Thinking as a quotation that is folded; what would unfold it is made harmless."""
    if not thinking.strip():
        return ""
    safe = re.sub(r"<(?=/?(details|summary)\b)", "&lt;", thinking.strip("\n"), flags=re.IGNORECASE)
    quoted = "\n".join(f"> {line}".rstrip() for line in safe.splitlines())
    return f"<details>\n<summary>Thinking</summary>\n\n{quoted}\n\n</details>"


def _write_code(text: str) -> str:
    runs = re.findall("`+", text)
    fence = "`" * max(3, *(len(run) + 1 for run in runs), 3)
    return f"{fence}\n{text}\n{fence}"
