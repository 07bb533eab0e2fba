"""The catalog: our models.toml with the user's own on top, read strictly.

The user's file is merged key by key: a table `[nemotron-cascade-2]` that holds only `sampling`
changes only the sampling of that entry. The merged whole is then checked by pydantic, which is
imported only at that moment because it costs more time than the rest of `--help`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from localcascade import paths
from localcascade.errors import ConfigError
from localcascade.names import NAME_PATTERN, REPO_PATTERN
from localcascade.settings import read_toml

if TYPE_CHECKING:
    from pydantic import ConfigDict
    from pydantic_core import ErrorDetails

Mode = Literal["thinking", "instruct"]

_STRICT: ConfigDict = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Licence:
    """The terms of the weights."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    url: str

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError("url must begin with https://")


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    total: int
    """All, embeddings included."""
    active: int
    """Those one token passes through; of the embedding table none, as it is only looked up."""

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.total < 1 << 63:
            raise ValueError("active must be positive, and at most total")


@dataclass(frozen=True)
class ModelSampling:
    """How its makers say that the next token should be chosen."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    temperature: float
    top_p: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError("temperature must be at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")


@dataclass(frozen=True)
class Preset:
    """A recipe that was solved for one size of file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    size_bytes: int
    """The budget it was solved for; the file is at most that large."""
    recipe: Mapping[str, Any]
    """As in a recipe file, see quantize.recipe_file; made for an importance matrix."""


@dataclass(frozen=True)
class CatalogEntry:
    """One model that has a name of ours."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    summary: str
    licence: Licence
    parameters: Parameters
    context_tokens: int
    """Positions the model was made for."""
    checkpoint_bytes: int
    """Weights of the original checkpoint."""
    modes: tuple[Mode, ...]
    sampling: ModelSampling
    repo: str = ""
    """Hugging Face repository, OWNER/NAME; empty for a bundled checkpoint."""
    bundled: bool = False
    """True if the checkpoint lies in localcascade/data/NAME."""
    like: str = ""
    """Another entry, whose geometry, tokenizer_bytes and presets hold here too."""
    geometry: Mapping[str, Any] = field(default_factory=dict)
    """Sizes, as in config.json, so that a model can be planned that is not here."""
    tokenizer_bytes: int = 0
    """Estimate of what tokenizer and chat template take in the header of its GGUF."""
    presets: Mapping[str, Preset] = field(default_factory=dict)
    """Memory of a card, as "16G" -> recipe for it."""

    def __post_init__(self) -> None:
        if self.bundled == bool(self.repo):
            raise ValueError("needs either repo or bundled = true")
        if self.repo and not REPO_PATTERN.fullmatch(self.repo):
            raise ValueError(f"repo must read OWNER/NAME, not {self.repo!r}")
        if not 1 <= self.context_tokens < 1 << 31:
            raise ValueError("context_tokens must be positive and below 2 ** 31")
        if not 1 <= self.checkpoint_bytes < 1 << 63:
            raise ValueError("checkpoint_bytes must be positive and below 2 ** 63")
        if not self.modes:
            raise ValueError("modes must name at least one")


@dataclass(frozen=True)
class Catalog:
    """Every model that has a name."""

    entries: Mapping[str, CatalogEntry]

    def find_entry(self, name: str) -> tuple[str, CatalogEntry] | None:
        """Find a model by its name here or by its repository (case does not matter there)."""
        if name in self.entries:
            return name, self.entries[name]
        for own_name, entry in self.entries.items():
            if entry.repo and entry.repo.lower() == name.lower():
                return own_name, entry
        return None


def catalog_path() -> Path:
    """Path of our own models.toml: the package's data in a wheel, else the repository's file."""
    package = Path(__file__).parent
    packaged = package / "data" / "models.toml"
    return packaged if packaged.exists() else package.parent / "models.toml"


def user_catalog_path() -> Path:
    """Path of the user's own models.toml, which need not exist."""
    return paths.find_config_folder() / "models.toml"


def load_catalog() -> Catalog:
    """Read our catalog and the user's additions to it.

    Raises:
        ConfigError: A file is not TOML, or a key is unknown, missing or of the wrong kind; names
            the file, the key and for an unknown one the nearest that exists.
    """
    own = _Source(catalog_path(), _read_toml(catalog_path()))
    user_path = user_catalog_path()
    user = _Source(user_path, _read_toml(user_path) if user_path.exists() else {})
    return Catalog(MappingProxyType(_check_entries(own, user)))


@dataclass(frozen=True)
class _Source:
    path: Path
    tables: Mapping[str, Any]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, path.read_bytes())
    except OSError as error:
        raise ConfigError(path, "", error.strerror or "cannot be read") from error


def merge_tables(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested tables key by key; what is in both comes from `above`, and lists as a whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_tables(old, value)
        else:
            merged[key] = value
    return merged


def _check_entries(own: _Source, user: _Source) -> dict[str, CatalogEntry]:
    from pydantic import TypeAdapter, ValidationError

    merged = merge_tables(own.tables, user.tables)
    for name in merged:
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError(
                user.path, name, "not a name", "Use letters, digits, dots, hyphens and underscores."
            )
    adapter = TypeAdapter(dict[str, CatalogEntry])
    try:
        # As JSON, because strict Python input would have to be dataclasses and tuples already.
        # TOML's dates become lists, which no key of ours takes.
        entries = adapter.validate_json(json.dumps(merged, default=lambda date: [str(date)]))
    except ValidationError as error:
        raise _explain(error.errors(include_url=False)[0], own, user) from error
    for name, entry in entries.items():
        if entry.like and (entry.like not in entries or entries[entry.like].like):
            file = user.path if name in user.tables else own.path
            problem = f"{entry.like!r} is no entry with a shape of its own"
            raise ConfigError(file, f"{name}.like", problem, "Name one that has [NAME.geometry].")
    return {name: _take_shape(entry, entries) for name, entry in entries.items()}


def _take_shape(entry: CatalogEntry, entries: Mapping[str, CatalogEntry]) -> CatalogEntry:
    """Give an entry what it has in common with the one that it is like."""
    if not entry.like:
        return entry
    other = entries[entry.like]
    return replace(
        entry,
        geometry=entry.geometry or other.geometry,
        tokenizer_bytes=entry.tokenizer_bytes or other.tokenizer_bytes,
        presets=entry.presets or other.presets,
    )


def _explain(details: ErrorDetails, own: _Source, user: _Source) -> ConfigError:
    """Turn pydantic's first complaint into ours; an entry the user touched is the user's."""
    loc = tuple(str(part) for part in details["loc"])
    file = user.path if loc[0] in user.tables else own.path
    key = ".".join(loc)
    if details["type"] == "unexpected_keyword_argument":
        return ConfigError(file, key, "unknown key", _suggest_key(loc))
    problem = details["msg"].removeprefix("Value error, ").replace("an object", "a table")
    return ConfigError(file, key, problem, f"Compare with the entries of {catalog_path()}.")


_TABLES = {"licence": Licence, "parameters": Parameters, "sampling": ModelSampling}


def _suggest_key(loc: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    table = _TABLES[loc[1]] if len(loc) == 3 else CatalogEntry
    known = [field.name for field in fields(table)]
    nearest = get_close_matches(loc[-1], known, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else f"Known keys: {', '.join(known)}."
