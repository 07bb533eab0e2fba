"""One worker process, its imports, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localcascade.engine.client import Engine
from localcascade.engine.process import WorkerProcess, find_reason
from localcascade.errors import CascadeError, EngineDied
from tests.localcascade.asking import find_workers
from tests.localcascade.models import (
    write_model,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model.gguf", n_ctx_train=4096)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "load: 3 layers\nggml.c:12: GGML_ASSERT(a > 0) failed\n",
            "ggml.c:12: GGML_ASSERT(a > 0) failed",
        ),
        (
            "x\nterminate called\n  what():  bad_alloc\nFatal Python error: Aborted\n",
            "what():  bad_alloc",
        ),
        (
            "- kv 7: expert_errors.up\nreserve took 1.46 ms\nFatal Python error: Aborted\n",
            "",
        ),
        ("", ""),
    ],
)
def test_the_reason_of_a_death_is_a_line_that_speaks_of_trouble(log: str, reason: str) -> None:
    assert find_reason(log) == reason


CLIENT = """
import sys
from pathlib import Path
from localcascade.engine.client import Engine
from localcascade.prompt.events import ChatRequest, Delta, Sampling

def ask(n_tokens):
    request = ChatRequest(({"role": "user", "content": "x"},), thinking=False,
                          sampling=Sampling(temperature=0, max_tokens=n_tokens))
    return engine.chat(request)

engine = Engine(Path(sys.argv[1]), n_threads=1, n_ctx=100000)
"""


def start_client(path: Path, script: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT + script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_death_is_counted_before_it_is_known_and_leaves_its_log(is_wanted: bool) -> None:
    known: list[object] = []
    worker = WorkerProcess(on_death=lambda _error: known.append(worker.death))
    (process,) = [child for child in find_workers() if child.pid == worker.pid]
    if is_wanted:
        worker.kill("its template hangs")
    else:
        process.kill()
    with pytest.raises(EngineDied) as died:
        worker.ask("tokenize", text="x", parse_special=False)
    assert known == ([] if is_wanted else [None])
    assert died.value.message == (
        "the engine was ended: its template hangs" if is_wanted else "the engine was killed"
    )
    assert worker.read_log() == died.value.log_tail
    worker.stop()


def test_no_worker_outlives_a_killed_client(path: Path) -> None:
    script = "for event in ask(None):\n    isinstance(event, Delta) and print('on', flush=True)"
    with start_client(path, script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        (worker,) = find_workers(client.pid)
        client.kill()
        worker.wait()


def test_no_worker_outlives_a_client_whose_fork_holds_the_socket(path: Path) -> None:
    script = """
import os, signal
engine.load()
if os.fork() != 0:
    print("on", flush=True)
signal.pause()
"""
    with start_client(path, script, start_new_session=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        (worker,) = find_workers(client.pid)
        client.kill()
        worker.wait()
        os.killpg(client.pid, signal.SIGKILL)


def test_ctrl_c_reaches_only_the_client(path: Path) -> None:
    script = """
try:
    for event in ask(None):
        if isinstance(event, Delta):
            print("on", flush=True)
except KeyboardInterrupt:
    print("interrupted")
print(sum(isinstance(event, Delta) for event in ask(5)) > 0, engine.load().n_vocab)
engine.close()
"""
    with start_client(path, script, start_new_session=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        (worker,) = find_workers(client.pid)
        worker.send_signal(signal.SIGINT)  # from another terminal: ignored
        os.killpg(client.pid, signal.SIGINT)  # what Ctrl-C does
        rest = client.stdout.read().split("\n")
        assert client.wait() == 0
    assert rest[-3:] == ["interrupted", "True 265", ""]


def test_what_lies_in_the_working_directory_is_not_run(path: Path, tmp_path: Path) -> None:
    for name in ("json", "numpy", "llama_cpp", "jinja2", "psutil", "localcascade"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = CLIENT.replace("import sys", "import sys; sys.path.remove('')", 1)
    subprocess.run(
        [sys.executable, "-c", code + "engine.load(); engine.close()", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("client", ["llama_cpp", "numpy", "textual", "typer", "rich", "jinja2", "ctypes"]),
        ("worker", ["textual", "typer", "rich", "pydantic", "gguf", "quantize.convert"]),
    ],
)
def test_imports_no_more_than_it_needs(module: str, unwanted: list[str]) -> None:
    code = f"import json, sys, localcascade.engine.{module}; print(json.dumps([*sys.modules]))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, text=True
    )
    assert set(unwanted).isdisjoint(json.loads(ran.stdout.splitlines()[-1]))


def test_every_error_of_a_load_is_typed(tmp_path: Path) -> None:
    with Engine(tmp_path / "absent.gguf") as engine:
        with pytest.raises(CascadeError, match=r"absent\.gguf"):
            engine.load()
        with pytest.raises(CascadeError, match=r"absent\.gguf"):
            engine.tokenize("x")
