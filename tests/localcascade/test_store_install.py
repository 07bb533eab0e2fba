"""What enters the store, what leaves it, and who else is there meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localcascade import store
from localcascade.errors import CascadeError, ModelFileError, ModelNotFound, StoreError, UnsafeName
from localcascade.store.check import check_model
from localcascade.store.manifest import USED_NAME
from quantize.errors import QuantizeError
from tests.localcascade.stored import (
    count_lines,
    install,
    read_tree,
    run_killed,
    write_gguf,
    write_small_checkpoint,
    write_splits,
)
from tests.soak import sample


@pytest.fixture
def data(home: Path) -> bytes:
    return write_gguf(home.parent / "work" / "a.gguf").read_bytes()


@contextmanager
def run_beside(action: Callable[[], object]) -> Iterator[int]:
    """Run an action in a process of its own, which ends with 0 if it did well, else with 1."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except CascadeError:
            os._exit(1)
        finally:
            os._exit(2)
    yield child


def test_a_model_is_found_under_its_name_and_path(home: Path, data: bytes) -> None:
    model = install("mine", {"deep/a.gguf": data, "README.md": b"read me"})
    assert model.place == home / "data" / "models" / "mine"
    assert store.find_model("mine") == model.place / "deep" / "a.gguf"
    assert store.list_installed() == {"mine": model.place / "deep" / "a.gguf"}
    assert model.place.joinpath("deep/a.gguf").read_bytes() == data
    assert model.size_bytes == len(data) + 7
    assert store.list_models() == [store.find_installed("mine")] == [model]
    assert store.list_leftovers() == []


def test_a_split_model_is_found_by_its_first_file(home: Path) -> None:
    files = write_splits(home.parent / "work", "big", 3)
    model = install("big", {file.name: file.read_bytes() for file in files})
    assert model.manifest and model.manifest.weights.n_params == 3 * 1024
    assert store.find_model("big").name == "big-00001-of-00003.gguf"


def test_a_checkpoint_is_found_by_its_name(home: Path) -> None:
    files = read_tree(write_small_checkpoint(home.parent / "work" / "source"))
    kept = {path: data for path, data in files.items() if not path.endswith((".py", ".bin"))}
    model = install("small", kept, "checkpoint")
    assert store.find_checkpoint("small") == model.place
    assert model.manifest
    weights = model.manifest.weights
    assert (weights.architecture, weights.n_params) == ("nemotron_h", 1024)
    assert weights.bits_per_weight == pytest.approx(24)
    with pytest.raises(ModelNotFound):
        store.find_model("small")


def test_one_name_may_be_a_gguf_and_a_checkpoint(home: Path, data: bytes) -> None:
    files = read_tree(write_small_checkpoint(home.parent / "work" / "source"))
    del files["modeling_nemotron_h.py"], files["pytorch_model.bin"]
    install("twin", {"a.gguf": data})
    install("twin", files, "checkpoint")
    with pytest.raises(ModelNotFound, match="a GGUF and a checkpoint") as caught:
        store.find_installed("twin")
    assert "--kind" in caught.value.hint
    store.remove_model(store.find_installed("twin", "checkpoint"))
    assert store.find_installed("twin").kind == "gguf"


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, ModelFileError),
        ({"README.md": b"only"}, ModelFileError),
        ({"a.gguf": b"GGUF"}, QuantizeError),
        ({"a.gguf": b"DATA", "b.gguf": b"DATA"}, ModelFileError),
        ({"a-00001-of-00002.gguf": b"DATA"}, ModelFileError),
        ({"a.gguf": b"DATA", "nul.json": b""}, UnsafeName),
        ({"a.gguf": b"DATA", "A.gguf.md": b"", "a.GGUF.md": b""}, UnsafeName),
    ],
    ids=["empty", "no gguf", "damaged", "two", "split alone", "hostile", "collision"],
)
def test_what_is_no_model_does_not_appear(
    data: bytes, files: dict[str, bytes], error: type[Exception]
) -> None:
    with pytest.raises(error):
        install("mine", {path: data if text == b"DATA" else text for path, text in files.items()})
    assert store.list_models() == []


def test_a_folder_that_changed_after_its_manifest_does_not_appear(home: Path, data: bytes) -> None:
    for change in ("grow", "add", "lose"):
        with store.open_staging("gguf", "mine") as folder:
            (folder / "a.gguf").write_bytes(data)
            (folder / "b.md").write_bytes(b"b")
            manifest = store.make_manifest(folder, "mine", "gguf")
            if change == "lose":
                (folder / "b.md").unlink()
            else:
                (folder / ("b.md" if change == "grow" else "c.py")).write_bytes(b"bb")
            with pytest.raises(ModelFileError, match=r"b\.md|c\.py"):
                store.install_model(folder, manifest)
        assert store.list_models() == []
        store.delete_leftover(store.list_leftovers()[0])


@pytest.mark.parametrize("name", ["mine", "MINE", "Mine"])
def test_a_name_that_is_taken_is_refused_whatever_its_case(
    home: Path, data: bytes, name: str
) -> None:
    model = install("mine", {"a.gguf": data})
    with pytest.raises(StoreError, match="installed already") as caught:
        install(name, {"a.gguf": data})
    assert "localcascade rm mine" in caught.value.hint
    assert store.list_models() == [model]
    (home / "data" / "models" / "hand.gguf").write_bytes(data)
    with pytest.raises(StoreError, match=r"hand\.gguf"):
        store.check_name_free("Hand", "gguf")


def test_removing_deletes_everything_and_follows_no_link(home: Path, data: bytes) -> None:
    outside = home.parent / "work" / "precious"
    outside.mkdir()
    (outside / "file").write_text("keep me")
    model = install("mine", {"a.gguf": data})
    (model.place / "link").symlink_to(outside)
    store.remove_model(model)
    linked = home / "data" / "models" / "linked"
    linked.symlink_to(outside)
    (outside / "b.gguf").write_bytes(data)
    store.remove_model(store.find_installed("linked"))
    assert store.list_models() == [] and store.list_leftovers() == []
    assert (outside / "file").read_text() == "keep me" and (outside / "b.gguf").exists()
    with pytest.raises(ModelNotFound):
        store.remove_model(model)


def test_files_put_there_by_hand_are_listed_and_removed(home: Path, data: bytes) -> None:
    folder = home / "data" / "models"
    (folder / "loose").mkdir(parents=True)
    (folder / "one.gguf").write_bytes(data)
    (folder / "loose" / "a.gguf").write_bytes(data)
    (folder / "empty").mkdir()
    models = store.list_models()
    assert [(m.name, m.manifest, m.size_bytes) for m in models] == [
        ("loose", None, len(data)), ("one", None, len(data)),
    ]  # fmt: skip
    for model in models:
        store.remove_model(model)
    assert [path.name for path in folder.iterdir() if path.name != ".trash"] == ["empty"]


@pytest.mark.parametrize("name", ["../models/mine", "/etc", "", ".", "..", "mine/", "*", ".trash"])
def test_no_path_is_a_name(home: Path, data: bytes, name: str) -> None:
    install("mine", {"a.gguf": data})
    with pytest.raises(ModelNotFound):
        store.find_installed(name)


def test_the_nearest_name_is_suggested(data: bytes) -> None:
    install("tiny-Q8_0", {"a.gguf": data})
    with pytest.raises(ModelNotFound) as caught:
        store.find_installed("tiny-q8")
    assert "Did you mean tiny-Q8_0?" in caught.value.hint


def test_last_use_is_noted_without_touching_the_manifest(home: Path, data: bytes) -> None:
    model = install("mine", {"deep/a.gguf": data})
    before = (model.place / "manifest.json").read_bytes()
    assert model.last_used_s is None
    store.mark_used(store.find_model("mine"))
    first_s = model.last_used_s
    assert first_s is not None and abs(first_s - time.time()) < 60
    os.utime(model.place / USED_NAME, (1, 1))
    assert store.find_installed("mine").last_used_s == 1
    store.mark_used(model.place)
    assert (model.last_used_s or 0) > 1
    assert (model.place / "manifest.json").read_bytes() == before
    assert all(check.is_sound for check in check_model(model))
    elsewhere = home.parent / "work" / "a.gguf"
    store.mark_used(elsewhere)
    assert [path.name for path in elsewhere.parent.iterdir()] == ["a.gguf"]


def test_a_staging_folder_has_one_owner_at_a_time(home: Path) -> None:
    holds, may_end = os.pipe(), os.pipe()

    def hold() -> None:
        with store.open_staging("gguf", "mine") as folder:
            (folder / "half").write_bytes(b"x")
            os.write(holds[1], b".")
            os.read(may_end[0], 1)

    with run_beside(hold) as child:
        os.read(holds[0], 1)
        (leftover,) = store.list_leftovers()
        assert leftover.in_use and not store.delete_leftover(leftover)
        waits: list[int] = []
        with store.open_staging(
            "gguf", "mine", on_wait=lambda: waits.append(os.write(may_end[1], b"."))
        ) as folder:
            assert waits == [1] and folder == leftover.path
            assert (folder / "half").read_bytes() == b"x"
        assert os.waitpid(child, 0)[1] == 0
    (leftover,) = store.list_leftovers()
    assert not leftover.in_use and store.delete_leftover(leftover)
    assert list(leftover.path.parent.iterdir()) == []


@pytest.mark.parametrize("key", ["", "..", "../mine", "/tmp/x", "a/b", ".hidden", "a\0b", "@"])
def test_a_staging_folder_lies_in_the_store(home: Path, key: str) -> None:
    with pytest.raises(UnsafeName), store.open_staging("gguf", key):
        pass
    assert not (home / "data").exists()


def test_two_installs_at_once_end_in_one_good_model(home: Path, data: bytes) -> None:
    def add() -> None:
        install("mine", {"a.gguf": data})

    with run_beside(add) as first, run_beside(add) as second, run_beside(add) as third:
        codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in (first, second, third)]
    assert sorted(codes) == [0, 1, 1]
    (model,) = store.list_models()
    assert all(check.is_sound for check in check_model(model))


def test_two_removals_at_once_are_one_removal(home: Path, data: bytes) -> None:
    model = install("mine", {f"deep/{i}.md": b"x" for i in range(50)} | {"a.gguf": data})

    def remove() -> None:
        store.remove_model(model)

    with run_beside(remove) as first, run_beside(remove) as second:
        codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in (first, second)]
    assert sorted(codes) == [0, 1]
    assert store.list_models() == [] and store.list_leftovers() == []


def test_a_killed_removal_leaves_a_whole_model_or_none(home: Path, data: bytes) -> None:
    files = {f"{i}.md": bytes(i) for i in range(6)} | {"a.gguf": data}

    def remove() -> None:
        store.remove_model(store.find_installed("mine"))

    install("mine", files)
    n_lines = count_lines(remove)
    assert store.list_models() == [] and n_lines > 50
    outcomes = set()
    for at_line in sample(range(1, n_lines + 1), 12):
        if not store.list_models():
            install("mine", files)
        run_killed(remove, at_line)
        models = store.list_models()
        outcomes.add(len(models))
        for model in models:
            assert all(check.is_sound for check in check_model(model))
        for leftover in store.list_leftovers():
            assert store.delete_leftover(leftover)
        assert store.list_leftovers() == []
    assert outcomes == {0, 1}


def test_a_killed_install_leaves_a_whole_model_or_none(home: Path, data: bytes) -> None:
    def add() -> None:
        install("mine", {"a.gguf": data, "deep/b.md": b"b"})

    n_lines = count_lines(add)
    store.remove_model(store.find_installed("mine"))
    outcomes = set()
    for at_line in sample(range(1, n_lines + 1), 12):
        run_killed(add, at_line)
        models = store.list_models()
        outcomes.add(len(models))
        if not models:
            add()
        (model,) = store.list_models()
        assert all(check.is_sound for check in check_model(model))
        store.remove_model(model)
        for leftover in store.list_leftovers():
            assert store.delete_leftover(leftover)
    assert outcomes == {0, 1}
