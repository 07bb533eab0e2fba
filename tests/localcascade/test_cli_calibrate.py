"""`localcascade calibrate` as a shell sees it: stdout, stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from localcascade.cli.app import run_arguments
from localcascade.cli.calibrate import describe_coverage, parse_layers
from quantize.choices import Choices
from quantize.convert import quantize_checkpoint
from quantize.importance import Coverage, read_importance
from quantize.moments import read_moments
from quantize.sensitivity import read_sensitivity
from tests.localcascade.calibrations import write_model
from tests.localcascade.models import write_model as write_bare_model
from tests.quantize.models import TINY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("calibrate"))


def test_the_report_tells_the_truth(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "t.txt", tmp_path / "o.imatrix.gguf"
    text.write_text("Twelve and thirty make forty-two.\n" * 10)
    arguments = ["calibrate", str(model), "--text", str(text), "--ctx", "64", "--threads", "1"]
    assert run_arguments([*arguments, "-o", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    importance = read_importance(out)
    coverage = importance.measure_coverage()
    assert report["n_tokens"] == importance.matrices["output.weight"].counts.sum()
    assert report["n_matrices"] == len(importance.matrices)
    assert report["n_experts"] == coverage.n_experts == 24  # twelve in each of two layers
    assert report["experts_few"] == coverage.n_few > 0
    assert report["experts_empty"] == coverage.n_empty
    assert 0 < report["elapsed_s"] < 600
    assert report["n_chunks"] == -(-report["n_tokens"] // 64)
    assert f"note: {coverage.n_few} of 24 experts saw fewer than 256 tokens" in captured.err
    assert importance.datasets == ("t.txt",)

    assert run_arguments([*arguments, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{report['n_tokens']:,} tokens" in said
    assert f"{coverage.n_few} with few, {coverage.n_empty} with none" in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["MODEL", "-o", "NOWHERE", "--text", "TEXT"], 1, "cannot be created"),
        (["MODEL", "-o", "FOLDER", "--text", "TEXT"], 1, "cannot be created"),
        (["MODEL", "-o", "OUT", "--text", "MISSING"], 2, "missing.txt"),
        (["MODEL", "-o", "OUT", "--text", "BYTES"], 1, "byte 1: is not UTF-8"),
        (["MODEL", "-o", "OUT", "--text", "CHATS"], 1, 'line 2: holds no "messages"'),
        (["MODEL", "-o", "OUT", "--text", "EMPTY"], 1, "empty.txt: holds no text"),
        (["MODEL", "--text", "TEXT"], 2, "--output"),
        (["MODEL", "-o", "OUT", "--expert-moments"], 2, "go with --moments"),
        (["MODEL", "-o", "OUT", "--layers", "1"], 2, "go with --moments"),
        (["MODEL", "--moments", "OUT", "--layers", "7-9"], 1, "layers are 0 to 4"),
        (["MODEL", "--moments", "NOWHERE"], 1, "cannot be created"),
        (["MODEL", "-o", "OUT", "--ctx", "3"], 2, "--ctx"),
        (["no-such-model", "-o", "OUT"], 3, "no-such-model"),
        (["TEXT", "-o", "OUT"], 5, "not a GGUF file"),
        (["MOVED", "-o", "OUT"], 1, "neurons were moved or scaled"),
        (["MOVED", "--moments", "OUT"], 1, "made with --type"),
        (["BARE", "-o", "OUT", "--text", "GOOD"], 5, "no chat template"),
    ],
)
def test_refusals_have_their_code_and_leave_nothing(
    home: Path,
    model: Path,
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    chat = '{"messages": [{"role": "user", "content": "hi"}]}'
    for name, data in (
        ("text.txt", b"hello"),
        ("bytes.txt", b"a\xff"),
        ("chats.jsonl", f"{chat}\n{{}}\n".encode()),
        ("good.jsonl", chat.encode()),
        ("empty.txt", b""),
    ):
        (tmp_path / name).write_bytes(data)
    places = {
        "MODEL": model,
        "TEXT": tmp_path / "text.txt",
        "BYTES": tmp_path / "bytes.txt",
        "CHATS": tmp_path / "chats.jsonl",
        "GOOD": tmp_path / "good.jsonl",
        "EMPTY": tmp_path / "empty.txt",
        "MISSING": tmp_path / "missing.txt",
        "FOLDER": tmp_path / "folder",
        "OUT": tmp_path / "out.gguf",
        "NOWHERE": tmp_path / "nowhere" / "out.gguf",
        "BARE": tmp_path / "bare.gguf",
    }
    places["MOVED"] = tmp_path / "moved.gguf"
    if "MOVED" in arguments:
        quantize_checkpoint(TINY, places["MOVED"], choices=Choices({}))
    if "BARE" in arguments:
        write_bare_model(places["BARE"], template="")
    assert run_arguments(["calibrate", *(str(places.get(a, a)) for a in arguments)]) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
    assert not list(tmp_path.glob("out.gguf*"))


def test_notes_name_a_handful_of_experts_and_count_the_rest() -> None:
    full = Coverage(8, {}, {})
    assert describe_coverage(full) == []
    thin = Coverage(64, {"blk.1": (3, 7), "blk.4": (0,)}, {"blk.1": tuple(range(10, 30))})
    empty, few = describe_coverage(thin)
    assert empty.startswith("3 of 64 experts saw no text")
    assert empty.endswith(": blk.1: 3, 7; blk.4: 0")
    assert few.startswith("20 of 64 experts saw fewer than 256 tokens")
    assert few.endswith("blk.1: 10, 11, 12, 13, 14, 15, 16, 17 and 12 more")


def test_moments_and_sensitivities_are_made_beside_or_alone(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, moments, probe = (tmp_path / name for name in ("t.txt", "o.moments.gguf", "o.sens.toml"))
    text.write_text("Twelve and thirty make forty-two.\n" * 30)
    arguments = ["calibrate", str(model), "--text", str(text), "--threads", "1", "--ctx", "256"]
    both = ["--moments", str(moments), "--layers", "2-3", "--expert-moments"]
    both += ["--probe", str(probe), "--json"]
    assert run_arguments([*arguments, *both]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "second moments of 10 matrices" in captured.err
    assert "passes over the text: 1" in captured.err
    assert report["moments_bytes"] == moments.stat().st_size
    with read_moments(moments) as opened:
        assert {name.split(".")[1] for name in opened.stacks} == {"2", "3"}
        assert {"blk.3.ffn_down_exps.weight", "blk.3.ffn_up_exps.weight"} < {*opened.stacks}
    sensitivity = read_sensitivity(probe)
    assert report["sensitivities"] == sensitivity.factors
    assert "output.weight" in sensitivity.factors
    assert "n_tokens" not in report and not list(tmp_path.glob("*.imatrix*"))

    assert run_arguments([*arguments, "--moments", str(moments), "--layers", "2-3"]) == 0
    with read_moments(moments) as opened:
        assert "blk.3.ffn_up_exps.weight" in opened.stacks
        assert "blk.3.ffn_down_exps.weight" not in opened.stacks and len(opened.stacks) == 9

    capsys.readouterr()
    assert run_arguments([*arguments, "--probe", str(probe)]) == 0
    assert f"{len(sensitivity.factors)} matrices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "layers"),
    [(None, None), ("3", {3}), ("1,3-5", {1, 3, 4, 5}), (" 0 , 2", {0, 2}), ("7-7", {7})],
)
def test_layers_are_numbers_and_ranges(text: str | None, layers: set[int] | None) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "5-3", "1,,2", "-1", "1-2-3"])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no layer"):
        parse_layers(text)
