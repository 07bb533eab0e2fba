"""The work of one conversion: its units, read in the order of the source, encoded by threads.

What is finished is noted in the journal, so that a run that was killed is gone on with.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from quantize.encoding import Buffers, Outcome, run_unit
from quantize.errors import UnsupportedModel
from quantize.expert_errors import Distortion
from quantize.ggml import U8Array, prepare_type
from quantize.part import Part
from quantize.recipe import Recipe
from quantize.safetensors import Checkpoint, Stretch
from quantize.unit import Unit, locate_sources, read_piece

OnProgress = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all); stages are "write" and "verify"."""

RECORD_BYTES = 1 << 20
RECORD_SHARE = 1000
"""Pieces are flushed to the disk and recorded whenever so many bytes, or this share of the file if
that is more, have been written: no more is done twice after a kill."""
MAX_WAITING_BYTES = 2 << 30
"""Of matrices that have been read and wait for the other one of their expert."""
_VERIFIED = "verified "


@dataclass(frozen=True, slots=True)
class _Job:
    """One stretch of the source to be read, for one unit."""

    source: Stretch
    unit: int
    piece: int


class Work:
    """The units of one conversion, of which an earlier run may have finished some.

    The source is read from front to back. An expert's two matrices need not lie side by side: what
    is read first waits for the other, and whoever reads that does the work.
    """

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, units: list[Unit], part: Part
    ) -> None:
        self._checkpoint, self._recipe, self._units, self._part = checkpoint, recipe, units, part
        jobs = [
            _Job(source, i, k)
            for i, unit in enumerate(units)
            for k, source in enumerate(locate_sources(checkpoint, unit))
        ]
        jobs.sort(key=lambda job: (job.source.path, job.source.offset, job.unit, job.piece))
        self._sources = {job.source.path for job in jobs if job.source.n_bytes}
        self._rest = [job for job in jobs if str(job.unit) not in part.finished]
        self._begun = {job.source.path for job in jobs if str(job.unit) in part.finished}
        self._n_left = Counter(job.source.path for job in self._rest)
        self._paths: dict[int, list[Path]] = {}
        for job in self._rest:
            self._paths.setdefault(job.unit, []).append(job.source.path)
        self._checksums = dict(part.finished)
        self._buffers = Buffers()
        self._waiting: dict[int, dict[int, U8Array]] = {}
        self._lock = threading.Lock()
        _check_waiting(checkpoint, self._rest, units)

    def run(self, n_threads: int, on_progress: OnProgress) -> list[int]:
        """Encode and write what is not finished; the CRC-32 of every unit as it was meant."""
        for block_type in {piece.tensor.type for unit in self._units for piece in unit.pieces}:
            prepare_type(block_type)
        rest = [job.source for job in self._rest]
        pool = ThreadPoolExecutor(n_threads, thread_name_prefix="encode")
        try:
            # Inside, so that threads which wait for a stopped source do not hold up the pool.
            # Each thread has a unit; threads of the matrix products would only be in their way.
            with self._checkpoint.shards.read_ahead(rest, self._begun), threadpool_limits(1):
                self._collect(pool.map(self._run_job, self._rest), on_progress)
        finally:
            pool.shutdown(cancel_futures=True)
        self._record({})
        return [self._checksums[str(i)] for i in range(len(self._units))]

    def list_errors(self) -> dict[str, list[float]]:
        """Tensor -> relative error of each of its experts, from what the journal keeps."""
        totals: dict[str, dict[int, Distortion]] = {}
        for i, unit in enumerate(self._units):
            for k, piece in enumerate(unit.pieces):
                experts = totals.setdefault(piece.tensor.spec.name, {})
                found = Distortion.from_pieces(f"{i}.{k}", self._checksums)
                experts[piece.expert] = experts.get(piece.expert, Distortion()) + found
        return {
            name: [experts[i].relative for i in sorted(experts)] for name, experts in totals.items()
        }

    def list_shards(self) -> set[str]:
        """Names of the shards that the units are made of."""
        return {path.name for path in self._sources}

    def list_verified(self) -> tuple[str, ...]:
        """Names of the shards that one run, this or an earlier one, has read whole and verified."""
        earlier = (name for name in self._part.finished if name.startswith(_VERIFIED))
        now = (path.name for path in self._checkpoint.shards.verified)
        return tuple(sorted({*(name.removeprefix(_VERIFIED) for name in earlier), *now}))

    def _run_job(self, job: _Job) -> Outcome | None:
        """Read a stretch; if its unit is complete with it, what became of that."""
        unit = self._units[job.unit]
        if len(unit.pieces) == 1:
            room = self._buffers.take("raw", job.source.n_bytes)
            raws = [read_piece(self._checkpoint, unit, 0, room)]
        else:
            room = np.empty(job.source.n_bytes, np.uint8)
            read_piece(self._checkpoint, unit, job.piece, room)
            with self._lock:
                found = self._waiting.setdefault(job.unit, {})
                found[job.piece] = room
                if len(found) < len(unit.pieces):
                    return None
                del self._waiting[job.unit]
            raws = [found[k] for k in range(len(unit.pieces))]
        return run_unit(self._checkpoint, unit, raws, self._recipe, self._part, self._buffers)

    def _collect(self, run: Iterator[Outcome | None], on_progress: OnProgress) -> None:
        """Record the units as they come, flushed to the disk by the megabyte."""
        total = sum(unit.n_bytes for unit in self._units)
        done = recorded = total - sum(self._units[i].n_bytes for i in self._paths)
        fresh: dict[str, int] = {}
        for job, outcome in zip(self._rest, run, strict=True):
            if outcome is None:
                continue
            fresh |= _note_outcome(job.unit, outcome)
            self._n_left.subtract(self._paths[job.unit])
            done += self._units[job.unit].n_bytes
            if done - recorded >= max(RECORD_BYTES, total // RECORD_SHARE):
                self._record(fresh)
                fresh, recorded = {}, done
            on_progress("write", done, total)
        self._record(fresh)

    def _record(self, units: dict[str, int]) -> None:
        # A shard counts as verified with its last unit: what is read again would not be hashed.
        whole = (path for path in self._checkpoint.shards.verified if not self._n_left[path])
        pieces = units | {_VERIFIED + path.name: 0 for path in whole}
        fresh = {name: n for name, n in pieces.items() if name not in self._checksums}
        if fresh:
            self._part.record(fresh)
            self._checksums |= fresh


def _note_outcome(unit: int, outcome: Outcome) -> dict[str, int]:
    """What the journal keeps of a unit, so that a resumed run ends with the same bytes."""
    notes = {str(unit): outcome.checksum}
    for k, distortion in enumerate(outcome.distortions):
        if distortion.energy:
            notes |= distortion.to_pieces(f"{unit}.{k}")
    return notes


def _check_waiting(checkpoint: Checkpoint, jobs: list[_Job], units: list[Unit]) -> None:
    """Refuse a source whose order would fill the memory with matrices that wait for their other."""
    waiting, most, held = 0, 0, dict[int, list[int]]()
    for job in jobs:
        found = held.setdefault(job.unit, [])
        found.append(job.source.n_bytes)
        waiting += job.source.n_bytes
        most = max(most, waiting)
        if len(found) == len(units[job.unit].pieces):
            waiting -= sum(found)
    if most > MAX_WAITING_BYTES:
        raise UnsupportedModel(
            f"{checkpoint.folder}: the two matrices of its experts lie so far apart that "
            f"{most / 2**30:.1f} GiB would wait in memory",
            "Choose a type and widths that need no change of neurons, such as --type.",
        )
