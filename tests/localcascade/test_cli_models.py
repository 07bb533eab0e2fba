"""`localcascade models`: the list, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localcascade.catalog import load_catalog
from localcascade.cli.app import run_arguments


def install(home: Path, name: str, n_bytes: int) -> Path:
    path = home / "data" / "models" / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(n_bytes))
    return path


def test_the_table_has_a_line_for_each_model(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(home, "nemotron-3-nano", 3 << 20)
    install(home, "my-own", 2048)
    assert run_arguments(["models"]) == 0
    table, about = capsys.readouterr().out.split("\n\n")
    heading, *rows = table.splitlines()
    assert heading.split() == ["Name", "Weights", "Active", "Context", "Licence", "Installed"]
    assert [row.split()[0] for row in rows] == [
        "tiny", "nemotron-cascade-2", "nemotron-3-nano", "my-own",
    ]  # fmt: skip
    assert rows[1].split() == [
        "nemotron-cascade-2", "31.6B", "3.23B", "262,144",
        "NVIDIA", "Open", "Model", "License", "no",
    ]  # fmt: skip
    assert rows[2].endswith("3.00 MiB")
    assert rows[3].split() == ["my-own", "2.00", "KiB"]
    summaries = [entry.summary for entry in load_catalog().entries.values()]
    assert [line.split(maxsplit=1)[1] for line in about.splitlines()[1:]] == summaries


def test_the_json_holds_the_whole_catalog(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = install(home, "nemotron-3-nano", 5)
    install(home, "my-own", 6)
    assert run_arguments(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    entries = load_catalog().entries
    assert list(models) == [*entries, "my-own"]
    cascade = models["nemotron-cascade-2"]
    assert cascade["repo"] == "nvidia/Nemotron-Cascade-2-30B-A3B"
    assert cascade["parameters"] == {"total": 31_577_937_344, "active": 3_227_751_872}
    assert cascade["sampling"] == {"temperature": 1.0, "top_p": 0.95}
    assert cascade["modes"] == ["thinking", "instruct"]
    assert cascade["installed"] is False
    nano = models["nemotron-3-nano"]
    assert (nano["installed"], nano["path"], nano["file_bytes"]) == (True, str(path), 5)
    assert models["my-own"]["file_bytes"] == 6


def test_a_broken_catalog_of_the_user_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "config" / "models.toml"
    path.parent.mkdir()
    path.write_text("tiny.licnse = 1", "utf-8")
    assert run_arguments(["models", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {path}: tiny.licnse: unknown key\nhint: Did you mean licence?\n"
    )
