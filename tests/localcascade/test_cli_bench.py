"""`localcascade bench`: its tests, its JSON, its refusals; and what `run` refuses to load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localcascade.cli.app import run_arguments
from localcascade.cli.bench import Row, describe_row, make_tests, parse_counts
from localcascade.cli.console import ExitCode, UsageError
from localcascade.engine.wire import Measurement, SpeedTest
from tests.localcascade.models import write_model


def test_tests_are_every_prompt_and_generation_at_each_depth() -> None:
    tests = make_tests([512, 0], [16], [0, 1024], 2)
    assert [(t.n_prompt, t.n_gen, t.depth) for t in tests] == [
        (512, 0, 0), (0, 16, 0), (512, 0, 1024), (0, 16, 1024),
    ]  # fmt: skip


def test_a_row_is_the_mean_of_the_rates_and_their_spread() -> None:
    row = Row(SpeedTest(0, 100, 4096), 256, Measurement((1.0, 2.0), 1 << 20))
    told = describe_row(row)
    assert told["test"] == "tg100 @ d4096"
    assert (told["tokens_per_s"], told["samples"]) == (75.0, [100.0, 50.0])
    assert told["stddev"] == pytest.approx(35.355, abs=1e-3)
    assert (told["n_batch"], told["peak_memory_bytes"]) == (256, 1 << 20)


@pytest.mark.parametrize("text", ["", "12,", "-1", "1e3", "½", "10000000000"])
def test_no_counts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no numbers"):
        parse_counts("-p", text)


@pytest.mark.usefixtures("home")
def test_json_is_a_list_with_an_object_for_each_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    arguments = ["bench", str(path), "-p", "16", "-n", "2", "-d", "0,8", "-b", "8,16"]
    assert run_arguments([*arguments, "-r", "2", "--threads", "1", "--json"]) == ExitCode.DONE
    rows = json.loads(capsys.readouterr().out)
    assert [(row["test"], row["n_batch"]) for row in rows] == [
        (name, batch) for batch in (8, 16) for name in ("pp16", "tg2", "pp16 @ d8", "tg2 @ d8")
    ]
    assert all(row["tokens_per_s"] > 0 and len(row["samples"]) == 2 for row in rows)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("command", [["run", "hello"], ["bench", "-p", "2000000000"]])
def test_what_does_not_fit_ends_with_4_and_says_what_would(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    name, *rest = command
    more = ["--ctx", "2000000000"] if name == "run" else []
    assert run_arguments([name, str(path), *rest, *more]) == ExitCode.DOES_NOT_FIT
    told = capsys.readouterr()
    assert not told.out
    assert "are needed" in told.err


@pytest.mark.usefixtures("home")
def test_nothing_to_measure_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", hybrid=True)
    assert run_arguments(["bench", str(path), "-p", "0", "-n", "0"]) == ExitCode.USAGE
    assert "nothing to measure" in capsys.readouterr().err
