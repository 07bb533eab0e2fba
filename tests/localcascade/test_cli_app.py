"""The command line as a whole: what it imports, what it returns, what it completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localcascade import __version__, errors, store
from localcascade.cli import app as cli
from localcascade.cli.app import COMMANDS, run_arguments

SLOW = {"llama_cpp", "textual", "numpy", "rich", "jinja2", "huggingface_hub"}

PROBE = """
import sys
from localcascade.cli.app import run_arguments
code = run_arguments(sys.argv[1:])
print(code, *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def run_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localcascade", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


def list_imports(*arguments: str) -> tuple[int, set[str]]:
    """Run one command line in a fresh interpreter; its exit code and what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), set(modules)


def test_the_help_imports_nothing_slow() -> None:
    code, modules = list_imports("--help")
    assert code == 0
    assert modules & {*SLOW, "pydantic"} == set()
    assert "localcascade" in modules


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_nothing_slow(command: str) -> None:
    code, modules = list_imports(command, "--help")  # typer itself takes pydantic here
    assert code == 0
    assert modules & SLOW == set()


def test_models_imports_no_engine(home: Path) -> None:
    code, modules = list_imports("models")
    assert code == 0
    assert modules & {"llama_cpp", "textual", "numpy"} == set()


def test_help_names_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["--help"]) == 0
    captured = capsys.readouterr()
    for command in COMMANDS:
        (line,) = [line for line in captured.out.splitlines() if line.startswith(f"  {command} ")]
        assert len(line.split()) > 2
        assert not line.endswith("...")
    assert captured.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_is_plain_and_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: localcascade {command}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]" not in text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["--version"]) == 0
    assert capsys.readouterr().out == f"localcascade {__version__}\n"


def test_without_a_command_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: localcascade" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modls"], "Did you mean 'models'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["models", "--jsn"], "--json"),
        (["models", "extra"], "extra"),
        (["inspect"], "Missing argument"),
    ],
)
def test_misuse_is_2_and_names_the_help(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: `localcascade")
    assert "--help" in hint


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OutOfBudget("too large", need_bytes=2, have_bytes=1), 4),
        (errors.OfflineError("offline"), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("ours"), 1),
        (EOFError("ended"), 1),
        (BrokenPipeError(32, "Broken pipe"), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_in_a_command_becomes_its_exit_code(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail() -> dict[str, Path]:
        raise error

    monkeypatch.setattr(store, "list_installed", fail)
    monkeypatch.setattr(cli, "_hush_stdout", lambda: 0)
    assert run_arguments(["models"]) == code
    text = capsys.readouterr().err
    if code in (0, 130):
        assert text == ""
    else:
        assert text.lstrip().startswith("error: ")
        assert str(error) in text


@pytest.mark.parametrize(
    ("arguments", "code"), [(["models"], 0), (["inspect", "missing.gguf"], 3), (["models", "x"], 2)]
)
def test_the_process_returns_the_code(home: Path, arguments: list[str], code: int) -> None:
    done = run_process(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_failure(home: Path) -> None:
    command = [sys.executable, "-m", "localcascade", "models", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "variable", "offline"),
    [([], None, None), (["--offline"], None, "1"), ([], "1", "1"), ([], "0", None)],
)
def test_offline_is_told_to_the_hub_client(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str | None,
    offline: str | None,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "unset")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if variable is not None:
        monkeypatch.setenv("LOCALCASCADE_OFFLINE", variable)
    assert run_arguments([*arguments, "models"]) == 0
    assert os.environ.get("HF_HUB_OFFLINE") == offline


def complete(words: str) -> list[str]:
    done = run_process(
        _LOCALCASCADE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_completes_commands_and_models(home: Path) -> None:
    assert complete("localcascade mo") == ["models"]
    assert complete("localcascade inspect ti") == ["tiny"]
    assert complete("localcascade inspect nemotron-3") == ["nemotron-3-nano"]


def test_the_script_for_a_shell_can_be_shown() -> None:
    done = run_process(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0
    assert "complete -o default" in done.stdout
    assert "localcascade" in done.stdout
