"""Names and paths into files, and what is said when there is none."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localcascade import store
from localcascade.cli.app import COMMANDS
from localcascade.errors import ModelNotFound


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def miss_model(name: str) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        store.find_model(name)
    return caught.value


def miss_checkpoint(name: str) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        store.find_checkpoint(name)
    return caught.value


def read_commands(hint: str) -> list[list[str]]:
    """Take our commands out of a hint, as a shell would read them."""
    return [shlex.split(part) for part in hint.split("`") if part.startswith("localcascade ")]


def test_a_path_needs_no_catalog(home: Path) -> None:
    touch(home / "config" / "models.toml").write_text("not toml", "utf-8")
    file = touch(home.parent / "work" / "a.gguf")
    assert store.find_model("a.gguf") == Path("a.gguf")
    assert store.find_model(str(file)) == file


@pytest.mark.parametrize("place", ["mine.gguf", "mine/anything.gguf"])
def test_an_installed_model_is_found_by_name(home: Path, place: str) -> None:
    file = touch(home / "data" / "models" / place)
    assert store.find_model("mine") == file
    assert store.list_installed() == {"mine": file}


def test_a_name_comes_before_a_file_of_the_same_name_here(home: Path) -> None:
    here = touch(home.parent / "work" / "mine")
    assert store.find_model("mine").absolute() == here
    installed = touch(home / "data" / "models" / "mine.gguf")
    assert store.find_model("mine") == installed
    assert store.find_model("./mine").absolute() == here


def test_several_files_under_one_name_must_be_told_apart(home: Path) -> None:
    for name in ("q4.gguf", "q8.gguf"):
        touch(home / "data" / "models" / "mine" / name)
    error = miss_model("mine")
    assert "q4.gguf, q8.gguf" in error.message
    assert store.list_installed() == {}


def test_a_catalog_name_is_found_by_its_repository(home: Path) -> None:
    file = touch(home / "data" / "models" / "nemotron-cascade-2.gguf")
    assert store.find_model("nvidia/Nemotron-Cascade-2-30B-A3B") == file


def test_the_bundled_model_is_found_in_the_cache(home: Path) -> None:
    error = miss_model("tiny")
    assert read_commands(error.hint) == [["localcascade", "demo"]]
    file = touch(store.bundled_model_path("tiny"))
    assert file.is_relative_to(home / "cache")
    assert store.find_model("tiny") == file
    assert store.list_installed() == {"tiny": file}
    installed = touch(home / "data" / "models" / "tiny.gguf")
    assert store.find_model("tiny") == installed


def test_a_model_that_is_not_installed_is_told_how_to_get(home: Path) -> None:
    error = miss_model("nemotron-cascade-2")
    pull, quantize = read_commands(error.hint)
    assert pull == ["localcascade", "pull", "nemotron-cascade-2"]
    assert "63 GB" in error.hint
    assert read_commands(miss_checkpoint("nemotron-cascade-2").hint) == [pull]
    assert {pull[1], quantize[1]} <= set(COMMANDS)
    # Doing as told leads on: the checkpoint is found, and the next hint is shorter by one step.
    file = touch(home / "data" / "checkpoints" / "nemotron-cascade-2" / "config.json")
    assert store.find_checkpoint(quantize[2]) == file.parent
    assert read_commands(miss_model("nemotron-cascade-2").hint) == [quantize]
    assert "downloaded" in miss_model("nemotron-cascade-2").message


def test_a_checkpoint_given_as_a_model_is_told_to_be_quantized(home: Path) -> None:
    touch(home.parent / "work" / "my model" / "config.json")
    (command,) = read_commands(miss_model("./my model").hint)
    assert command[:4] == ["localcascade", "quantize", "./my model", "my model.gguf"]


def test_near_names_are_suggested(home: Path) -> None:
    touch(home / "data" / "models" / "cascade-q4.gguf")
    assert "Did you mean tiny?" in miss_model("tinny").hint
    assert "cascade-q4" in miss_model("cascade-q5").hint
    assert "Did you mean nemotron-3-nano" in miss_checkpoint("nemotron-3-nan").hint
    assert "Did you mean" not in miss_model("xyzzy").hint


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.gguf", "no such file"),
        ("no/such", "no such file"),
        ("folder", "is a folder"),
        ("./folder", "is a folder"),
    ],
)
def test_a_path_that_is_no_model(home: Path, name: str, problem: str) -> None:
    (home.parent / "work" / "folder").mkdir()
    assert problem in miss_model(name).message


def test_a_checkpoint_is_found_by_folder_and_by_name(home: Path) -> None:
    here = touch(home.parent / "work" / "mine" / "config.json").parent
    assert store.find_checkpoint("mine").absolute() == here
    assert store.find_checkpoint(str(here)) == here
    installed = touch(home / "data" / "checkpoints" / "mine" / "config.json").parent
    assert store.find_checkpoint("mine") == installed
    assert store.find_checkpoint("./mine").absolute() == here


def test_the_bundled_checkpoint_is_whole(home: Path) -> None:
    folder = store.find_checkpoint("tiny")
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= {
        file.name for file in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("empty", "no config.json"),
        ("model.gguf", "is a file"),
        ("./elsewhere", "no such file or folder"),
        ("nothing", "no model is called nothing"),
    ],
)
def test_what_is_no_checkpoint(home: Path, name: str, problem: str) -> None:
    (home.parent / "work" / "empty").mkdir()
    touch(home.parent / "work" / "model.gguf")
    assert problem in miss_checkpoint(name).message


NAMES = st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(
    st.sampled_from(["..", ".", "/", "~", "~nobody", "secret", "models", "\0", "*", "[a]", "%"]),
    max_size=6,
).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_a_name_never_leaves_the_folders(home: Path, name: str) -> None:
    touch(home / "data" / "secret.gguf")
    touch(home / "data" / "secret" / "config.json")
    touch(home / "data" / "models" / "sub" / "deep" / "secret.gguf")
    for find in (store.find_model, store.find_checkpoint):
        with pytest.raises(ModelNotFound):
            find(name)


def test_completion_offers_names_with_a_line_each(home: Path) -> None:
    touch(home / "data" / "models" / "tinier.gguf")
    names = [name for name, _ in store.complete_model_name("ti")]
    assert names == ["tiny", "tinier"]
    assert dict(store.complete_model_name("")).keys() >= {"nemotron-3-nano", "tinier"}
    assert all(line for _, line in store.complete_model_name(""))


def test_completion_is_silent_about_a_broken_catalog(home: Path) -> None:
    touch(home / "config" / "models.toml").write_text("x", "utf-8")
    assert store.complete_model_name("t") == []
