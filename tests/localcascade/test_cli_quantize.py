"""`localcascade quantize` as a shell sees it: stdout, stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localcascade.cli.app import run_arguments
from quantize.gguf import open_gguf


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCASCADE_HOME", str(tmp_path / "home"))


def test_report_as_json_tells_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert run_arguments(["quantize", "tiny", str(out), "--type", "Q8_0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    with open_gguf(out) as file:
        assert report["n_tensors"] == len(file.tensors)
        assert file.metadata["general.name"] == "tiny"
    assert report["output"] == str(out)
    assert report["file_bytes"] == out.stat().st_size
    assert 0 < report["elapsed_s"] < 600
    assert report["peak_rss_bytes"] > out.stat().st_size


def test_a_fallback_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.gguf")
    assert run_arguments(["quantize", "tiny", out, "-t", "q6_k", "--fallback", "q5_0"]) == 0
    captured = capsys.readouterr()
    assert "note: 19 matrices are q5_0" in captured.err
    assert captured.out.startswith(f"{out}: ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tiny", "OUT", "--type", "q6_k"], 2, "token_embd.weight: rows of 224"),
        (["tiny", "OUT", "--type", "q9_9"], 2, "'q9_9' is not a type"),
        (["tiny", "OUT", "--type", "q8_k"], 2, "'q8_k' is not a type"),
        (["tiny", "OUT", "--type", "q8_0", "--fallback", "nonsense"], 2, "'nonsense'"),
        (["tiny"], 2, "OUT.gguf"),
        (["no-such-model", "OUT"], 3, "no-such-model"),
        (["nemotron-cascade-2", "OUT"], 3, "localcascade pull"),
        (["FOLDER", "OUT"], 5, "config.json"),
        (["tiny", "NOWHERE"], 1, "cannot be created"),
    ],
)
def test_refusals_have_their_code_and_leave_nothing(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{")
    places = {
        "OUT": str(tmp_path / "out.gguf"),
        "FOLDER": str(tmp_path / "folder"),
        "NOWHERE": str(tmp_path / "nowhere" / "out.gguf"),
    }
    assert run_arguments(["quantize", *(places.get(a, a) for a in arguments)]) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
    assert not list(tmp_path.glob("out.gguf*"))
