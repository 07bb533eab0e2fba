"""Read JSON that strangers wrote: one object, no key twice, no nonsense."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from quantize.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
"""The limit of the safetensors library for a header; other JSON is held to it too."""
DAMAGED = "Download the file again."


def read_object(path: Path, *, allow_infinity: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds one object, naming no key twice.

    Args:
        path: The file, 100 MB at most.
        allow_infinity: Accept Infinity and NaN, which Python writes and JSON does not have.

    Raises:
        CheckpointError: It is missing, too large, not such a file, or not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(path, "not a file", hint=DAMAGED)
        if status.st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                path, f"{status.st_size} bytes of JSON, more than {MAX_JSON_BYTES}", hint=DAMAGED
            )
        return parse_object(path, path.read_bytes(), allow_infinity=allow_infinity)
    except FileNotFoundError as error:
        raise CheckpointError(
            path, "not found", hint="Name a folder with a complete Hugging Face checkpoint."
        ) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error


def parse_object(path: Path, text: bytes, *, allow_infinity: bool = False) -> dict[str, Any]:
    """Parse the text of a JSON object; Args and Raises as `read_object`."""

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"key {key!a:.80} occurs twice")
            found[key] = value
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=collect,
            parse_constant=float if allow_infinity else refuse,
        )
    except RecursionError as error:
        raise CheckpointError(path, "JSON nested too deeply", hint=DAMAGED) from error
    except ValueError as error:
        raise CheckpointError(path, f"not sound JSON: {error}", hint=DAMAGED) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, "not a JSON object", hint=DAMAGED)
    return parsed
