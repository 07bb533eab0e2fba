"""Manifests: written as they are read, and refused when they are hostile or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localcascade import store
from localcascade.errors import ModelFileError
from localcascade.store.manifest import MANIFEST_NAME, read_manifest
from tests.localcascade.stored import install, write_gguf


@pytest.fixture
def folder(home: Path) -> Path:
    """An installed model's folder."""
    data = write_gguf(home.parent / "work" / "a.gguf").read_bytes()
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = install(
        "mine", {"a.gguf": data, "README.md": b"x"}, repo="org/mine", commit=commit, notes=["one"]
    )
    return model.place


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_it_says_what_was_installed(folder: Path) -> None:
    document = json.loads((folder / MANIFEST_NAME).read_text())
    manifest = read_manifest(folder)
    assert json.loads(json.dumps(manifest.to_json())) == document
    assert document["name"] == "mine" and document["repo"] == "org/mine"
    assert document["weights"] == {
        "architecture": "llama", "type": "f32", "n_params": 1024, "bits_per_weight": 32.0,
    }  # fmt: skip
    assert [file["path"] for file in document["files"]] == ["README.md", "a.gguf"]
    # printf x | sha256sum
    x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert document["files"][0] == {
        "path": "README.md", "size": 1, "sha256": x, "chunk_sha256": [x],
    }  # fmt: skip
    assert manifest.size_bytes == 1 + (folder / "a.gguf").stat().st_size


def set_file(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["files"][1].update({key: value})


def set_key(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update({key: value})


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(key)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no name": (drop("name"), "name"),
    "no files": (drop("files"), "files"),
    "no weights": (drop("weights"), "weights"),
    "empty files": (set_key("files", []), "files"),
    "files of another kind": (set_key("files", {"a": 1}), "files"),
    "another name": (set_key("name", "other"), "name"),
    "a name that climbs": (set_key("name", "../mine"), "name"),
    "a kind that is none": (set_key("kind", "exe"), "kind"),
    "a number for a name": (set_key("name", 7), "name"),
    "an unknown key": (set_key("run", "rm -rf"), "run"),
    "a later format": (set_key("format", 2), "format"),
    "a hostile repo": (set_key("repo", "../../x"), "repo"),
    "an address for a repo": (set_key("repo", "http://evil/x"), "repo"),
    "a hostile commit": (set_key("commit", "main/../../x"), "commit"),
    "notes of numbers": (set_key("notes", [1]), "notes"),
    "a path that climbs": (set_file("path", "../../../etc/passwd"), "path"),
    "an absolute path": (set_file("path", "/etc/passwd"), "path"),
    "a drive": (set_file("path", "C:\\x"), "path"),
    "a path of ours": (set_file("path", "Manifest.json"), "path"),
    "control characters": (set_file("path", "a\x1b[2J"), "path"),
    "two paths of one name": (set_file("path", "readme.MD"), "collide"),
    "a size below 0": (set_file("size", -1), "size"),
    "a huge size": (set_file("size", 1 << 62), "size"),
    "a size beyond 64 bits": (set_file("size", 10**40), "size"),
    "a size that is text": (set_file("size", "12"), "size"),
    "a size that is a float": (set_file("size", 12.0), "size"),
    "a size that is true": (set_file("size", True), "size"),
    "more chunks than bytes": (set_file("chunk_sha256", ["0" * 64] * 2), "chunks"),
    "no chunks": (set_file("chunk_sha256", []), "chunks"),
    "a hash too short": (set_file("sha256", "abc"), "sha256"),
    "a hash that is no hash": (set_file("chunk_sha256", ["Z" * 64]), "sha256"),
    "a hash with a line break": (set_file("sha256", "0" * 64 + "\n"), "sha256"),
    "bits of infinity": (
        lambda document: document["weights"].update(bits_per_weight=float("inf")),
        "weights",
    ),
    "weights below 0": (lambda document: document["weights"].update(n_params=-1), "weights"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_refused_and_hides_nothing_else(case: str, folder: Path) -> None:
    other = install("other", {"b.gguf": (folder / "a.gguf").read_bytes()})
    edit, says = HOSTILE[case]
    change(folder, edit)
    with pytest.raises(ModelFileError, match=says) as caught:
        read_manifest(folder)
    assert str(folder / MANIFEST_NAME) in caught.value.message
    assert caught.value.message.isprintable() and len(caught.value.message) < 600
    mine, sound = store.list_models()
    assert (mine.name, mine.manifest) == ("mine", None) and says in mine.problem
    assert (sound.name, sound.manifest) == ("other", other.manifest)
    store.remove_model(mine)
    assert [model.name for model in store.list_models()] == ["other"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'"x"', b"{}", b"9" * 5000],
    ids=lambda text: str(text[:8]),
)
def test_what_is_no_manifest_is_refused(text: bytes, folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(ModelFileError):
        read_manifest(folder)
    assert store.find_installed("mine").problem


def test_a_manifest_of_hundreds_of_megabytes_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST_NAME).open("r+b") as file:
        file.truncate(400 << 20)
    with pytest.raises(ModelFileError, match="more than"):
        read_manifest(folder)


def test_a_manifest_that_is_a_folder_or_of_the_other_kind(folder: Path) -> None:
    place = folder.parent.parent / "checkpoints" / "mine"
    place.parent.mkdir()
    folder.rename(place)
    assert "checkpoint" in store.find_installed("mine").problem
    (place / MANIFEST_NAME).unlink()
    (place / MANIFEST_NAME).mkdir()
    assert store.find_installed("mine").problem


def test_a_manifest_of_a_large_model_is_small(folder: Path) -> None:
    hashes = ["ab" * 32] * 3765  # 63 GB in chunks of 16 MiB
    change(folder, lambda d: d["files"][1].update(size=3765 << 24, chunk_sha256=hashes))
    assert read_manifest(folder).files[1].size == 3765 << 24
    assert (folder / MANIFEST_NAME).stat().st_size < 300_000
