"""Ranges of a remote file: what is sent, how long is waited, and that nothing is asked twice."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import pytest

from localcascade.download.patience import Patience, parse_retry_after
from localcascade.download.ranges import Connections, RemoteFile
from localcascade.errors import DownloadError, OfflineError
from tests.hub import Fault, Hub, serve_hub, sha256

HASTY = Patience(connect_s=120, read_s=120, n_retries=3, first_wait_s=0.001, longest_wait_s=0.01)
DATA = random.Random(7).randbytes(300_000)


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them takes longer than a test, and nothing here speaks TLS."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.push("org/model", {"model.safetensors": DATA, "config.json": b"{}" * 500})
        yield running


def make_url(hub: Hub, path: str = "model.safetensors") -> str:
    return f"{hub.endpoint}/org/model/resolve/main/{path}"


def read(file: RemoteFile, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    file.read(start, memoryview(buffer))
    return bytes(buffer)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub) -> None:
    hub.repos["org/model"].gated_to = {"hf_secret"}
    with Connections("hf_secret", HASTY) as connections:
        file = RemoteFile(connections, make_url(hub), len(DATA), sha256(DATA))
        assert read(file, 10, 20) == DATA[10:20]
    sent = {(entry.port, entry.authorization) for entry in hub.served}
    assert sent == {(hub.ports[0], "Bearer hf_secret"), (hub.ports[1], "")}


@pytest.mark.parametrize(("token", "step"), [(None, "HF_TOKEN"), ("hf_other", "accept the terms")])
def test_a_gated_file_is_explained_with_the_next_step(
    token: str | None, step: str, hub: Hub
) -> None:
    hub.repos["org/model"].gated_to = {"hf_secret"}
    with Connections(token, HASTY) as connections, pytest.raises(DownloadError) as caught:
        read(RemoteFile(connections, make_url(hub), len(DATA)), 0, 5)
    assert step in caught.value.hint and f"{hub.endpoint}/org/model" in caught.value.hint
    assert "hf_other" not in caught.value.message + caught.value.hint


def test_the_hub_is_asked_once_where_a_file_is(hub: Hub) -> None:
    with Connections(None, HASTY) as connections:
        file = RemoteFile(connections, make_url(hub), len(DATA))
        for start in range(0, 100_000, 10_000):
            read(file, start, start + 10_000)
    ports = [entry.port for entry in hub.served]
    assert (ports.count(hub.ports[0]), ports.count(hub.ports[1])) == (1, 10)


def test_an_expired_address_is_asked_for_again(hub: Hub) -> None:
    with Connections(None, HASTY) as connections:
        file = RemoteFile(connections, make_url(hub), len(DATA))
        read(file, 0, 10)
        hub.faults.append(Fault("expired"))
        assert read(file, 10, 20) == DATA[10:20]
    assert [entry.port for entry in hub.served] == [hub.ports[i] for i in (0, 1, 1, 0, 1)]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_broken_answer_goes_on_where_it_stopped(kind: str, hub: Hub) -> None:
    hub.send_bytes = 10_000
    hub.faults.append(Fault(kind))
    with Connections(None, HASTY) as connections:
        assert read(RemoteFile(connections, make_url(hub), len(DATA)), 0, len(DATA)) == DATA
    second = hub.served[-1]
    assert second.fault == "" and second.range == f"bytes={second.start}-{len(DATA) - 1}"
    # A reset may lose what was on its way; what had arrived is not asked for again.
    assert second.start == len(DATA) // 2 if kind == "cut" else second.start <= len(DATA) // 2


def test_retry_after_is_honoured(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Connections, "wait", lambda _self, wait_s: waits.append(wait_s))
    hub.faults += [Fault("429", retry_after="7"), Fault("503", retry_after="11"), Fault("503")]
    with Connections(None, HASTY) as connections:
        assert read(RemoteFile(connections, make_url(hub), len(DATA)), 0, 9) == DATA[:9]
    assert [wait_s for wait_s in waits if wait_s >= 1] == [7, 11]
    assert len([wait_s for wait_s in waits if 0 < wait_s < 1]) == 1


def test_who_asks_for_too_long_a_wait_is_not_waited_for(hub: Hub) -> None:
    hub.faults.append(Fault("429", retry_after="86400"))
    with Connections(None, HASTY) as connections, pytest.raises(DownloadError) as caught:
        read(RemoteFile(connections, make_url(hub), len(DATA)), 0, 9)
    assert "Wait 86400 seconds" in caught.value.hint
    assert [entry.fault for entry in hub.served] == ["", "429"]


def test_attempts_are_counted(hub: Hub) -> None:
    hub.faults.append(Fault("503", n_times=-1))
    with Connections(None, HASTY) as connections, pytest.raises(DownloadError) as caught:
        read(RemoteFile(connections, make_url(hub), len(DATA)), 100, 200)
    assert "byte 100: status 503; attempts: 4" in caught.value.message


def test_stopping_ends_a_read_that_hangs(hub: Hub) -> None:
    hub.faults.append(Fault("stall", n_times=-1))
    patience = replace(HASTY, read_s=600)
    with Connections(None, patience) as connections, ThreadPoolExecutor(1) as pool:
        file = RemoteFile(connections, make_url(hub), len(DATA))
        arrived = threading.Event()
        buffer = memoryview(bytearray(len(DATA)))
        reading = pool.submit(file.read, 0, buffer, lambda _n_bytes: arrived.set())
        assert arrived.wait(120)
        time.sleep(0.05)
        connections.stop()
        with pytest.raises(DownloadError, match="stopped"):
            reading.result(timeout=120)


def test_many_threads_read_one_file(hub: Hub) -> None:
    with Connections(None, HASTY) as connections, ThreadPoolExecutor(8) as pool:
        file = RemoteFile(connections, make_url(hub), len(DATA))
        hub.faults += [Fault("503"), Fault("reset"), Fault("hang up")]
        starts = range(0, len(DATA), 10_000)
        parts = pool.map(lambda start: read(file, start, min(start + 10_000, len(DATA))), starts)
        assert b"".join(parts) == DATA


@pytest.mark.parametrize(("offset", "n_bytes"), [(-1, 2), (0, 300_001), (300_000, 1)])
def test_a_range_outside_the_file_is_misuse(offset: int, n_bytes: int, hub: Hub) -> None:
    with Connections(None, HASTY) as connections, pytest.raises(ValueError, match="no bytes"):
        file = RemoteFile(connections, make_url(hub), len(DATA))
        file.read(offset, memoryview(bytearray(n_bytes)))
    assert hub.served == []


def test_a_redirect_never_gives_up_encryption() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.scheme == "https"
        return httpx2.Response(302, headers={"Location": "http://elsewhere.example/x"})

    with Connections("hf_secret", HASTY) as connections:
        connections.client = httpx2.Client(transport=httpx2.MockTransport(answer))
        with pytest.raises(DownloadError, match="without encryption"):
            read(RemoteFile(connections, "https://hub.example/x", 100), 0, 10)


def test_offline_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "1")
    with pytest.raises(OfflineError):
        Connections(None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("120", 120), (" 7 ", 7), ("9" * 40, 999_999_999),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10), ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("", None), ("soon", None), ("-1", None), ("1.5", None), ("٣", None),
        ("Wed, 99 Oct 2015 07:28:10 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_the_standard_says(text: str, seconds: float | None) -> None:
    at_s = 1445412480.0  # Wed, 21 Oct 2015 07:28:00 GMT
    assert parse_retry_after(text, at_s) == seconds


def test_patience_is_arithmetic() -> None:
    patience = Patience()
    waits = [patience.compute_wait_s(n, None, 1.0) for n in range(1, 11)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert patience.compute_wait_s(1, None, 0.0) == 0.25
    assert patience.compute_wait_s(1, 99.0, 1.0) == 99.0
    assert patience.allows(10, 0, 0) and not patience.allows(11, 0, 0)
    assert patience.allows(11, 0, 1 << 20) and not patience.allows(12, 0, 1 << 20)
    assert patience.allows(3, 3, 0) and not patience.allows(4, 4, 1 << 40)
    assert not patience.is_too_slow(0, 60) and patience.is_too_slow(61_000, 61)
    assert not patience.is_too_slow(1 << 20, 61)
