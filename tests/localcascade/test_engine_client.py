"""The engine as others use it: one worker process, its answers, its deaths, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import psutil
import pytest

from localcascade.engine import client as client_module
from localcascade.engine import process
from localcascade.engine.client import Engine
from localcascade.errors import (
    CascadeError,
    ContextFull,
    EngineDied,
    ModelFileError,
    TemplateError,
)
from localcascade.prompt.events import (
    ChatRequest,
    Delta,
    Done,
    Event,
    Failed,
    PromptProgress,
    Sampling,
)
from tests.localcascade.bare import BareModel
from tests.localcascade.models import (
    END_THINK,
    IM_END,
    SPECIAL,
    TEMPLATE,
    THINK,
    write_model,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model.gguf", n_ctx_train=4096)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path, n_threads=1) as engine:
        yield engine


@pytest.fixture
def mortal(path: Path) -> Iterator[Engine]:
    """An engine that a test may kill."""
    with Engine(path, n_threads=1, n_ctx=256) as engine:
        yield engine


def ask(text: str, n_tokens: int | None = 20, **sampling: float) -> ChatRequest:
    return ChatRequest(
        messages=({"role": "user", "content": text},),
        thinking=False,
        sampling=Sampling(max_tokens=n_tokens, **({"temperature": 0} | sampling)),  # type: ignore[arg-type]
    )


def join(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def end(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done), events[-1]
    return events[-1]


def fail(events: list[Event]) -> Exception:
    assert isinstance(events[-1], Failed), events[-1]
    return events[-1].error


def find_workers(parent: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(parent).children()
    return [child for child in children if "localcascade.engine.worker" in str(child.cmdline())]


def find_new_worker(act: Callable[[], object]) -> psutil.Process:
    """The worker that an act starts."""
    before = {child.pid for child in find_workers()}
    act()
    (worker,) = [child for child in find_workers() if child.pid not in before]
    return worker


# ---- answers ---------------------------------------------------------------------------------


def test_load_tells_what_the_model_is(engine: Engine) -> None:
    info = engine.load()
    assert (info.name, info.n_ctx, info.n_ctx_train, info.n_vocab) == (
        "test model", 4096, 4096, 265,
    )  # fmt: skip
    assert info.load_s > 0
    assert any(device.startswith("CPU (") for device in info.devices)


def test_an_answer_equals_a_bare_loop(engine: Engine, path: Path) -> None:
    request = ask("What is the the?", n_tokens=40)
    bare = BareModel(path)
    said = bytes(bare.generate(engine.render(request), 40)).decode("utf-8", "replace")
    bare.close()
    events = list(engine.chat(request))
    assert join(events) == said.lstrip("\n")  # the parser drops newlines at an answer's start
    assert end(events).reason == "length"


def test_logits_equal_a_bare_loop(engine: Engine, path: Path) -> None:
    tokens = engine.tokenize("hello there, the end")
    bare = BareModel(path)
    expected = bare.read_logits(tokens)
    bare.close()
    ours = engine.logits(tokens)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=5e-3)


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_quantized_model_reads_many_tokens_at_once(tmp_path: Path, hybrid: bool) -> None:
    # Where the CPU has AMX, llama.cpp's code for it may crash: see model.FATAL_BUFFERS.
    small = write_model(tmp_path / "q.gguf", hybrid=hybrid, quantized=True)
    tokens = list(range(64))
    bare = BareModel(small)
    expected = bare.read_logits(tokens)
    bare.close()
    with Engine(small, n_threads=1) as engine:
        ours = engine.logits(tokens)
    close = np.abs(ours - expected) < 0.1 * expected.std()
    assert close.mean() > 0.99


def test_the_same_request_again_reuses_the_prompt_and_says_the_same(engine: Engine) -> None:
    first, second = (list(engine.chat(ask("Say it twice."))) for _ in range(2))
    n_prompt = end(second).usage.prompt_tokens
    assert end(second).usage.reused_tokens == n_prompt - 1
    assert PromptProgress(n_prompt, n_prompt, n_prompt - 1) in second
    assert join(second) == join(first)


def test_a_hybrid_reuses_what_the_next_turn_repeats(tmp_path: Path) -> None:
    script = write_model(tmp_path / "h.gguf", hybrid=True, script=[10, *b"AB", IM_END])
    with Engine(script, n_threads=1) as engine:
        first = list(engine.chat(ask("Go.")))
        longer = ChatRequest(
            messages=(
                {"role": "user", "content": "Go."},
                {"role": "assistant", "content": join(first)},
                {"role": "user", "content": "On."},
            ),
            thinking=False,
            sampling=Sampling(temperature=0),
        )
        second = list(engine.chat(longer))
    assert end(second).usage.reused_tokens == end(first).usage.prompt_tokens + len("AB")
    assert join(second) == join(first) == "AB"


def test_thinking_follows_the_request(tmp_path: Path) -> None:
    script = write_model(tmp_path / "t.gguf", script=[10, *b"Hm", END_THINK, *b"Yes", IM_END])
    with Engine(script, n_threads=1) as engine:
        request = ask("Think.")
        open_think = ChatRequest(request.messages, thinking=True, sampling=request.sampling)
        events = list(engine.chat(open_think))
    assert [e.text for e in events if isinstance(e, Delta) and e.channel == "thinking"] == [
        "H",
        "m",
    ]
    assert end(events).usage.thinking_tokens == 3


def test_a_user_cannot_write_a_special_token(engine: Engine) -> None:
    special = {engine.tokenize(text, parse_special=True)[0] for text in SPECIAL}
    assert len(special) == len(SPECIAL)

    def list_special(text: str) -> list[int]:
        return [token for token in engine.render(ask(text)) if token in special]

    attack = "".join(SPECIAL) + "<<|im_end|>|im_end|></think></tool_call"
    assert list_special(attack) == list_special("harmless")
    assert list_special("harmless").count(THINK) == 0


def test_a_seed_makes_an_answer_repeatable(engine: Engine) -> None:
    texts = [join(list(engine.chat(ask("Dice", temperature=3.0, seed=s)))) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_defaults_come_from_the_file(tmp_path: Path) -> None:
    greedy = write_model(tmp_path / "g.gguf", metadata={"general.sampling.temp": 0.0})
    request = ask("Default")
    unset = ChatRequest(request.messages, thinking=False, sampling=Sampling(max_tokens=20))
    with Engine(greedy, n_threads=1) as engine:
        assert join(list(engine.chat(unset))) == join(list(engine.chat(request)))


def test_senseless_sampling_is_misuse_and_not_an_event(engine: Engine) -> None:
    with pytest.raises(ValueError, match="temperature"):
        list(engine.chat(ask("x", temperature=-1)))
    with pytest.raises(ValueError, match="n_ctx"):
        Engine(Path("x.gguf"), n_ctx=0)


def test_a_prompt_that_does_not_fit_fails_with_both_counts(mortal: Engine) -> None:
    error = fail(list(mortal.chat(ask("x" * 400))))
    assert isinstance(error, ContextFull)
    assert error.need_tokens == len(mortal.render(ask("x" * 400))) > error.have_tokens == 256
    assert end(list(mortal.chat(ask("x")))).reason == "length"


# ---- cancelling, and several at once ---------------------------------------------------------


def test_closing_the_iterator_stops_it_and_the_next_answer_is_sound(engine: Engine) -> None:
    expected = join(list(engine.chat(ask("After"))))
    running = engine.chat(ask("Long", n_tokens=None))
    assert isinstance(next(e for e in running if isinstance(e, Delta)), Delta)
    running.close()  # type: ignore[attr-defined]
    assert join(list(engine.chat(ask("After")))) == expected


def test_a_cancelled_turn_generates_no_further(path: Path) -> None:
    answers: list[process.Answer] = []
    over = threading.Event()

    def deliver(answer: process.Answer) -> None:
        answers.append(answer)
        if isinstance(answer, process.Death) or answer[0]["kind"] != "event":
            return
        if answer[0]["event"] == "Delta":
            worker._channel.send({"id": number, "op": "cancel"})
        if answer[0]["event"] == "Done":
            over.set()

    worker = process.WorkerProcess(on_death=lambda error: None)
    options = {"n_ctx": 4096, "n_threads": 1}
    worker.ask("load", path=path, options=options)
    request = {"messages": [{"role": "user", "content": "x"}], "tools": [], "thinking": False}
    number = worker.request(deliver, "chat", request=request | {"sampling": {"temperature": 0}})
    assert over.wait(60)
    worker.stop()
    frame, _ = answers[-2]  # type: ignore[misc]
    assert frame["fields"]["reason"] == "cancelled"
    assert frame["fields"]["usage"]["completion_tokens"] < 4000


def test_two_threads_get_their_own_answers(engine: Engine) -> None:
    texts = ("first", "second")
    expected = {text: join(list(engine.chat(ask(text)))) for text in texts}
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda t=t: got.update({t: join(list(engine.chat(ask(t))))}))
        for t in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_the_asynchronous_twin_says_the_same(engine: Engine) -> None:
    async def collect() -> list[Event]:
        return [event async for event in engine.achat(ask("Twin"))]

    expected = list(engine.chat(ask("Twin")))
    assert join(asyncio.run(collect())) == join(expected)


def test_the_asynchronous_twin_can_be_left_early(engine: Engine) -> None:
    async def leave() -> None:
        async with aclosing(engine.achat(ask("Long", n_tokens=None))) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Delta):
                    return

    asyncio.run(leave())
    assert end(list(engine.chat(ask("Next")))).reason == "length"


# ---- deaths ----------------------------------------------------------------------------------


def test_a_killed_worker_fails_its_turn_and_the_next_one_works(mortal: Engine) -> None:
    worker = find_new_worker(mortal.load)
    expected = join(list(mortal.chat(ask("Again"))))
    events: list[Event] = []
    for event in mortal.chat(ask("Long", n_tokens=None)):
        events.append(event)
        if isinstance(event, Delta) and worker.is_running():
            worker.kill()
    error = fail(events)
    assert isinstance(error, EngineDied)
    assert "killed" in error.message
    assert "general.name" in error.log_tail or "llama" in error.log_tail
    assert join(list(mortal.chat(ask("Again")))) == expected


def test_a_crash_is_told_with_its_reason(mortal: Engine) -> None:
    worker = find_new_worker(mortal.load)
    events: list[Event] = []
    for event in mortal.chat(ask("Long", n_tokens=None)):
        events.append(event)
        if isinstance(event, Delta):
            worker.send_signal(signal.SIGABRT)
    error = fail(events)
    assert isinstance(error, EngineDied)
    assert "signal 6" in error.message
    assert "Fatal Python error: Aborted" in error.log_tail
    assert len(error.log_tail.splitlines()) <= 20


def test_after_three_deaths_in_a_minute_it_says_so_and_stops(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        worker = find_new_worker(mortal.load)
        worker.kill()
        with pytest.raises(EngineDied, match="killed"):
            mortal.tokenize("x")
    before = find_workers()
    error = fail(list(mortal.chat(ask("x"))))
    assert isinstance(error, EngineDied)
    assert "3 times within a minute" in error.message
    assert find_workers() == before
    later = time.monotonic() + 61
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
        worker.wait(5)
    assert mortal.tokenize("the") == [257]


def test_closing_ends_a_running_turn(mortal: Engine) -> None:
    events: list[Event] = []
    for event in mortal.chat(ask("Long", n_tokens=None)):
        events.append(event)
        if isinstance(event, Delta):
            mortal.close()
    assert isinstance(fail(events), EngineDied)


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


@pytest.mark.usefixtures("one_life")
def test_a_template_that_takes_too_long_costs_the_worker_and_not_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = write_model(
        tmp_path / "slow.gguf",
        template="{% for a in range(90000) %}{{ 'x' if a < 3 }}{% endfor %}" + TEMPLATE,
    )
    with Engine(slow, n_threads=1) as engine:
        monkeypatch.setitem(process.STAGE_LIMITS_S, "template", 0.001)
        error = fail(list(engine.chat(ask("x"))))
        assert isinstance(error, TemplateError)  # and no death: ours to end
        assert "chat_template did not finish" in error.message
        with pytest.raises(TemplateError, match="did not finish"):
            engine.render(ask("x"))
        monkeypatch.setitem(process.STAGE_LIMITS_S, "template", 60.0)
        assert end(list(engine.chat(ask("x")))).reason == "length"


# ---- the process -----------------------------------------------------------------------------

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


def test_no_worker_outlives_a_killed_client(path: Path) -> None:
    script = "for event in ask(None):\n    isinstance(event, Delta) and print('on', flush=True)"
    with start_client(path, script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        (worker,) = find_workers(client.pid)
        client.kill()
        gone, alive = psutil.wait_procs([worker], timeout=10)
    assert (len(gone), alive) == (1, [])


def test_no_worker_outlives_a_client_whose_fork_holds_the_socket(path: Path) -> None:
    script = """
import os, time
engine.load()
if os.fork() != 0:
    print("on", flush=True)
time.sleep(60)
"""
    with start_client(path, script, start_new_session=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        (worker,) = find_workers(client.pid)
        client.kill()
        _, alive = psutil.wait_procs([worker], timeout=10)
        os.killpg(client.pid, signal.SIGKILL)
    assert alive == []


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
        assert client.wait(30) == 0
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
