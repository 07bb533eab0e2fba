"""`localcascade ps`: engines that run, and files of those that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from localcascade.cli.app import run_arguments
from localcascade.engine.client import Engine
from localcascade.engine.running import announce_engine, find_engines_folder, list_engines
from localcascade.hardware import MemoryHolder
from tests.localcascade.models import write_model


@pytest.fixture
def engine(home: Path) -> Iterator[tuple[Engine, Path]]:
    path = write_model(home.parent / "work" / "small.gguf")
    with Engine(path) as engine:
        yield engine, path


def test_a_loaded_engine_is_listed(
    engine: tuple[Engine, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, path = engine
    n_ctx = loaded.load().n_ctx
    assert run_arguments(["ps", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["engines"]
    process = psutil.Process(listed["pid"])
    assert process.ppid() == os.getpid()
    assert Path(listed["model"]).name == path.name
    assert listed["context"] == n_ctx
    assert listed["memory_bytes"] == pytest.approx(process.memory_info().rss, rel=0.2)
    assert run_arguments(["ps"]) == 0
    assert "small.gguf" in capsys.readouterr().out


def test_an_engine_that_ended_is_forgotten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "from pathlib import Path; from localcascade.engine.running import announce_engine; "
        "announce_engine(Path('gone.gguf'), 4096)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    folder = find_engines_folder()
    assert len(list(folder.iterdir())) == 1
    assert list_engines() == []
    assert list(folder.iterdir()) == []
    assert run_arguments(["ps"]) == 0
    assert "No model runs." in capsys.readouterr().err


def test_another_process_of_the_same_number_is_not_taken_for_it(home: Path) -> None:
    announce_engine(Path("mine.gguf"), 4096)
    (file,) = find_engines_folder().iterdir()
    (engine,) = list_engines()
    assert (engine.pid, engine.model, engine.n_ctx) == (os.getpid(), "mine.gguf", 4096)
    said = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(said | {"started_s": said["started_s"] - 60}), "utf-8")
    assert list_engines() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}'])
def test_a_damaged_file_is_dropped(home: Path, text: str) -> None:
    folder = find_engines_folder()
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(text, "utf-8")
    assert list_engines() == []
    assert list(folder.iterdir()) == []


def test_a_holder_in_words() -> None:
    holder = MemoryHolder(12, "python", 3 << 30, is_gpu=True)
    assert holder.describe() == "python (process 12) holds 3.00 GiB of a GPU's memory"
