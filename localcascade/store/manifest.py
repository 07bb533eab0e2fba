"""What the store knows of one model: manifest.json, written once and never changed.

It is read as strictly as anything that comes from outside, because a store may be shared, carried
on a disk or edited by hand: no key too many, no path that leaves the folder.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from localcascade.digest import CHUNK_BYTES, Digest
from localcascade.errors import ModelFileError
from localcascade.names import REPO_PATTERN, find_collision, find_path_problem, fold_name

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

Kind = Literal["gguf", "checkpoint"]
KINDS: tuple[Kind, ...] = ("gguf", "checkpoint")

MANIFEST_NAME = "manifest.json"
USED_NAME = "last-used"
"""An empty file, whose time says when the model was last used."""
OWN_NAMES = frozenset((MANIFEST_NAME, USED_NAME))
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_BYTES = 1 << 62
_STRICT: ConfigDict = {"extra": "forbid", "strict": True}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """One file of a model, as it was when it was installed."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    path: str
    """Relative to the model's folder, parts divided by "/"."""
    size: int
    """Bytes."""
    sha256: str
    chunk_sha256: tuple[str, ...]
    """Of every 16 MiB, so that damage can be placed and repaired."""

    def __post_init__(self) -> None:
        problem = find_path_problem(self.path)
        if problem or fold_name(self.path) in OWN_NAMES:
            raise ValueError(f"path {self.path!a:.80}: {problem or 'the name is ours'}")
        if not 0 <= self.size < _MAX_BYTES:
            raise ValueError(f"size {self.size} of {self.path!a} is impossible")
        if len(self.chunk_sha256) != -(-self.size // CHUNK_BYTES):
            raise ValueError(f"{len(self.chunk_sha256)} chunks do not make {self.size} bytes")
        if not all(map(_SHA256.fullmatch, (self.sha256, *self.chunk_sha256))):
            raise ValueError(f"a sha256 of {self.path!a} is not 64 hexadecimal digits")


@dataclass(frozen=True)
class Weights:
    """What the headers of a model's files say, kept so that a list needs to open none."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    architecture: str
    """As the files name it; empty if they do not."""
    type: str
    """Of most bytes: q4_0, bf16, …"""
    n_params: int
    bits_per_weight: float

    def __post_init__(self) -> None:
        if not (0 <= self.n_params < _MAX_BYTES and 0 <= self.bits_per_weight < 1024):
            raise ValueError(f"{self.n_params} weights of {self.bits_per_weight} bits: impossible")


@dataclass(frozen=True)
class Manifest:
    """What the store knows of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    kind: Kind
    files: tuple[StoredFile, ...]
    weights: Weights
    created: str
    """When it was installed: UTC, ISO 8601."""
    repo: str = ""
    """Hugging Face repository it came from, OWNER/NAME, its files under the paths they have
    there; empty if it did not."""
    commit: str = ""
    """Commit of that repository, 40 hexadecimal digits."""
    notes: tuple[str, ...] = ()
    """Where it came from, how it was made, under what licence; for people."""
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files: none")
        if self.repo and not REPO_PATTERN.fullmatch(self.repo):
            raise ValueError(f"repo {self.repo!a:.80} does not read OWNER/NAME")
        if self.commit and not _COMMIT.fullmatch(self.commit):
            raise ValueError(f"commit {self.commit!a:.80} is not 40 hexadecimal digits")
        collision = find_collision(file.path for file in self.files)
        if collision:
            raise ValueError(f"files: {collision[0]!a} and {collision[1]!a} collide")

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Build what manifest.json holds."""
        return asdict(self)


def make_stored_file(path: str, digest: Digest) -> StoredFile:
    """Put a file's place and its digest together."""
    return StoredFile(path, digest.size_bytes, digest.sha256, digest.chunk_sha256)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an installed model.

    Args:
        folder: The model's folder, whose name the manifest must bear.

    Raises:
        FileNotFoundError: There is none: the folder was made by hand.
        ModelFileError: It is damaged; names the key.
    """
    from pydantic import ValidationError

    path = folder / MANIFEST_NAME
    text = _read_text(path)
    try:
        manifest = _make_adapter().validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in details["loc"])
        raise _refuse(path, f"{key}: {details['msg']}" if key else details["msg"]) from error
    if manifest.name != folder.name:
        raise _refuse(path, f"name: it is of {manifest.name!a:.80}, not of {folder.name}")
    return manifest


@cache
def _make_adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _read_text(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise _refuse(path, f"it has more than {_MAX_MANIFEST_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFileError(path, error.strerror or "cannot be read") from error


def _refuse(path: Path, problem: str) -> ModelFileError:
    hint = f"Run `localcascade rm {path.parent.name}` and install the model again."
    return ModelFileError(path, problem.replace("Value error, ", ""), hint=hint)
