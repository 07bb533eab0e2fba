"""What happens to an engine when its worker dies, or its file is bad."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from localcascade.engine import client as client_module
from localcascade.engine import process
from localcascade.engine.client import Engine
from localcascade.errors import EngineDied, ModelFileError, TemplateError
from localcascade.prompt.events import Delta, Event
from tests.localcascade.asking import ask, end, fail, find_new_worker, find_workers, join
from tests.localcascade.models import write_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model.gguf", n_ctx_train=4096)


@pytest.fixture
def mortal(path: Path) -> Iterator[Engine]:
    """An engine that a test may kill; an answer without a limit takes it many minutes."""
    with Engine(path, n_threads=1, n_ctx=1 << 16) as engine:
        yield engine


def interrupt(chat: Iterator[Event], act: Callable[[], object]) -> Iterator[Event]:
    """Act at the first word, once: a worker that is ending may be gone at the next moment."""
    for event in chat:
        yield event
        if isinstance(event, Delta):
            act()
            break
    yield from chat


def test_a_killed_worker_fails_its_turn_and_the_next_one_works(mortal: Engine) -> None:
    worker = find_new_worker(mortal.load)
    expected = join(list(mortal.chat(ask("Again"))))
    error = fail(list(interrupt(mortal.chat(ask("Long", n_tokens=None)), worker.kill)))
    assert isinstance(error, EngineDied)
    assert "killed" in error.message
    assert "general.name" in error.log_tail or "llama" in error.log_tail
    assert join(list(mortal.chat(ask("Again")))) == expected


def test_a_crash_is_told_with_its_reason(mortal: Engine) -> None:
    worker = find_new_worker(mortal.load)
    abort = partial(worker.send_signal, signal.SIGABRT)
    error = fail(list(interrupt(mortal.chat(ask("Long", n_tokens=None)), abort)))
    assert isinstance(error, EngineDied)
    assert "signal 6" in error.message
    assert "Fatal Python error: Aborted" in error.log_tail
    assert len(error.log_tail.splitlines()) <= 20


def test_the_asynchronous_twin_hears_of_a_death_too(mortal: Engine) -> None:
    worker = find_new_worker(mortal.load)

    async def collect() -> list[Event]:
        events: list[Event] = []
        async for event in mortal.achat(ask("Long", n_tokens=None)):
            if isinstance(event, Delta) and not any(isinstance(one, Delta) for one in events):
                worker.kill()
            events.append(event)
        return events

    error = fail(asyncio.run(collect()))
    assert isinstance(error, EngineDied)
    assert "killed" in error.message and error.log_tail
    assert mortal.tokenize("the") == [257]


def test_after_three_deaths_in_a_minute_it_says_so_and_stops(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "DEATH_WINDOW_S", 3600)  # to die takes a busy machine longer
    n_files, errors = psutil.Process().num_fds(), []
    for _ in range(3):
        worker = find_new_worker(mortal.load)
        errors += list(interrupt(mortal.chat(ask("Long", n_tokens=None)), worker.kill))[-1:]
        assert isinstance(fail(errors), EngineDied)
    assert psutil.Process().num_fds() == n_files, "who keeps an error keeps no file open"
    before = find_workers()
    error = fail(list(mortal.chat(ask("x"))))
    assert isinstance(error, EngineDied)
    assert "3 times within a minute" in error.message
    assert find_workers() == before
    later = time.monotonic() + 3601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert mortal.tokenize("the") == [257]


@pytest.fixture
def one_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a single death stop an engine, so that few starts tell whether one was counted."""
    monkeypatch.setattr(client_module, "MAX_DEATHS", 1)


@pytest.mark.usefixtures("one_life")
def test_a_closed_engine_starts_again_when_asked(mortal: Engine) -> None:
    for _ in range(2):  # being closed is no death
        worker = find_new_worker(mortal.load)
        mortal.close()
        worker.wait()
    assert mortal.tokenize("the") == [257]


def test_closing_ends_a_running_turn(mortal: Engine) -> None:
    error = fail(list(interrupt(mortal.chat(ask("Long", n_tokens=None)), mortal.close)))
    assert isinstance(error, EngineDied) and error.message == "the engine was closed"


def test_closing_ends_a_load_that_hangs(mortal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = "import threading; threading.Event().wait()  # localcascade.engine.worker"
    monkeypatch.setattr(process, "_BOOT", hanging)
    before = find_workers()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(mortal.load)
        while find_workers() == before:
            assert not loading.done()
        mortal.close()
        with pytest.raises(EngineDied, match="closed"):
            loading.result()


# ---- bad files -------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_life")
def test_a_file_that_llama_refuses_is_an_error_and_no_death(tmp_path: Path) -> None:
    odd = write_model(tmp_path / "odd.gguf", metadata={"llama.feed_forward_length": 96})
    with Engine(odd) as engine:
        for _ in range(2):
            error = fail(list(engine.chat(ask("x"))))
            assert isinstance(error, ModelFileError)
            assert "ffn_" in error.message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error(path: Path, tmp_path: Path, share: float) -> None:
    data = path.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(data[: int(share * len(data))])
    with Engine(short) as engine, pytest.raises(ModelFileError, match=r"short\.gguf"):
        engine.load()


def test_a_hostile_value_never_reaches_the_worker(tmp_path: Path) -> None:
    deep = write_model(tmp_path / "deep.gguf", metadata={"llama.block_count": 10**6})
    before = find_workers()
    with Engine(deep) as engine, pytest.raises(ModelFileError, match="block_count"):
        engine.load()
    assert find_workers() == before


def test_an_architecture_nobody_knows_is_told_in_llamas_words(tmp_path: Path) -> None:
    alien = write_model(tmp_path / "alien.gguf")
    alien.write_bytes(alien.read_bytes().replace(b"llama", b"lorem"))
    with Engine(alien) as engine, pytest.raises(ModelFileError, match=r"architecture.*lorem"):
        engine.load()


def test_a_file_without_a_template_computes_but_cannot_chat(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", template="")
    with Engine(base, n_threads=1) as engine:
        assert engine.logits([1, 2]).shape == (2, 265)
        error = fail(list(engine.chat(ask("x"))))
    assert isinstance(error, TemplateError)
    assert "no chat template" in error.message


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{% nonsense %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_hostile_template_fails_and_the_engine_lives(tmp_path: Path, template: str) -> None:
    hostile = write_model(tmp_path / "hostile.gguf", template=template)
    with Engine(hostile, n_threads=1) as engine:
        worker = find_new_worker(engine.load)
        assert isinstance(fail(list(engine.chat(ask("x")))), TemplateError)
        assert engine.tokenize("the") == [257]
        assert worker.is_running()


HANG_ASKED = """
import threading
from localcascade.engine.composer import Composer
Composer._render = lambda *_: threading.Event().wait()
"""
HANG_AHEAD = """
import threading
from localcascade.engine import composer, patience
composer.Template = lambda *_: threading.Event().wait()
patience.MOST_S, patience.CHECK_S = 0.05, 0.01
"""


def let_hang(patch: pytest.MonkeyPatch, code: str) -> None:
    """Begin workers with this code. No template of a file gets so far: its steps are counted."""
    patch.setattr(process, "_BOOT", process._BOOT.replace("; main()", f"\n{code}\nmain()"))


@pytest.mark.usefixtures("one_life")
def test_a_template_that_hangs_costs_the_worker_and_not_the_client(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        let_hang(patch, HANG_ASKED)
        patch.setitem(process.STAGE_LIMITS_S, "template", 0.001)
        error = fail(list(mortal.chat(ask("x"))))
        assert isinstance(error, TemplateError)  # and no death: ours to end
        assert "chat_template did not finish" in error.message
        with pytest.raises(TemplateError, match="did not finish"):
            mortal.render(ask("x"))
    assert end(list(mortal.chat(ask("x")))).reason == "length"


def test_a_template_that_hangs_ahead_of_a_request_is_a_death(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_hang(monkeypatch, HANG_AHEAD)
    with pytest.raises(EngineDied, match="the chat template took over"):
        mortal.tokenize("x")
