"""What encoding cost each expert: measured while it is encoded, kept in the file's metadata.

The error of an expert's matrix is the sum of its squared errors, each weighed by the importance of
its column, over the same sum of its squared weights: 0 is exact, 1 is as bad as zeros. Where errors
were fed back, those of its results are summed instead, by the second moments of its inputs. Every
sixteenth row is decoded again and measured: 1 % of a slow encoder's time, 5 % of the fastest's.

The metadata holds `localcascade.expert_errors.PROJECTION` f32 and, where there was an importance
matrix, `localcascade.expert_samples.PROJECTION` u32; PROJECTION is up, down or gate. Both have one
element for each expert, layer after layer of those that have experts; NaN was not measured.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat

import numpy as np

from quantize.errors import GGUFError
from quantize.ggml import F32Array, U8Array, decode_rows
from quantize.gguf import BlockType, GGUFArray, GGUFFile, MetadataEntry

ROW_STRIDE = 16
"""Of so many rows of a slab the first is measured."""
ERRORS_KEY = "localcascade.expert_errors."
SAMPLES_KEY = "localcascade.expert_samples."

_STACK = re.compile(r"blk\.(\d+)\.ffn_(\w+)_exps\.weight")
_F32, _U32 = struct.Struct("<f"), struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Distortion:
    """What encoding some rows cost; those of several parts are added."""

    error: float = 0.0
    """Weighted sum of squared errors."""
    energy: float = 0.0
    """The same sum of squared weights."""

    def __add__(self, other: Distortion) -> Distortion:
        return Distortion(self.error + other.error, self.energy + other.energy)

    @property
    def relative(self) -> float:
        """Error over energy; of weights that are all zero, 0 if they stayed so."""
        if self.energy:
            return self.error / self.energy
        return math.inf if self.error else 0.0

    def to_pieces(self, name: str) -> dict[str, int]:
        """Write it as pieces of a journal, which keeps 32 bits under each name.

        Args:
            name: Of the unit; not the name of a piece that is there already.
        """
        return {f"{part} {name}": _number(value) for part, value in asdict(self).items()}

    @classmethod
    def from_pieces(cls, name: str, pieces: Mapping[str, int]) -> Distortion:
        """Undo `to_pieces`, to float32; nothing if the journal has nothing of that name."""
        return cls(*(_float(pieces.get(f"{part} {name}", 0)) for part in ("error", "energy")))


def _number(value: float) -> int:
    """The bits of a value as float32; what is larger than any is infinite."""
    number: int = _U32.unpack(np.float32(value).astype("<f4").tobytes())[0]
    return number


def _float(number: int) -> float:
    value: float = _F32.unpack(_U32.pack(number))[0]
    return value


def measure_distortion(
    rows: F32Array, encoded: U8Array, block_type: BlockType, weights: F32Array | None
) -> Distortion:
    """Decode a sample of rows again and compare it with what was encoded.

    The same bytes give the same bits: no sum depends on where the arrays lie in memory.

    Args:
        rows: float32 (n_rows, width), as they were given to the encoder.
        encoded: uint8, the bytes they became, contiguous.
        block_type: Their type.
        weights: float32 (width,), importance of each column; or (width, width), a factor U of the
            inputs' second moments U UT; None counts all the same.

    Returns:
        The distortion of rows 0, 16, 32, ...
    """
    n_rows, width = rows.shape
    sample = np.ascontiguousarray(encoded.reshape(n_rows, -1)[::ROW_STRIDE])
    decoded = decode_rows(sample.reshape(-1), block_type, width)
    source = rows[::ROW_STRIDE]
    np.subtract(decoded, source, out=decoded)
    return Distortion(_weigh_squares(decoded, weights), _weigh_squares(source, weights))


def _weigh_squares(values: F32Array, weights: F32Array | None) -> float:
    """Sum the squares of (n_rows, width) values, each times the weight of its column, or those
    of their results on inputs of such second moments."""
    if weights is not None and weights.ndim == 2:
        return float(np.add.reduce(np.square(values @ weights), axis=None, dtype=float))
    columns = np.add.reduce(np.square(values), axis=0, dtype=np.float64)
    if weights is not None:
        columns *= weights
    return float(np.add.reduce(columns))


def describe_experts(
    stacks: Mapping[str, int],
    samples: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float]],
) -> tuple[MetadataEntry, ...]:
    """Build the metadata entries of the table; their size depends on `stacks` alone.

    So a file is laid out with no errors, and its header is built again once they are known.

    Args:
        stacks: Name of each tensor of the file that stacks experts -> their number; other names
            are left alone.
        samples: Tensor -> calibration samples of each of its experts; empty if there was no
            importance matrix, tensors that it lacked have none.
        errors: Tensor -> relative error of each expert; what is missing is NaN.

    Returns:
        Entries for `plan_file`.
    """
    entries: list[MetadataEntry] = []
    for projection, layers in _group_stacks(stacks).items():
        names = layers.values()
        unknown = {name: [math.nan] * stacks[name] for name in names}
        entries.append((ERRORS_KEY + projection, _join(names, unknown | {**errors}), "arr:f32"))
        if samples:
            none = {name: [0.0] * stacks[name] for name in names}
            counts = [round(count) for count in _join(names, none | {**samples})]
            entries.append((SAMPLES_KEY + projection, counts, "arr:u32"))
    return tuple(entries)


def fill_errors(
    metadata: Iterable[MetadataEntry],
    stacks: Mapping[str, int],
    errors: Mapping[str, Sequence[float]],
) -> tuple[MetadataEntry, ...]:
    """Put errors where `describe_experts` left room for them; no entry takes other bytes.

    Args:
        metadata: All entries of a file, in order.
        stacks: As for `describe_experts`.
        errors: As for `describe_experts`.
    """
    filled = {entry[0]: entry for entry in describe_experts(stacks, {}, errors)}
    return tuple(filled.get(entry[0], entry) for entry in metadata)


def _group_stacks(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Projection -> layer, ascending -> the tensor that stacks its experts."""
    found = [(int(match[1]), match[2], match[0]) for match in map(_STACK.fullmatch, names) if match]
    grouped: dict[str, dict[int, str]] = {}
    for layer, projection, name in sorted(found):
        grouped.setdefault(projection, {})[layer] = name
    return grouped


def _join(names: Iterable[str], values: Mapping[str, Sequence[float]]) -> list[float]:
    return [value for name in names for value in values[name]]


@dataclass(frozen=True, slots=True)
class ExpertError:
    """One matrix of one expert, as a row of `inspect --experts`."""

    layer: int
    expert: int
    projection: str
    """up, down or gate."""
    samples: int | None
    """Calibration samples; None if there was no importance matrix."""
    error: float | None
    """Relative weighted squared error; None was not measured."""
    type: str
    """ggml's name of the type."""


def read_experts(file: GGUFFile) -> tuple[ExpertError, ...]:
    """Read the table of a file.

    Args:
        file: Open.

    Returns:
        Projection by projection, layer by layer, expert by expert.

    Raises:
        GGUFError: The file has no experts, or no table of them, or one that does not match.
    """
    grouped = _group_stacks(file.tensors)
    if not grouped:
        raise GGUFError(
            file.path,
            "the model has no experts, so there is no table of them",
            hint="`localcascade inspect` without --experts shows the rest.",
        )
    return tuple(
        expert
        for projection, layers in grouped.items()
        for expert in _read_projection(file, projection, layers)
    )


def _read_projection(
    file: GGUFFile, projection: str, layers: Mapping[int, str]
) -> Iterator[ExpertError]:
    stacks = [(layer, file.tensors[name]) for layer, name in layers.items()]
    places = [(layer, i, stack.type) for layer, stack in stacks for i in range(stack.shape[0])]
    errors = _read_array(file, ERRORS_KEY + projection, "f32", len(places))
    counts = _read_array(file, SAMPLES_KEY + projection, "u32", len(places))
    if errors is None:
        raise GGUFError(
            file.path,
            f"it does not say what encoding cost its experts: there is no {ERRORS_KEY}{projection}",
            hint="Convert the model with `localcascade quantize`, which measures that on the way.",
        )
    samples = repeat(None) if counts is None else iter(counts)
    for (layer, expert, block_type), n_samples, error in zip(places, samples, errors, strict=False):
        known = error if math.isfinite(error) else None
        yield ExpertError(layer, expert, projection, n_samples, known, block_type.name)


def _read_array(file: GGUFFile, key: str, value_type: str, n: int) -> GGUFArray | None:
    """Get an array of the metadata and check its type and length; None if there is none."""
    array = file.metadata.get(key)
    if array is None:
        return None
    if not isinstance(array, GGUFArray) or array.value_type != value_type or len(array) != n:
        raise GGUFError(
            file.path,
            f"{key} is not an array of {n} {value_type}, one for each expert of each layer",
            hint="Convert the model again.",
        )
    return array
