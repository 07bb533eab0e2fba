"""Models from elsewhere on this machine: copied whole or not at all, and the source untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localcascade import store
from localcascade.errors import CascadeError, ModelFileError, ModelNotFound, StoreError
from localcascade.store import imports
from localcascade.store.check import check_model
from localcascade.store.imports import find_local_model, import_model
from quantize.errors import QuantizeError
from quantize.safetensors import open_checkpoint
from tests.localcascade.stored import (
    count_lines,
    read_tree,
    run_killed,
    write_gguf,
    write_small_checkpoint,
    write_splits,
)
from tests.soak import sample


@pytest.fixture
def work(home: Path) -> Path:
    return home.parent / "work"


def is_sound(model: store.InstalledModel) -> bool:
    return all(check.is_sound for check in check_model(model))


@pytest.mark.parametrize("move", [False, True])
def test_a_file_is_taken_in(work: Path, move: bool) -> None:
    path = write_gguf(work / "My-Model.gguf")
    data = path.read_bytes()
    model = import_model(find_local_model(path), move=move)
    assert (model.name, model.kind) == ("My-Model", "gguf")
    assert store.find_model("My-Model").read_bytes() == data
    assert path.exists() is not move
    assert is_sound(model) and store.list_leftovers() == []
    assert model.manifest and model.manifest.notes == (f"imported from {work}",)


def test_a_copy_does_not_change_with_its_source(work: Path) -> None:
    path = write_gguf(work / "a.gguf")
    model = import_model(find_local_model(path))
    with path.open("r+b") as file:
        file.write(b"damage")
    assert is_sound(model)


def test_progress_tells_both_passes(work: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = write_gguf(work / "a.gguf")
    import_model(find_local_model(path), on_progress=lambda *step: steps.append(step))
    size = path.stat().st_size
    assert ("verify", size, size) in steps
    assert all(0 < done <= total == size for _, done, total in steps)


@pytest.mark.parametrize("given", [0, 1, 2, None])
def test_any_part_of_a_split_model_brings_all(work: Path, given: int | None) -> None:
    paths = write_splits(work / "parts", "big", 3)
    model = import_model(find_local_model(paths[given] if given is not None else work / "parts"))
    assert model.name == ("big" if given is not None else "parts")
    assert store.find_model(model.name).name == paths[0].name
    assert len(read_tree(model.place)) == 4


def test_a_split_model_without_one_part_is_refused(work: Path) -> None:
    paths = write_splits(work, "big", 3)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"00002-of-00003.*missing"):
        import_model(find_local_model(paths[0]))
    assert store.list_models() == [] and store.list_leftovers() == []


def test_a_part_under_another_name_is_refused(work: Path) -> None:
    paths = write_splits(work, "big", 2)
    paths[0].rename(work / "alone.gguf")
    with pytest.raises(ModelFileError, match="one of 2 files"):
        import_model(find_local_model(work / "alone.gguf"))


@pytest.mark.parametrize("move", [False, True])
def test_a_checkpoint_is_taken_in_without_code(work: Path, move: bool) -> None:
    folder = write_small_checkpoint(work / "small")
    (folder / "consolidated.safetensors").write_bytes(b"not of the model")
    (folder / "sub").mkdir()
    before = read_tree(folder)
    source = find_local_model(folder)
    left_out = {
        "modeling_nemotron_h.py", "pytorch_model.bin", "consolidated.safetensors", "sub",
    }  # fmt: skip
    assert set(source.left_out) == left_out
    model = import_model(source, "other", move=move)
    kept = {path: data for path, data in before.items() if path not in left_out}
    found = read_tree(model.place)
    del found["manifest.json"]
    assert found == kept
    assert read_tree(folder).keys() == (left_out - {"sub"} if move else before.keys())
    with open_checkpoint(store.find_checkpoint("other")) as checkpoint:
        assert set(checkpoint.tensors) == {"a.weight", "b.weight"}


@pytest.mark.parametrize("move", [False, True])
def test_links_are_followed_and_their_targets_kept(work: Path, move: bool) -> None:
    """As in the cache of the Hub's own client, where a checkpoint is links to blobs."""
    blobs = write_small_checkpoint(work / "blobs")
    links = work / "links"
    links.mkdir()
    for file in blobs.iterdir():
        (links / file.name).symlink_to(file)
    before = read_tree(blobs)
    model = import_model(find_local_model(links), move=move)
    assert not any(path.is_symlink() for path in model.place.iterdir())
    assert is_sound(model) and read_tree(blobs) == before


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.gguf", b"", QuantizeError),
        ("a.gguf", b"GGUF" + bytes(100), QuantizeError),
        ("a.bin", b"GGUF", CascadeError),
        ("folder/config.json", b"{", QuantizeError),
        ("folder/config.json", b"{}", QuantizeError),
        ("folder/readme", b"", ModelNotFound),
        ("folder/a.gguf", b"GGUF", QuantizeError),
    ],
)
def test_what_is_no_model_leaves_nothing(
    work: Path, name: str, data: bytes, error: type[Exception]
) -> None:
    path = work / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(error):
        import_model(find_local_model(work / name.split("/")[0]))
    assert store.list_models() == [] and store.list_leftovers() == []
    assert path.read_bytes() == data


def test_a_missing_path_and_the_store_itself_are_refused(home: Path, work: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        find_local_model(work / "nothing")
    inside = write_gguf(home / "data" / "models" / "hand.gguf")
    with pytest.raises(StoreError, match="in the store already"):
        import_model(find_local_model(inside), "other")
    assert inside.exists()


def test_a_copy_that_does_not_read_back_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(work / "a.gguf")
    real = imports._copy_file

    def flip(source: Path, target: Path, on_bytes: object) -> str:
        digest = real(source, target, lambda n_bytes: None)
        with target.open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\xaa")
        return digest

    monkeypatch.setattr(imports, "_copy_file", flip)
    with pytest.raises(StoreError, match="does not read back"):
        import_model(find_local_model(path))
    assert store.list_models() == [] and store.list_leftovers() == []


def test_a_full_disk_is_noticed_before_and_during(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(work / "a.gguf")

    class Usage:
        free = 100

    with monkeypatch.context() as patch:
        patch.setattr(imports.shutil, "disk_usage", lambda folder: Usage)
        with pytest.raises(StoreError, match="the disk has") as caught:
            import_model(find_local_model(path))
        assert "--move" in caught.value.hint

    def fail(*arguments: object) -> str:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(imports, "_copy_file", fail)
    with pytest.raises(StoreError, match="No space left"):
        import_model(find_local_model(path))
    assert store.list_models() == [] and store.list_leftovers() == []


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("kind", ["gguf", "checkpoint"])
def test_a_killed_import_loses_nothing_and_can_be_given_again(
    work: Path, kind: str, move: bool
) -> None:
    def make_source() -> Path:
        if kind == "gguf":
            return write_gguf(work / "small.gguf")
        return write_small_checkpoint(work / "small")

    def add() -> None:
        import_model(find_local_model(make_path), move=move)

    make_path = make_source()
    weights = {
        path.name: path.read_bytes()
        for path in (make_path.iterdir() if make_path.is_dir() else [make_path])
        if path.suffix in (".gguf", ".safetensors")
    }
    n_lines = count_lines(add)
    store.remove_model(store.find_installed("small"))
    outcomes = set()
    for at_line in sample(range(1, n_lines + 1), 6):
        make_source()
        run_killed(add, at_line)
        models = store.list_models()
        outcomes.add(len(models))
        if not models:
            source = read_tree(work)
            for name, data in weights.items():
                assert data in source.values(), f"{name} was lost at line {at_line}"
            add()
        (model,) = store.list_models()
        assert is_sound(model)
        assert {name: (model.place / name).read_bytes() for name in weights} == weights
        store.remove_model(model)
        assert all(store.delete_leftover(leftover) for leftover in store.list_leftovers())
    assert outcomes == {0, 1}
