"""Every way a Hub can break, at several places of several kinds of files: right bytes, or none."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localcascade.download.metadata import HubFile, read_repo
from localcascade.download.patience import Patience
from localcascade.download.ranges import Connections
from localcascade.download.transfer import FILES_NAME, Layout, fetch_files
from localcascade.errors import DownloadError
from tests.hub import FAULTS, Fault, Hub, serve_hub, sha256
from tests.soak import sample

HASTY = Patience(
    connect_s=120, read_s=120, n_retries=3, n_breaches=2, first_wait_s=0.001, longest_wait_s=0.01,
)  # fmt: skip
IMPATIENT = {
    "stall": replace(HASTY, read_s=0.25),
    "drip": replace(HASTY, slowest_bytes_s=10_000, grace_s=0.2),
}
"""Where the fault is to be slow. What a busy machine makes as slow is tried again."""
SMALL_PIECES = Layout(piece_bytes=4096, n_connections=3, verify_bytes=8192)

FILES = {
    "config.json": random.Random(1).randbytes(3000),
    "tokenizer.json": random.Random(2).randbytes(9000),
    "model.safetensors": random.Random(3).randbytes(14_000),
}
"""One piece from the Hub itself, several, and several by way of another origin."""
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}
OF_REDIRECTS = ("other size", "redirect loop", "redirect nowhere", "expired")

REFUSED_AT_ONCE = {
    ("404", "json"), ("401", "json"), ("403", "json"),
    ("other etag", "json"), ("other etag", "safetensors"), ("other size", "safetensors"),
}  # fmt: skip
"""What the Hub itself says about a file is final; where it sends us may be asked again."""


def list_cases() -> list[tuple[str, str, str, int]]:
    """(fault, place, file, times); those of a redirect only where there is one."""
    return [
        (fault, place, path, n_times)
        for n_times in (1, -1)
        for fault in FAULTS
        for path in FILES
        for place in PLACES
        if fault not in OF_REDIRECTS or (path.endswith(".safetensors") and place == "first")
    ]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.push("org/model", FILES)
        yield running


@pytest.fixture(scope="module")
def files(hub: Hub) -> tuple[HubFile, ...]:
    return read_repo("org/model", endpoint=hub.endpoint).files


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them takes longer than a test, and nothing here speaks TLS."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


@pytest.fixture(autouse=True)
def forget_faults(hub: Hub) -> Iterator[None]:
    yield
    hub.faults.clear()
    hub.served.clear()


def test_there_are_enough_cases() -> None:
    assert len(set(list_cases())) >= 200


def survives(fault: str, place: str, path: str, n_times: int) -> bool | None:
    """Whether the first run must get the bytes in spite of a fault; None leaves it open."""
    if n_times == 1:
        return (fault, path.rpartition(".")[2]) not in REFUSED_AT_ONCE
    if fault in ("cut", "reset", "stall", "drip") and place != "last":
        # Half of the rest arrives each time, so the broken byte may be passed.
        return None
    # A whole file begins with what was asked for, if that was its beginning.
    return fault == "whole" and (path == "config.json" or place == "first")


@pytest.mark.parametrize(("fault", "place", "path", "n_times"), sample(list_cases(), 101))
def test_a_fault_costs_time_or_the_pull_but_never_a_byte(
    fault: str, place: str, path: str, n_times: int,
    hub: Hub, files: tuple[HubFile, ...], tmp_path: Path,
) -> None:  # fmt: skip
    at_byte = round((len(FILES[path]) - 1) * PLACES[place])
    hub.faults.append(Fault(fault, path=path, at_byte=at_byte, n_times=n_times, retry_after="0"))
    expected = survives(fault, place, path, n_times)
    patience = IMPATIENT.get(fault, HASTY)
    if fault in IMPATIENT and n_times == 1:
        patience = replace(patience, n_retries=1000)
    if expected is not True:
        try:
            with Connections(None, patience) as connections:
                fetch_files(connections, files, tmp_path, layout=SMALL_PIECES)
            assert expected is None
        except DownloadError as error:
            assert path in error.message and error.hint
        hub.faults.clear()
        patience = HASTY
    # Either way the next run, or this one, ends with the right bytes.
    with Connections(None, patience) as connections:
        digests = fetch_files(connections, files, tmp_path, layout=SMALL_PIECES)
    assert not [fault for fault in hub.faults if fault.n_times > 0]
    for name, data in FILES.items():
        assert (tmp_path / FILES_NAME / name).read_bytes() == data
        assert digests[name].sha256 == sha256(data)
