"""A checkpoint that stays on the Hub: its small files in a folder, its weights read by ranges.

Every shard is read once, from front to back, and hashed on the way; when its last byte has come,
the hash must be the one that the Hub announced. A shard of which an earlier run has read a part
cannot be hashed as a whole; only what is missing is fetched, and nobody calls it verified.
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from localcascade.download.ahead import Chunk, ChunkMap, ReadAhead, Window
from localcascade.download.hub import check_online, find_token
from localcascade.download.metadata import HubFile
from localcascade.download.patience import Patience
from localcascade.download.plan import PullPlan, resolve_pull
from localcascade.download.ranges import Connections, RemoteFile
from localcascade.download.transfer import FILES_NAME, fetch_files
from localcascade.errors import ModelNotFound
from quantize.errors import CheckpointError, QuantizeError

if TYPE_CHECKING:
    from quantize.safetensors import Stretch

SMALL_NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "model.safetensors.index.json",
)  # fmt: skip
"""What the quantizer reads besides weights."""
MAX_SMALL_BYTES = 100_000_000
_TAMPERED = "The server or the line changes bytes: try another network, then run it again."

OnProgress = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all); the stage is "fetch". Called by several threads, one at a
time."""


@dataclass(frozen=True)
class Stream:
    """A checkpoint on the Hub, open."""

    plan: PullPlan
    """What a pull would fetch, at the commit that all of it is read from."""
    folder: Path
    """Holds the small files; vanishes at the end."""
    shards: RemoteShards


@contextmanager
def open_stream(
    target: str,
    *,
    patience: Patience | None = None,
    window: Window | None = None,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Iterator[Stream]:
    """Open a checkpoint without downloading its weights.

    Args:
        target: A name of the catalog, or OWNER/NAME on the Hub; then @REVISION if wanted.
        patience: When to wait for a server and when to give up.
        window: How far ahead weights are read.
        on_progress: Told of the bytes of weights that have arrived.

    Yields:
        What `quantize_checkpoint` takes as `source` and `shards`.

    Raises:
        OfflineError: The network must not be used.
        ModelNotFound: No such name, or it has no weights to quantize.
        DownloadError: The Hub has no such repository, or does not give it.
        CheckpointError: A file is too large to be what its name says. A QuantizeError of the body
            names the repository in place of the folder.
    """
    check_online(f"streaming {target}")
    token = find_token()
    plan = resolve_pull(target, token=token, patience=patience)
    if plan.kind != "checkpoint":
        raise ModelNotFound(
            f"{plan.repo} is quantized already",
            f"Run `localcascade pull {shlex.quote(target)}`.",
        )
    with (
        TemporaryDirectory(prefix="localcascade-") as scratch,
        Connections(token, patience) as connections,
    ):
        folder = Path(scratch) / FILES_NAME
        with _naming_the_repository(folder, plan):
            fetch_files(connections, _choose_small_files(plan, folder), Path(scratch))
            shards = RemoteShards(connections, plan, folder, window or Window(), on_progress)
            yield Stream(plan, folder, shards)


def _choose_small_files(plan: PullPlan, folder: Path) -> list[HubFile]:
    chosen = [file for file in plan.files if file.path in SMALL_NAMES]
    for file in chosen:
        if file.size_bytes > MAX_SMALL_BYTES:
            problem = f"{file.size_bytes} bytes, more than {MAX_SMALL_BYTES}"
            raise CheckpointError(folder / file.path, problem, hint="Choose another repository.")
    return chosen


@contextmanager
def _naming_the_repository(folder: Path, plan: PullPlan) -> Iterator[None]:
    """Let errors name the repository, as the folder is gone before anybody reads them."""
    try:
        yield
    except QuantizeError as error:
        error.message = error.message.replace(str(folder), f"{plan.repo}@{plan.commit[:12]}")
        error.args = (error.message,)
        raise


class RemoteShards:
    """The shards of a repository, for `quantize.safetensors`; any number of threads may read.

    Until `read_ahead`, which can be used once, ranges are fetched as they are asked for.

    Args:
        connections: What to read through.
        plan: What to read, at one commit.
        folder: Where the shards seem to lie.
        window: How far ahead is read.
        on_progress: Told of the bytes that have arrived, from `read_ahead` on.
    """

    def __init__(
        self,
        connections: Connections,
        plan: PullPlan,
        folder: Path,
        window: Window,
        on_progress: OnProgress = lambda _stage, _done, _total: None,
    ) -> None:
        self._connections, self._plan, self._window = connections, plan, window
        self._files = {folder / f.path: f for f in plan.files if f.path.endswith(".safetensors")}
        self._shards: dict[Path, _Shard] = {}
        self._verified: set[Path] = set()
        self._ahead: ReadAhead | None = None
        self._on_progress = on_progress
        self._total_bytes = 0
        self._arriving = threading.Lock()
        self.fetched_bytes = 0
        """What has arrived, headers included."""

    @property
    def verified(self) -> frozenset[Path]:
        """Shards that this run has read whole and that have the hash the Hub announced."""
        return frozenset(self._verified)

    def exists(self, path: Path) -> bool:
        """Say whether the repository has such a shard."""
        return path in self._files

    def open(self, path: Path) -> int:
        """Make a shard readable; its size in bytes as the Hub announced it."""
        file = self._files.get(path)
        if file is None:
            raise CheckpointError(
                path, "shard not found", hint="The repository is not complete: choose another."
            )
        remote = RemoteFile(self._connections, file.url, file.size_bytes, file.etag)
        self._shards[path] = _Shard(file, remote)
        return file.size_bytes

    def read_into(self, path: Path, offset: int, room: memoryview) -> None:
        """Fill `room` with bytes of an open shard: announced ones, after `read_ahead`."""
        if self._ahead:
            self._ahead.read_into(path, offset, room)
            return
        if path not in self._shards:
            raise ValueError(f"{path.parent}: the checkpoint is closed")
        self._shards[path].remote.read(offset, room, self._count)
        self._shards[path].digest(offset, room)

    def identify(self, path: Path) -> str:
        """Name the content by repository, commit and hash."""
        file = self._shards[path].file
        return f"{self._plan.repo}@{self._plan.commit} {file.size_bytes} {file.etag}"

    @contextmanager
    def read_ahead(self, stretches: Sequence[Stretch], begun: Set[Path]) -> Iterator[None]:
        """Fetch what is announced, a few requests ahead of the readers, and hash it.

        Raises:
            DownloadError: Something cannot be fetched; readers are told the same.
            CheckpointError: A shard does not have the hash that the Hub announced.
        """
        whole = {
            path: (shard.n_digested, shard.file.size_bytes)
            for path, shard in self._shards.items()
            if path not in begun
        }
        chunks = ChunkMap(stretches, whole, self._window.chunk_bytes)
        self._total_bytes = self.fetched_bytes + sum(chunk.n_bytes for chunk in chunks.chunks)
        self._ahead = ReadAhead(chunks, stretches, self._fetch, self._digest, self._window)
        self._ahead.start()
        try:
            yield
            self._ahead.finish()
        finally:
            self._ahead.stop()
            self._connections.stop()

    def close(self) -> None:
        """Forget the shards; the connections belong to whoever made them."""
        self._shards.clear()

    def _fetch(self, chunk: Chunk, room: memoryview) -> None:
        self._shards[chunk.path].remote.read(chunk.start, room, self._count)

    def _count(self, n_bytes: int) -> None:
        with self._arriving:
            self.fetched_bytes += n_bytes
            if self._total_bytes:
                self._on_progress("fetch", self.fetched_bytes, self._total_bytes)

    def _digest(self, chunk: Chunk, data: memoryview) -> None:
        shard = self._shards[chunk.path]
        shard.digest(chunk.start, data)
        if shard.n_digested == shard.file.size_bytes:
            shard.check(chunk.path)
            self._verified.add(chunk.path)


class _Shard:
    """One shard, and the hash of what has been read of it in order."""

    def __init__(self, file: HubFile, remote: RemoteFile) -> None:
        self.file, self.remote = file, remote
        self.n_digested = 0
        # Small files have git's hash, which begins with a line of its own.
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(_git_head(file))

    def digest(self, offset: int, data: memoryview) -> None:
        """Hash bytes if they follow those already hashed."""
        if offset == self.n_digested:
            self._hash.update(data)
            self.n_digested += len(data)

    def check(self, path: Path) -> None:
        """Refuse the whole file if it does not have the hash that the Hub announced."""
        found = self._hash.hexdigest()
        if found != self.file.etag:
            problem = f"what arrived has the hash {found}, the Hub announced {self.file.etag}"
            raise CheckpointError(path, problem, hint=_TAMPERED)


def _git_head(file: HubFile) -> bytes:
    return b"blob %d\0" % file.size_bytes
