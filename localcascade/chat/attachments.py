"""Files that go along with a message: which are taken, and how one is written into it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath

from localcascade.errors import CascadeError

CountTokens = Callable[[str], int | None]
"""Counts the tokens of a text; None where that is not known, and has to be estimated."""

BYTES_PER_TOKEN = 3.5
"""Of English text and code, roughly; small on purpose, so that an estimate is rather too high."""
MAX_TOKEN_BYTES = 16
"""A file with more bytes than that for each token it may have is not even read."""
_TICKS = re.compile(r"`+")
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_LANGUAGES = {
    "py": "python", "rs": "rust", "js": "javascript", "ts": "typescript", "sh": "bash",
    "md": "markdown", "yml": "yaml", "h": "c", "hpp": "cpp", "cc": "cpp", "rb": "ruby",
    "kt": "kotlin", "tex": "latex",
}  # fmt: skip
"""Ending of a file -> its language, where that is not the ending itself."""


class AttachmentRefused(CascadeError):
    """A file cannot go along with a message."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that goes along with a message."""

    path: str
    """As it is shown and told to the model; relative where it can be."""
    text: str
    n_bytes: int
    """On the disk."""
    n_tokens: int
    """Of the text."""
    is_estimate: bool = False
    """Whether they are estimated, as no model was there to count them."""


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text without a model, rather too many than too few."""
    return -(-len(text.encode("utf-8", "replace")) * 10 // int(BYTES_PER_TOKEN * 10))


def find_byte_limit(limit_tokens: int) -> int:
    """Find how many bytes of a file are read at most, for a limit in tokens."""
    return limit_tokens * MAX_TOKEN_BYTES


def make_attachment(
    path: str, data: bytes, limit_tokens: int, count_tokens: CountTokens
) -> Attachment:
    """Take a file along, if it is text and not too much of it.

    Args:
        path: As it is to be shown.
        data: All its bytes; of one that is larger than `find_byte_limit`, one more than that.
        limit_tokens: Most tokens, those of what else is taken along not counted.
        count_tokens: Counts the tokens of a text.

    Raises:
        AttachmentRefused: It is empty, binary or too large.
    """
    if len(data) > find_byte_limit(limit_tokens):
        raise _refuse_size(path, f"more than {find_byte_limit(limit_tokens):,} bytes", limit_tokens)
    found = Attachment(path, decode_text(path, data), len(data), 0)
    return measure_attachment(found, limit_tokens, count_tokens)


def measure_attachment(
    attachment: Attachment, limit_tokens: int, count_tokens: CountTokens
) -> Attachment:
    """Count the tokens of a file, again once a model is there that can.

    Args:
        attachment: The file.
        limit_tokens: Most tokens, those of what else is taken along not counted.
        count_tokens: Counts those of a text.

    Raises:
        AttachmentRefused: There are too many.
    """
    counted = count_tokens(attachment.text)
    n_tokens = estimate_tokens(attachment.text) if counted is None else counted
    if n_tokens > limit_tokens:
        about = "about " if counted is None else ""
        raise _refuse_size(attachment.path, f"{about}{n_tokens:,} tokens", limit_tokens)
    return replace(attachment, n_tokens=n_tokens, is_estimate=counted is None)


def decode_text(path: str, data: bytes) -> str:
    """Read bytes as text: UTF-8, or UTF-16 if the file says so; line ends become newlines.

    Raises:
        AttachmentRefused: It is empty or no text.
    """
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = error.start + len(mark)
        raise _refuse_binary(path, f"byte {at} is not {encoding.upper()}") from error
    if "\0" in text:
        raise _refuse_binary(path, f"character {text.index(chr(0))} is a zero")
    if not text.strip():
        raise AttachmentRefused(f"{path}: it is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_message(text: str, attachments: Iterable[Attachment]) -> str:
    """Write a message with what goes along with it: the files first, as they are what it is about.

    Args:
        text: What the user wrote.
        attachments: In the order in which they were chosen.

    Returns:
        Markdown. Nothing in a file can end its own fence, and no name can break its line.
    """
    parts = [write_attachment(attachment) for attachment in attachments]
    return "\n\n".join([*parts, text] if text else parts)


def write_attachment(attachment: Attachment) -> str:
    """Write one file: its name in a line, and its text in a fence that the text cannot end."""
    fence = "`" * max(3, _measure_ticks(attachment.text) + 1)
    end = "" if attachment.text.endswith("\n") else "\n"
    language = find_language(attachment.path)
    name = write_code_span(attachment.path)
    return f"File {name}:\n\n{fence}{language}\n{attachment.text}{end}{fence}"


def write_code_span(text: str) -> str:
    """Write a short text as code in a line of Markdown, whatever characters it has."""
    safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    ticks = "`" * (_measure_ticks(safe) + 1)
    pad = " " if safe.startswith(("`", " ")) or safe.endswith(("`", " ")) else ""
    return f"{ticks}{pad}{safe}{pad}{ticks}"


def find_language(path: str) -> str:
    """Find a file's language for the fence, by its ending; empty if that would not be one word."""
    ending = PurePath(path).suffix.removeprefix(".").lower()
    language = _LANGUAGES.get(ending, ending)
    return language if re.fullmatch(r"[a-z0-9]{1,12}", language) else ""


def _measure_ticks(text: str) -> int:
    return max((len(run) for run in _TICKS.findall(text)), default=0)


def _refuse_binary(path: str, why: str) -> AttachmentRefused:
    return AttachmentRefused(f"{path}: no text: {why}", "Only text files can be attached.")


def _refuse_size(path: str, size: str, limit_tokens: int) -> AttachmentRefused:
    return AttachmentRefused(
        f"{path}: {size}, where {limit_tokens:,} tokens have room",
        "Attach a part of it, or start with a larger context.",
    )
