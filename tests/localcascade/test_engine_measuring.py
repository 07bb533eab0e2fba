"""Speed tests: what is timed, and what a test leaves behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from localcascade.engine import _llama
from localcascade.engine.client import Engine
from localcascade.engine.measuring import measure_speed
from localcascade.engine.wire import LoadOptions, SpeedTest
from localcascade.errors import ContextFull
from tests.localcascade.asking import ask, join
from tests.localcascade.local_engine import load
from tests.localcascade.models import write_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("speed") / "m.gguf", hybrid=True)


def test_the_prompt_is_read_in_batches_and_the_rest_one_by_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(path, LoadOptions(n_threads=1, n_batch=64))
    sizes: list[int] = []
    decode = model.batch.decode

    def note(context: _llama.ContextHandle) -> bool:
        sizes.append(model.batch.n_tokens)
        return decode(context)

    monkeypatch.setattr(model.batch, "decode", note)
    seconds = list(measure_speed(model, SpeedTest(100, 3, depth=70, n_repetitions=2)))
    warm_up, depth, once = [64], [64, 6], [64, 36, 1, 1, 1]
    assert sizes == [*warm_up, *depth, *once, *once]
    assert len(seconds) == 2


def test_only_decoding_is_timed(path: Path) -> None:
    model = load(path, LoadOptions(n_threads=1, n_batch=64))
    ticks = itertools.count()
    # Each decode takes one tick of this clock: two for the prompt, five after it.
    test = SpeedTest(128, 5, n_repetitions=1)
    assert list(measure_speed(model, test, lambda: next(ticks))) == [7]


@pytest.mark.parametrize(
    ("test", "error"),
    [
        (SpeedTest(0, 0), ValueError),
        (SpeedTest(8, -1), ValueError),
        (SpeedTest(8, 0, n_repetitions=0), ValueError),
        (SpeedTest(400, 0, depth=200), ContextFull),
    ],
)
def test_what_cannot_be_timed_is_refused(
    path: Path, test: SpeedTest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(measure_speed(load(path), test))


def test_a_chat_is_not_disturbed_by_a_measurement(path: Path) -> None:
    with Engine(path, n_threads=1, flash_attention=False) as engine:
        before = join(list(engine.chat(ask("hello"))))
        heard: list[int] = []
        measured = engine.measure(SpeedTest(32, 2, n_repetitions=3), heard.append)
        assert join(list(engine.chat(ask("hello")))) == before
    assert heard == [1, 2, 3]
    assert len(measured.elapsed_s) == 3
    assert measured.peak_bytes > path.stat().st_size
