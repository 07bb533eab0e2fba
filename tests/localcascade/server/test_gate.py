"""Who may ask: names of this machine, pages of other sites, keys. And where the server listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
import pytest
from starlette.datastructures import Headers

from localcascade.errors import CascadeError, OfflineError
from localcascade.server.gate import Guard, make_guard
from localcascade.server.listener import Listener, bind
from tests.localcascade.server.serving import ScriptedEngine, Served, say, serve

HERE = Listener(socket.socket(), "127.0.0.1", 8080)
EVERYWHERE = Listener(socket.socket(), "0.0.0.0", 8080)
PAGE = "https://notes.example:3000"


def judge(guard: Guard, path: str = "/v1/models", **headers: str) -> str | None:
    problem = guard.judge(path, Headers(headers))
    return problem and problem.code


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::2]:80", False),
        ("", False),
    ],
)
def test_without_a_key_only_names_of_the_loopback_are_answered_to(host: str, passes: bool) -> None:
    guard = make_guard(None, HERE)
    assert judge(guard, host=host) == (None if passes else "forbidden_host")
    assert judge(guard, "/health", host=host) == (None if passes else "forbidden_host")


def test_a_key_or_an_open_door_makes_the_name_matter_no_more() -> None:
    assert judge(make_guard("k", HERE), host="proxy.example", authorization="Bearer k") is None
    assert judge(make_guard(None, EVERYWHERE), host="desk.lan:8080") is None


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", ""])
def test_pages_are_refused(origin: str) -> None:
    for guard in (make_guard(None, HERE), make_guard(None, EVERYWHERE), make_guard("k", HERE)):
        told = judge(guard, host="localhost", origin=origin, authorization="Bearer k")
        assert told == "forbidden_origin"


def test_pages_that_were_allowed_may_ask() -> None:
    guard = make_guard(None, HERE, (PAGE,))
    assert judge(guard, host="localhost", origin=PAGE) is None
    assert judge(guard, host="localhost", origin=PAGE + ".evil.example") == "forbidden_origin"


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ("Bearer k", True),
        ("bearer k", True),
        ("Bearer kk", False),
        ("k", False),
        ("Basic k", False),
    ],
)
def test_keys(given: str, passes: bool) -> None:
    assert judge(Guard("k"), authorization=given) == (None if passes else "invalid_api_key")
    assert "k'" not in repr(Guard("k"))


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(ScriptedEngine(say()), guard=make_guard(None, HERE, (PAGE,))) as served:
        yield served


def test_a_page_that_was_allowed_is_told_so_by_the_browsers_rules(served: Served) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    url = f"{served.url}/chat/completions"
    before = httpx2.options(url, headers=headers, trust_env=False, timeout=120)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, PAGE)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    after = httpx2.post(url, json=body, headers={"Origin": PAGE}, trust_env=False, timeout=120)
    assert (after.status_code, after.headers["access-control-allow-origin"]) == (200, PAGE)


def test_a_page_that_was_not_is_refused_before_its_body_is_read(served: Served) -> None:
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    url = f"{served.url}/chat/completions"
    answer = httpx2.post(url, content=b"{", headers=headers, trust_env=False, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")
    assert "access-control-allow-origin" not in answer.headers


def test_a_name_that_was_made_to_point_here_is_refused(served: Served) -> None:
    answer = httpx2.get(
        f"{served.url}/models", headers={"Host": "evil.example"}, trust_env=False, timeout=120
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_host")


@pytest.mark.parametrize(
    ("address", "url", "is_loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/v1", True),
        ("::1", "http://[::1]:80/v1", True),
        ("0.0.0.0", "http://localhost:80/v1", False),
        ("192.0.2.1", "http://192.0.2.1:80/v1", False),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:80/v1", False),
    ],
)
def test_addresses(address: str, url: str, is_loopback: bool) -> None:
    listener = Listener(socket.socket(), address, 80)
    assert (listener.url, listener.is_loopback) == (url, is_loopback)


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with bind("127.0.0.1", 0).socket as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CascadeError, match=f"port {port} of 127.0.0.1 is taken") as caught:
            bind("127.0.0.1", port)
    assert "--port 0" in caught.value.hint
    bind("127.0.0.1", port).socket.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 300, "\x00"])
def test_what_is_no_address_of_this_machine(host: str) -> None:
    with pytest.raises(CascadeError, match="no address of this machine"):
        bind(host, 0)


def test_offline_nobody_else_can_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "1")
    bind("127.0.0.1", 0).socket.close()
    with pytest.raises(OfflineError, match=r"--host 0\.0\.0\.0"):
        bind("0.0.0.0", 0)
