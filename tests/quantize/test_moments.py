"""Files of second moments: what is read is what was summed up, and nothing damaged is believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantize.errors import GGUFError, OutputError
from quantize.moments import Stack, pack_triangle, plan_moments, read_moments, write_moments

DOWN = Stack("blk.1.ffn_down_exps.weight", 3, 5)
UP = Stack("blk.1.ffn_up_exps.weight", 1, 4)


def draw_inputs(stack: Stack, n_inputs: int = 20) -> list[np.ndarray]:
    """Inputs of each expert, small whole numbers, so that every sum is exact."""
    rng = np.random.default_rng(stack.width)
    sizes = [(n_inputs * i, stack.width) for i in range(1, stack.n_matrices + 1)]
    return [rng.integers(-9, 10, size).astype(np.float32) for size in sizes]


def list_sums(inputs: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    return [(pack_triangle(rows.T @ rows), len(rows)) for rows in inputs]


def write(path: Path, identity: str = "work") -> Path:
    with write_moments(path, [DOWN, UP], ["a.txt"], identity) as part:
        for stack in (DOWN, UP):
            part.write(stack, list_sums(draw_inputs(stack)))
    return path


def test_a_matrix_is_the_mean_outer_product_of_the_inputs(tmp_path: Path) -> None:
    with read_moments(write(tmp_path / "m.gguf")) as moments:
        for expert, rows in enumerate(draw_inputs(DOWN)):
            expected = np.einsum("ni,nj->ij", rows, rows, dtype=np.float64) / len(rows)
            matrix = moments.matrix(DOWN.name, expert)
            assert matrix is not None and matrix.dtype == np.float64
            np.testing.assert_array_equal(matrix, expected)
            assert moments.count(DOWN.name, expert) == len(rows)
        shared = [moments.matrix(UP.name, expert) for expert in (0, 7)]
        np.testing.assert_array_equal(shared[0], shared[1])
        assert moments.matrix("blk.2.ffn_up_exps.weight") is None
        assert moments.count("blk.2.ffn_up_exps.weight") == 0
        with pytest.raises(GGUFError, match="3 experts, there is no 3"):
            moments.matrix(DOWN.name, 3)


def test_another_reader_finds_the_triangles(tmp_path: Path) -> None:
    """gguf's own reader, and numpy's indices of a triangle."""
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf"))
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    rows = draw_inputs(DOWN)[2]
    expected = (rows.T @ rows)[np.tril_indices(5)]
    np.testing.assert_array_equal(tensors[DOWN.name + ".in_outer"][2], expected)
    assert reader.fields["general.type"].contents() == "moments"
    assert (tmp_path / "m.gguf").stat().st_size == plan_moments([DOWN, UP], ["a.txt"]).file_bytes


def test_an_expert_without_samples_has_no_matrix(tmp_path: Path) -> None:
    sums = list_sums(draw_inputs(DOWN))
    with write_moments(tmp_path / "m.gguf", [DOWN], [], "work") as part:
        part.write(DOWN, [sums[0], (np.zeros(15, np.float32), 0), sums[2]])
    with read_moments(tmp_path / "m.gguf") as moments:
        assert moments.matrix(DOWN.name, 1) is None
        assert moments.matrix(DOWN.name, 2) is not None


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    with (
        pytest.raises(KeyboardInterrupt),
        write_moments(path, [DOWN, UP], ["a.txt"], "work") as part,
    ):
        part.write(DOWN, list_sums(draw_inputs(DOWN)))
        raise KeyboardInterrupt
    assert not path.exists()
    with write_moments(path, [DOWN, UP], ["a.txt"], "work") as part:
        assert part.is_finished(DOWN) and not part.is_finished(UP)
        part.write(UP, list_sums(draw_inputs(UP)))
    assert path.read_bytes() == whole
    with (
        pytest.raises(KeyboardInterrupt),
        write_moments(path, [DOWN], [], "other work") as part,
    ):
        assert not part.is_finished(DOWN)
        raise KeyboardInterrupt


def test_a_file_that_lacks_a_stack_or_was_changed_is_never_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with (
        pytest.raises(OutputError, match=r"ffn_up_exps.* does not read back"),
        write_moments(path, [DOWN, UP], ["a.txt"], "work") as part,
    ):
        part.write(DOWN, list_sums(draw_inputs(DOWN)))
    with (
        pytest.raises(OutputError, match=r"ffn_down_exps.* does not read back"),
        write_moments(path, [DOWN], ["a.txt"], "work") as part,
    ):
        part.write(DOWN, list_sums(draw_inputs(DOWN)))
        with (tmp_path / "m.gguf.part").open("r+b") as file:
            file.seek(part.plan.tensors[0].offset + 3)
            file.write(b"\x55")
    assert list(tmp_path.iterdir()) == []


def rename(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    """Overwrite the last place where some bytes of the header stand."""

    def change(data: bytearray) -> None:
        at = data.rindex(old)
        data[at : at + len(new)] = new

    return change


def put(tensor: int, value: float) -> Callable[[bytearray], None]:
    """Overwrite the first value of a tensor."""

    def change(data: bytearray) -> None:
        offset = plan_moments([DOWN, UP], ["a.txt"]).tensors[tensor].offset
        data[offset : offset + 4] = np.float32(value).tobytes()

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            rename(b"\x07" + bytes(7) + b"moments", b"\x07" + bytes(7) + b"imatrix"),
            "'imatrix', not",
        ),
        (
            rename(b"down_exps.weight.counts", b"down_exps.weight.in_outer"[:23]),
            "counts is missing",
        ),
        (rename(b"up_exps.weight.counts", b"up_exps.weight.countz"), "counts is missing"),
        (put(1, np.nan), "holds what is no count"),
        (put(1, -1), "holds what is no count"),
        (put(0, np.inf), "expert 0 holds no second moments"),
        (put(0, -5), "expert 0 holds no second moments"),
    ],
)
def test_damage_is_told_with_its_place(
    change: Callable[[bytearray], None], says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=r"m\.gguf") as caught, read_moments(path) as moments:
        moments.matrix(DOWN.name, 0)
    assert says in caught.value.message


def test_another_models_moments_are_refused(tmp_path: Path) -> None:
    with read_moments(write(tmp_path / "m.gguf")) as moments:
        shapes = {DOWN.name: (3, 4, 5), UP.name: (3, 5, 4)}
        moments.check_shapes(shapes)
        for name, shape in ((DOWN.name, (4, 4, 5)), (UP.name, (3, 5, 8)), (UP.name, ())):
            with pytest.raises(GGUFError, match=name) as caught:
                moments.check_shapes(shapes | {name: shape})
            assert "another model" in caught.value.hint
