"""The user's own editor, for texts that are longer than a line."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path


def edit_text(text: str) -> tuple[str, str]:
    """Let the user edit a text in $VISUAL or $EDITOR; blocks until the editor is closed.

    Args:
        text: What is in the file at first.

    Returns:
        The text afterwards, and what went wrong, if anything; the text is the old one then.
    """
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        command = shlex.split(named) or ["vi"]
    except ValueError as error:
        return text, f"{named}: {error}. Set EDITOR to the name of an editor."
    with tempfile.TemporaryDirectory(prefix="localcascade-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*command, str(path)], check=False).returncode
            edited = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            return text, f"{command[0]}: {error}. Set EDITOR to an editor that is installed."
    if code:
        return text, f"{command[0]} ended with {code}; the text is as it was."
    return edited, ""
