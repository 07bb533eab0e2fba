"""What the user has set for good: settings.toml in the config folder, read strictly.

Every key is optional, and the file too. pydantic, which checks it, is imported only when there is
a file, because it costs more time than the rest of the start.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from localcascade import paths
from localcascade.errors import ConfigError
from quantize.part import replace_file

if TYPE_CHECKING:
    from pydantic import ConfigDict
    from pydantic_core import ErrorDetails

FILE_NAME = "settings.toml"
THEMES = ("cascade-dark", "cascade-light", "cascade-contrast")
"""Names that the chat can draw; the first is the default."""
CHAT_OUTPUTS = 64
"""Tokens of a batch whose logits a chat may need: of each sequence one, and a few drafted ones.
One takes 0.5 MiB where there are 131,072 tokens. Here, for the chat starts without the plan."""

_STRICT: ConfigDict = {"extra": "forbid", "strict": True}
_KEYS = re.compile(r"(?:[a-z0-9_]+\+)*[a-z0-9_]+(?:,(?:[a-z0-9_]+\+)*[a-z0-9_]+)*")
_ACTION = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
_LEAST: Mapping[str, float] = {
    "temperature": 0, "top_p": 1e-9, "top_k": 0, "min_p": 0, "repeat_penalty": 1e-3,
    "max_tokens": 1, "seed": 0,
}  # fmt: skip
_MOST: Mapping[str, float] = {"top_p": 1, "min_p": 1, "seed": 2**32 - 2, "top_k": 2**31 - 1}


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen; None leaves it to the model."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    temperature: float | None = None
    """0 takes the likeliest token, always."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    """Thinking and answer together."""
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value, most = getattr(self, name), _MOST.get(name, math.inf)
            if value is not None and not (least <= value <= most and math.isfinite(value)):
                raise ValueError(f"{name} is {value}, but must be {_word_span(name)}")


@dataclass(frozen=True)
class Settings:
    """All that can be set."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    theme: str = THEMES[0]
    model: str = ""
    """What `localcascade chat` opens when it is given no model."""
    mode: Literal["thinking", "instruct"] = "thinking"
    budget_tokens: int | None = None
    """Of thinking; None is no limit."""
    system: str = ""
    """System message of new conversations."""
    check_steps: bool | None = None
    """Whether the chat marks steps as right or wrong; left out, where SymPy is installed."""
    lookup: Literal["auto", "on", "off"] = "auto"
    """Whether the chat runs ahead of greedy answers; auto is where that is faster."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Action, as "chat.stop" -> keys, as "escape" or "ctrl+x,f2"; F1 in the chat lists them."""

    def __post_init__(self) -> None:
        if self.theme not in THEMES:
            raise ValueError(f"theme is {self.theme!r}; there are {', '.join(THEMES)}")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise ValueError("budget_tokens must be at least 1; leave it out for no limit")
        for action, keys in self.keys.items():
            if not _ACTION.fullmatch(action):
                raise ValueError(f"keys.{action!r} is no action; write for example chat.stop")
            if not _KEYS.fullmatch(keys):
                raise ValueError(f"keys.{action} is {keys!r}; write for example ctrl+x,f2")


def find_settings_path() -> Path:
    """Path of the settings, which need not exist."""
    return paths.find_config_folder() / FILE_NAME


def load_settings() -> Settings:
    """Read the settings.

    Returns:
        What the file says, and our defaults for the rest.

    Raises:
        ConfigError: The file is not TOML, or a key is unknown or its value makes no sense; names
            the file, the key and for an unknown one the nearest that exists.
    """
    path = find_settings_path()
    return parse_settings(path, path.read_bytes()) if path.exists() else Settings()


def parse_settings(path: Path, data: bytes) -> Settings:
    """Read the settings from the bytes of a file.

    Args:
        path: What to name in an error.
        data: TOML.

    Raises:
        ConfigError: As load_settings.
    """
    tables = _flatten_keys(read_toml(path, data))
    from pydantic import TypeAdapter, ValidationError

    try:
        # As JSON, because strict Python input would have to be dataclasses already.
        text = json.dumps(tables, default=lambda date: [str(date)])
        return TypeAdapter(Settings).validate_json(text)
    except ValidationError as error:
        raise _explain(path, error.errors(include_url=False)[0]) from error


def read_toml(path: Path, data: bytes) -> dict[str, Any]:
    """Read TOML from the bytes of a file.

    Raises:
        ConfigError: It is not UTF-8, or not TOML; names the byte or the line.
    """
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            path, "", f"not UTF-8 at byte {error.start}", "Save the file as UTF-8."
        ) from error
    except ValueError as error:  # TOMLDecodeError, or an integer too long for Python to read
        raise ConfigError(path, "", f"not TOML: {error}", "Correct that line.") from error


def save_theme(name: str) -> None:
    """Remember a theme: change that one line of the settings, and nothing else in the file.

    Args:
        name: One of THEMES.

    Raises:
        ConfigError: The file that is there cannot be read, or the new one cannot be written; what
            was there stays.
    """
    path = find_settings_path()
    try:
        old = path.read_bytes() if path.exists() else b""
        wanted = replace(parse_settings(path, old), theme=name)
        new = set_theme_line(old.decode("utf-8"), name).encode("utf-8")
        if parse_settings(path, new) != wanted:
            raise ConfigError(path, "theme", "cannot be changed safely", "Change it by hand.")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, new)
    except OSError as error:
        raise ConfigError(
            path, "theme", f"cannot be saved: {error.strerror}", "Check its permissions."
        ) from error


def set_theme_line(text: str, name: str) -> str:
    """Set the theme in a settings file; comments and everything else stay as they are.

    Args:
        text: Of the file, valid TOML.
        name: Of the theme.
    """
    head, table, rest = _part_tables(text)
    line = f'theme = "{name}"'
    changed, n_changed = re.subn(r"(?m)^[ \t]*theme[ \t]*=[^\n#]*?(?=[ \t]*(?:#|$))", line, head)
    return (changed if n_changed else f"{line}\n{head}") + table + rest


def _part_tables(text: str) -> tuple[str, str, str]:
    """Part what stands before the first table, where the keys of the top are."""
    first = re.search(r"(?m)^[ \t]*\[", text)
    at = first.start() if first else len(text)
    return text[:at], text[at : at + 1], text[at + 1 :]


def _flatten_keys(tables: Mapping[str, Any]) -> dict[str, Any]:
    """TOML reads an unquoted chat.stop as a table; both ways of writing it are meant alike."""
    keys = tables.get("keys")
    if not isinstance(keys, Mapping):
        return dict(tables)
    flat: dict[str, Any] = {}
    for name, value in keys.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return {**tables, "keys": flat}


def _word_span(name: str) -> str:
    least, most = _LEAST[name], _MOST.get(name)
    if name == "top_p":
        return "above 0 and at most 1"
    return f"at least {least}" if most is None else f"between {least} and {most}"


def _explain(path: Path, details: ErrorDetails) -> ConfigError:
    loc = [str(part) for part in details["loc"]]
    if details["type"] == "unexpected_keyword_argument":
        return ConfigError(path, ".".join(loc), "unknown key", _suggest_key(loc))
    problem = details["msg"].removeprefix("Value error, ").replace("an object", "a table")
    return ConfigError(path, ".".join(loc), problem, "Correct it, or delete the line.")


def _suggest_key(loc: list[str]) -> str:
    from difflib import get_close_matches

    known = [item.name for item in fields(SamplingSettings if len(loc) > 1 else Settings)]
    nearest = get_close_matches(loc[-1], known, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else f"Known keys: {', '.join(known)}."
