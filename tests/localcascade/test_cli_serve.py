"""`localcascade serve`: what it says, how it ends, and the whole chain on 127.0.0.1."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from localcascade.cli.app import run_arguments
from localcascade.server.listener import bind
from quantize.convert import quantize_checkpoint
from tests.localcascade.asking import find_workers
from tests.localcascade.models import write_model
from tests.localcascade.openai_server import Stub
from tests.localcascade.openai_server import serve as serve_stub
from tests.quantize.models import TINY

QUESTION = "What is 347 + 586?"
SUM = "347 + 586 = 933"
KEY = "a-secret"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    quantize_checkpoint(TINY, path, "q8_0", n_threads=1, name="tiny")
    return path


class Serving:
    """The command in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.process = process
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        told = json.loads(line)
        self.url, self.model = told["url"], told["model"]

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; the exit code and all of stderr."""
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


@contextmanager
def start(*arguments: str, **variables: str) -> Iterator[Serving]:
    command = [sys.executable, "-m", "localcascade", "serve", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | variables,
    ) as process:  # fmt: skip
        try:
            yield Serving(process)
        finally:
            process.kill()


def ask(capsys: Any, *arguments: str) -> tuple[int, str]:
    code = run_arguments(["run", *arguments, "--temperature", "0", "--no-log", "--hide-thinking"])
    return code, capsys.readouterr().out


def test_the_whole_chain(
    home: Path, tiny: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve; serve --remote before it; run --remote and OpenAI's client before either."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    options = ("--ctx", "512", "--threads", "1", "--api-key", KEY, "--verbose")
    with start(str(tiny), *options) as near:
        assert near.model == "tiny"
        remote = ("--remote", near.url, "--remote-key", KEY)
        with start("-", *remote) as far:
            assert far.model == "tiny"
            assert ask(capsys, "tiny", QUESTION, *remote) == (0, f"{SUM}\n")
            assert ask(capsys, "-", QUESTION, "--remote", far.url) == (0, f"{SUM}\n")
            client = openai.OpenAI(base_url=far.url, api_key="any")
            message: Any = {"role": "user", "content": QUESTION}
            stream = client.chat.completions.create(
                model="tiny", messages=[message], temperature=0, stream=True
            )
            assert "".join(c.choices[0].delta.content or "" for c in stream) == SUM
            code, err = far.interrupt()
            assert code == 130 and "tiny is at http://127.0.0.1:" in err
        (worker,) = find_workers(near.process.pid)
        code, err = near.interrupt()
        assert code == 130 and not worker.is_running()
    lines = err.splitlines()
    assert "(512 tokens of context, shared by 4 requests at once)" in lines[0]
    assert lines[-1].startswith("POST /v1/chat/completions 200 ")
    assert not any(words in err for words in (QUESTION, SUM, KEY, "Traceback"))


def test_ctrl_c_does_not_wait_for_an_answer(home: Path) -> None:
    """A model that never stops is told to, and so is the one who listens."""
    path = write_model(home / "endless.gguf", n_ctx_train=1 << 17)
    with start(str(path), "--ctx", "65536", "--threads", "1") as serving:
        body = {"messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        url = f"{serving.url}/chat/completions"
        with httpx2.stream("POST", url, json=body, trust_env=False, timeout=120) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            serving.process.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-1]
        _, err = serving.process.communicate(timeout=120)
        assert serving.process.returncode == 130
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert "Traceback" not in err and "error" not in err


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve_stub() as stub:
        yield stub


def run(capsys: Any, *arguments: str) -> tuple[int, str]:
    code = run_arguments(["serve", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_misuse_has_its_exit_code_and_a_hint(home: Path, stub: Stub, capsys: Any) -> None:
    cases: list[tuple[int, str, tuple[str, ...]]] = [
        (3, "nothing", ("nothing", "--port", "0")),
        (2, "--api-key", ("m", "--api-key", " ")),
        (2, "--port", ("m", "--port", "70000")),
        (2, "--parallel", ("-", "--port", "0", "--remote", stub.url, "--parallel", "2")),
        (2, "--remote", ("-", "--port", "0", "--remote", stub.url, "--ctx", "9")),
        (3, "other", ("other", "--port", "0", "--remote", stub.url)),
        (1, "no address of this machine", ("m", "--host", "192.0.2.1", "--port", "0")),
    ]
    for wanted, words, arguments in cases:
        code, err = run(capsys, *arguments)
        assert (code, err.count("error: "), err.count("hint: ")) == (wanted, 1, 1), err
        assert words in err


def test_a_port_that_is_taken(home: Path, capsys: Any) -> None:
    taken = bind("127.0.0.1", 0)
    with taken.socket:
        taken.socket.listen()
        code, err = run(capsys, "tiny", "--port", str(taken.port))
    assert code == 1
    assert f"port {taken.port} of 127.0.0.1 is taken" in err and "--port 0" in err


def test_offline_it_serves_this_machine_only(home: Path, capsys: Any) -> None:
    code = run_arguments(["--offline", "serve", "tiny", "--host", "0.0.0.0", "--port", "0"])
    assert code == 6
    assert "--host 0.0.0.0" in capsys.readouterr().err


def test_an_open_door_is_warned_of(home: Path, tiny: Path) -> None:
    with start(str(tiny), "--ctx", "256", "--host", "0.0.0.0") as serving:
        assert serving.url.startswith("http://localhost:")
        _, err = serving.interrupt()
    assert "note: there is no key" in err
    with start(str(tiny), "--ctx", "256", "--host", "0.0.0.0", LOCALCASCADE_API_KEY=KEY) as serving:
        answer = httpx2.get(f"{serving.url}/models", trust_env=False, timeout=120)
        assert answer.status_code == 401
        _, err = serving.interrupt()
    assert "note:" not in err and "Authorization: Bearer KEY" in err and KEY not in err


PROBE = """
import sys
from localcascade.cli.app import run_arguments
code = run_arguments(sys.argv[1:])
print(code, *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["ls"], ["models"], ["run", "--help"]])
def test_nothing_else_imports_a_server(home: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stderr.splitlines()[-1].split()
    assert code == "0"
    assert {"starlette", "uvicorn", "anyio"} & set(modules) == set()
