"""Options of loading: the same for every command, and what the engine is told of them."""

from __future__ import annotations

import importlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from localcascade.cli.app import run_arguments
from localcascade.cli.console import UsageError
from localcascade.cli.loading import Placement, Source, spread_options
from localcascade.cli.opening import Openings
from localcascade.engine import client
from localcascade.errors import CascadeError
from localcascade.history import History, ModelIdentity
from localcascade.prompt.events import ChatRequest, Delta, Failed
from tests.localcascade.openai_server import say, serve, stream

GIVEN = [
    "--ctx", "512", "--kv", "q8_0", "--threads", "3", "--gpu-layers", "0", "--cpu-experts", "0",
    "--flash", "--mlock", "--no-mmap",
]  # fmt: skip
SOURCE = Source(512, Placement("q8_0", 3, 0, 0, True, mlock=True, no_mmap=True))
TOLD = {
    "n_ctx": 512, "cache_type": "q8_0", "n_threads": 3, "n_gpu_layers": 0,
    "n_cpu_expert_layers": 0, "flash_attention": True, "use_mlock": True, "use_mmap": False,
}  # fmt: skip


def list_options(command: str) -> dict[str, Any]:
    """Every option of a command by its first flag: its other flags, its help and its default."""
    app = typer.Typer()
    app.command()(getattr(importlib.import_module(f"localcascade.cli.{command}"), command))
    params: list[Any] = get_command(app).params  # type: ignore[assignment]
    return {p.opts[0]: (p.opts, p.secondary_opts, p.help, p.default) for p in params}


def test_the_commands_that_open_a_model_take_the_same_options() -> None:
    run, chat, solve, bench = map(list_options, ("run", "chat", "solve", "bench"))
    flags = {word for word in GIVEN if word.startswith("--")} | {"--remote", "--remote-key"}
    for flag in flags:
        assert run[flag] == chat[flag] == solve[flag]
    for flag in flags - {"--ctx", "--remote", "--remote-key"}:
        assert bench[flag] == run[flag]


def test_only_what_differs_from_the_default_is_said_to_the_engine() -> None:
    assert Source().engine_options == {}
    assert SOURCE.engine_options == TOLD


@pytest.mark.parametrize("command", [["run", "./m.gguf", "hi"], ["solve", "hi", "-m", "./m.gguf"]])
def test_a_command_hands_them_to_the_engine(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    told: list[dict[str, Any]] = []

    def refuse(path: Path, **options: Any) -> None:
        told.append(options)
        raise CascadeError("enough")

    monkeypatch.setattr(client, "Engine", refuse)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    Path("m.gguf").touch()
    assert run_arguments([*command, *GIVEN]) == 1
    assert told[0].items() >= TOLD.items()


def test_so_does_the_chat(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Engine", lambda path, **options: options)
    Path("m.gguf").touch()
    with Openings.open(SOURCE) as openings:
        assert openings.begin("./m.gguf").engine.items() >= TOLD.items()  # type: ignore[attr-defined]


def test_a_server_loads_as_it_likes() -> None:
    for given in ({"ctx": 512}, {"placement": Placement(no_mmap=True)}):
        with pytest.raises(UsageError, match="the server chooses"):
            Source(remote="http://localhost:1", **given)  # type: ignore[arg-type]


def test_solve_asks_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with serve() as stub:
        stub.answer = lambda body: stream(say(r"It is \boxed{4}."))
        arguments = ["solve", "What is 2 + 2?", "-k", "1", "--remote", stub.url]
        assert run_arguments(arguments) == 0
        assert capsys.readouterr().out == "4\n"
        assert stub.bodies[0]["model"] == "stub"


@pytest.mark.parametrize(("model", "shown"), [(None, ""), ("-", ""), ("stub", "stub")])
def test_the_chat_asks_a_server(home: Path, model: str | None, shown: str) -> None:
    with serve() as stub, Openings.open(Source(remote=stub.url)) as openings:
        opening = openings.begin(model)
        assert opening.model == (shown or stub.url)
        events = list(opening.engine.chat(ChatRequest(({"role": "user", "content": "hi"},))))  # type: ignore[attr-defined]
        opening.engine.close()
        assert not [event for event in events if isinstance(event, Failed)]
        assert [e.text for e in events if isinstance(e, Delta)] == ["hello"]
        assert stub.bodies[0]["model"] == "stub"


def test_a_conversation_goes_on_with_the_model_of_its_server(home: Path) -> None:
    def keep(name: str, file: str) -> str:
        with History.open() as history:
            session = history.create_session("kept", ModelIdentity(name, file))
            history.append(session.id, None, "user", "hi")
        return session.id

    url = "http://localhost:1/v1"
    here, there = keep("tiny", "/models/tiny.gguf"), keep("large", url)
    with Openings.open(Source(remote=url)) as openings:
        assert openings.resume(here, None).model == url  # the first model of the server
        assert openings.resume(here, "small").model == "small"
        assert openings.begin(None).model == "small"
        assert openings.resume(there, None).model == "large"


@dataclass(frozen=True)
class Inner:
    flag: Annotated[bool, typer.Option("--flag")] = False


@dataclass(frozen=True)
class Outer:
    count: Annotated[int, typer.Option("--count", min=1)] = 2
    inner: Inner = Inner()


def test_a_group_of_options_stands_where_its_parameter_does() -> None:
    got: list[Any] = []

    @spread_options
    def command(name: str, *, outer: Outer, last: Annotated[int, typer.Option()] = 0) -> None:
        """Say something."""
        got.append((name, outer, last))

    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Say something." in shown
    assert shown.index("--count") < shown.index("--flag") < shown.index("--last")
    assert CliRunner().invoke(app, ["x", "--flag", "--last", "7"]).exit_code == 0
    assert CliRunner().invoke(app, ["x", "--count", "0"]).exit_code == 2
    assert got == [("x", Outer(2, Inner(flag=True)), 7)]
