"""An open GGUF file: metadata decoded when asked for, tensors as views."""

from __future__ import annotations

import contextlib
import mmap
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from quantize.closing import Closing
from quantize.errors import GGUFError
from quantize.gguf.blocks import SCALARS, U64, GGUFTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class GGUFArray(Sequence[Any]):
    """An array of the metadata, decoded element by element when asked for.

    A vocabulary of 131072 tokens costs no Python object per token until it is read. Equal to any
    sequence of equal elements. Usable as long as its file is open.
    """

    def __init__(self, path: Path, data: mmap.mmap, value_type: str, start: int, n: int) -> None:
        self.value_type = value_type
        """Type of the elements: "str", "u32", ..."""
        self._path = path
        self._data = data
        self._start = start
        self._n = n
        self._starts: array[int] | None = None

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        position = range(self._n)[index]
        if self.value_type != "str":
            scalar = SCALARS[self.value_type]
            return scalar.unpack_from(self._data, self._start + position * scalar.size)[0]
        if self._starts is None:
            self._starts = array("Q", self._string_starts())
        return self._decode(self._starts[position])

    def __iter__(self) -> Iterator[Any]:
        if self.value_type == "str":
            return map(self._decode, self._string_starts())
        scalar = SCALARS[self.value_type]
        values = self._data[self._start : self._start + self._n * scalar.size]
        return (value for (value,) in scalar.iter_unpack(values))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._n} x {self.value_type}>"

    def _string_starts(self) -> Iterator[int]:
        position = self._start
        for _ in range(self._n):
            yield position
            position += 8 + int(U64.unpack_from(self._data, position)[0])

    def _decode(self, start: int) -> str:
        (n_bytes,) = U64.unpack_from(self._data, start)
        return decode_text(self._path, self._data, start + 8, n_bytes, "an array's string")


@dataclass(frozen=True)
class GGUFFile(Closing):
    """An open GGUF file; a context manager."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    """Key to bool, int, float, str or GGUFArray."""
    value_spans: Mapping[str, tuple[int, int]] = field(repr=False)
    """Key to the bytes of its value in the file: the first, that of the type's number, and the one
    after the last."""
    tensors: dict[str, GGUFTensor]
    """By name, in the file's order."""
    alignment: int
    data_offset: int
    """Byte where tensor data starts."""
    file_bytes: int
    _data: mmap.mmap = field(repr=False)

    @property
    def n_splits(self) -> int:
        """Files the model is spread over; this file is one of them."""
        count = self.metadata.get("split.count", 1)
        return count if type(count) is int and count > 1 else 1

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """Give the stored bytes of a tensor, without copying them.

        Returns:
            uint8 (..., bytes per row), a read-only view on the file.

        Raises:
            KeyError: There is no tensor of that name.
        """
        import numpy as np

        tensor = self.tensors[name]
        flat = np.frombuffer(self._data, np.uint8, tensor.n_bytes, tensor.offset)
        return flat.reshape(*tensor.shape[:-1], tensor.n_bytes // prod(tensor.shape[:-1]))

    def copy_row(self, name: str, index: int) -> npt.NDArray[np.uint8]:
        """Copy one row's stored bytes, and let go of the pages they lie on.

        Of a file that is read row by row, all of it would count as resident memory otherwise.

        Args:
            name: Of a tensor of two dimensions.
            index: The row.

        Returns:
            uint8 (bytes per row,).

        Raises:
            KeyError: There is no tensor of that name.
            IndexError: It has no such row.
        """
        row: npt.NDArray[np.uint8] = self.read(name)[index].copy()
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            start = self.tensors[name].offset + index * row.nbytes
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, first, start + row.nbytes - first)
        return row

    def read_header(self, start: int, end: int) -> bytes:
        """Give the bytes from `start` up to `end`, copied; both lie before `data_offset`."""
        return bytes(self._data[start:end])

    def close(self) -> None:
        """Unmap the file; views that were handed out keep it mapped until they are gone."""
        with contextlib.suppress(BufferError):
            self._data.close()


def decode_text(path: Path, data: mmap.mmap, start: int, n_bytes: int, what: str) -> str:
    try:
        return data[start : start + n_bytes].decode("utf-8")
    except UnicodeDecodeError as error:
        raise GGUFError(
            path, f"{what} is not UTF-8", offset=start + error.start,
            hint="The file is damaged: download or convert it again.",
        ) from error  # fmt: skip
