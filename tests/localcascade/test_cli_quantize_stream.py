"""`localcascade quantize --stream` as a shell sees it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcascade.cli.app import run_arguments
from tests.hub import Fault, Hub, serve_hub
from tests.quantize.models import TINY

SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the tiny model as org/tiny, and as `toy` in the user's catalog."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    entry = """
        [toy]
        summary = "The tiny model again"
        repo = "org/tiny"
        licence = { name = "Apache-2.0", url = "https://www.apache.org/licenses/LICENSE-2.0" }
        parameters = { total = 5_904_456, active = 2_148_424 }
        context_tokens = 4096
        checkpoint_bytes = 11_809_040
        modes = ["thinking"]
        sampling = { temperature = 1.0, top_p = 0.95 }
    """
    (home / "config").mkdir()
    (home / "config" / "models.toml").write_text(entry)
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        served.push("org/tiny", {path.name: path.read_bytes() for path in TINY.iterdir()})
        yield served


def convert_locally(home: Path, name: str) -> bytes:
    """What `quantize` makes of a checkpoint that was pulled under this name."""
    folder = home / "data" / "checkpoints" / name
    folder.parent.mkdir(parents=True)
    folder.symlink_to(TINY)
    output = home / "local.gguf"
    from quantize.convert import quantize_checkpoint

    quantize_checkpoint(TINY, output, "q8_0", name=name)
    return output.read_bytes()


@pytest.mark.parametrize(("source", "name"), [("toy", "toy"), ("Org/Tiny", "toy")])
def test_a_name_of_the_catalog_streams_like_a_pulled_one(
    source: str, name: str, hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_arguments(["quantize", "--stream", source, "out.gguf"]) == 0
    assert Path("out.gguf").read_bytes() == convert_locally(home, name)
    captured = capsys.readouterr()
    out = captured.out.splitlines()
    assert "note: licence: Apache-2.0, https://www.apache.org/" in captured.err
    commit = hub.repos["org/tiny"].branches["main"]
    assert out[1] == f"org/tiny@{commit[:12]}: 11.3 MiB fetched, 2 of 2 files verified"


def test_a_revision_is_streamed_and_reported(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    old = hub.repos["org/tiny"].branches["main"]
    hub.push("org/other", {"config.json": b"{}"})
    hub.push("org/tiny", {"config.json": b"{}"})
    assert run_arguments(["quantize", f"org/tiny@{old}", "out.gguf", "--stream", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["output"] == "out.gguf"
    assert report["stream"] == {
        "repo": "org/tiny",
        "commit": old,
        "fetched_bytes": sum(path.stat().st_size for path in TINY.glob("*.safetensors")),
        "verified": sorted(path.name for path in TINY.glob("*.safetensors")),
        "unverified": [],
    }


def test_what_could_not_be_verified_is_said(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault("404", path=SECOND, at_byte=5_900_000, n_times=-1))
    assert run_arguments(["quantize", "--stream", "toy", "out.gguf", "--threads", "1"]) == 1
    assert f"{SECOND}: byte" in capsys.readouterr().err
    # 8 MiB are one request; the first file's units are recorded all the same.
    hub.faults.clear()
    assert run_arguments(["quantize", "--stream", "toy", "out.gguf"]) == 0
    assert "of 2 files verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tiny"], 3, "bundled"),
        (["no-such-model"], 3, "neither a model of the catalog nor ORG/REPO"),
        (["../org/tiny"], 3, "neither a model of the catalog nor ORG/REPO"),
        (["org/\x1b[2Jevil"], 3, "\\x1b[2Jevil"),
        (["org/none"], 1, "org/none: the Hub knows no such repository"),
        (["org/tiny@v9"], 1, "org/tiny@v9"),
        (["org/tiny", "--type", "q6_k"], 2, "token_embd.weight: rows of 224"),
        (["org/empty"], 1, "org/empty: no safetensors"),
        (["org/ready"], 3, "org/ready is quantized already"),
        (["org/tiny:Q4_0"], 1, "org/tiny: no GGUF"),
        (["org/broken"], 5, "config.json: key architectures"),
    ],
)
def test_refusals_have_their_code_and_leave_nothing(
    arguments: list[str], code: int, says: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.push("org/empty", {"README.md": b"nothing here"})
    hub.push("org/ready", {"model-Q4_0.gguf": b"GGUF"})
    tiny = hub.repos["org/tiny"].commits[hub.repos["org/tiny"].branches["main"]]
    hub.push("org/broken", tiny | {"config.json": b"{}"})
    assert run_arguments(["quantize", "--stream", arguments[0], "out.gguf", *arguments[1:]]) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == "" and "\x1b" not in captured.err
    assert not list(Path.cwd().iterdir())
    assert hub.count_bytes("*.safetensors") < 20_000


def test_corrupt_bytes_are_a_damaged_file(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault("corrupt", path=SECOND, at_byte=5_000_000))
    assert run_arguments(["quantize", "--stream", "toy", "out.gguf"]) == 5
    error = capsys.readouterr().err
    assert f"{SECOND}: what arrived has the hash" in error and "another network" in error
    assert not list(Path.cwd().iterdir())


def test_offline_opens_no_socket(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALCASCADE_OFFLINE", "")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    assert run_arguments(["--offline", "quantize", "--stream", "org/tiny", "out.gguf"]) == 6
    assert "streaming org/tiny needs the network" in capsys.readouterr().err
