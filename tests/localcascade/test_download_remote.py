"""Quantizing from the Hub: the bytes of a local conversion, each fetched once, none wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localcascade.download import remote
from localcascade.download.ahead import Window
from localcascade.download.patience import Patience
from localcascade.download.remote import open_stream
from localcascade.errors import DownloadError, OfflineError
from quantize import part
from quantize.convert import Result, quantize_checkpoint
from quantize.errors import CheckpointError, OutputError
from quantize.gguf import open_gguf
from tests import hub as hubs
from tests.hub import Fault, Hub, serve_hub
from tests.quantize.checkpoints import write_checkpoint
from tests.quantize.models import DENSE, ODD_EXPERTS, TINY, draw_weights, make_checkpoint
from tests.soak import sample

HASTY = Patience(
    connect_s=120, read_s=120, n_retries=4, first_wait_s=0.001, longest_wait_s=0.002,
    retry_bytes=1 << 40,
)  # fmt: skip
IMPATIENT = replace(HASTY, read_s=0.3, n_retries=1000)
"""Gives up a connection that is silent; what a busy machine makes as slow is tried again."""
SMALL = Window(chunk_bytes=100_000, ahead_bytes=400_000, n_connections=3)
SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def push_folder(hub: Hub, folder: Path, name: str = "org/model") -> dict[str, int]:
    """Push a checkpoint, with code beside it; returns the sizes of its shards."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.push(name, files | {"modeling.py": b"evil", "training.bin": b"pickle"})
    return {name: len(data) for name, data in files.items() if name.endswith(".safetensors")}


def stream(
    output: Path, type_name: str = "q8_0", source: str = "org/model", patience: Patience = HASTY,
    **options: Any,
) -> Result:  # fmt: skip
    with open_stream(source, patience=patience, window=SMALL) as opened:
        return quantize_checkpoint(
            opened.folder, output, type_name, name="same", shards=opened.shards, **options
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a local conversion of the tiny model gives."""
    output = tmp_path_factory.mktemp("whole") / "out.gguf"
    quantize_checkpoint(TINY, output, "q8_0", name="same")
    return output.read_bytes()


def test_the_tiny_model_streams_to_the_same_bytes(hub: Hub, whole: bytes, tmp_path: Path) -> None:
    sizes = push_folder(hub, TINY)
    result = stream(tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == whole
    assert list(tmp_path.iterdir()) == [tmp_path / "out.gguf"]
    assert {name: hub.count_bytes(name) for name in sizes} == sizes
    assert set(result.verified) == set(sizes) and not result.unverified
    assert {entry.path for entry in hub.served} == {path.name for path in TINY.iterdir()}
    assert hub.api_calls == ["/api/models/org/model"]


def write_odd_shards(folder: Path) -> Path:
    """Three shards of odd sizes with a draft head, which is left out, in the middle of one."""
    make_checkpoint(folder, ODD_EXPERTS, "BF16", seed=3)
    (folder / "model.safetensors").unlink()
    drawn = [*draw_weights(ODD_EXPERTS, 3).items()]
    drawn.insert(len(drawn) // 2, ("mtp.layers.0.eh_proj.weight", drawn[0][1]))
    dtypes = ("BF16", "F32", "F16")
    tensors = {name: (dtypes[i % 3], w) for i, (name, w) in enumerate(drawn)}
    write_checkpoint(folder, ODD_EXPERTS, tensors, n_shards=3)
    return folder


@pytest.mark.parametrize(
    ("type_name", "options"),
    [
        ("f32", {}),
        ("bf16", {"n_threads": 5}),
        ("q6_k", {"pad": True, "fallback": "f16"}),
        ("iq4_nl", {"fallback": "f16"}),
    ],
)
def test_an_odd_model_streams_to_the_same_bytes(
    type_name: str, options: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    folder = write_odd_shards(tmp_path / "in")
    sizes = push_folder(hub, folder)
    quantize_checkpoint(folder, tmp_path / "local.gguf", type_name, name="same", **options)
    result = stream(tmp_path / "out.gguf", type_name, **options)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    # The draft head too, or its shard could not be verified.
    assert {name: hub.count_bytes(name) for name in sizes} == sizes
    assert set(result.verified) == set(sizes)


def test_one_file_without_index_and_with_the_hash_of_a_small_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "is_large", lambda _path, _data: False)
    folder = make_checkpoint(tmp_path / "in", DENSE, "F16", seed=1)
    push_folder(hub, folder)
    quantize_checkpoint(folder, tmp_path / "local.gguf", "f16", name="same")
    assert stream(tmp_path / "out.gguf", "f16").verified == ("model.safetensors",)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    hub.faults.append(Fault("corrupt", path="model.safetensors", at_byte=200_000))
    assert "announced" in refuse(tmp_path / "other.gguf", "f16").message


# --- a line and a server that fail


def refuse(output: Path, type_name: str = "q8_0") -> CheckpointError:
    """Stream, expect a refusal, and check that nothing is left behind."""
    before = set(output.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        stream(output, type_name)
    assert set(output.parent.iterdir()) == before
    return caught.value


PASSING = (
    "whole", "shifted range", "short range", "other total", "no content range", "gzip", "416",
    "429", "500", "503", "cut", "reset", "hang up", "stall", "expired",
)  # fmt: skip
POSITIONS = (0, 3000, 700_000, 5_909_511)


@pytest.mark.parametrize(
    ("at_byte", "kind"), sample([(at, kind) for at in POSITIONS for kind in PASSING], 18)
)
def test_what_passes_changes_no_byte(
    kind: str, at_byte: int, hub: Hub, whole: bytes, tmp_path: Path
) -> None:
    push_folder(hub, TINY)
    hub.faults.append(Fault(kind, path=SECOND, at_byte=at_byte, n_times=2))
    result = stream(tmp_path / "out.gguf", patience=IMPATIENT if kind == "stall" else HASTY)
    assert kind in [entry.fault for entry in hub.served]
    assert (tmp_path / "out.gguf").read_bytes() == whole
    assert len(result.verified) == 2


@pytest.mark.parametrize("at_byte", [0, 100, 5600, 6000, 700_000, 5_909_511])
@pytest.mark.parametrize("kind", ["corrupt", "shifted bytes"])
def test_wrong_bytes_are_never_taken(kind: str, at_byte: int, hub: Hub, tmp_path: Path) -> None:
    push_folder(hub, TINY)
    hub.faults.append(Fault(kind, path=SECOND, at_byte=at_byte))
    error = refuse(tmp_path / "out.gguf")
    assert f"org/model@{hub.repos['org/model'].branches['main'][:12]}/{SECOND}" in error.message
    # What makes no sense is found before: a header that is no JSON, a weight that is no number.
    if kind == "corrupt" and at_byte > 6500:
        assert "the Hub announced" in error.message and "another network" in error.hint


@pytest.mark.parametrize("kind", ["404", "403", "503", "other etag", "other size", "redirect loop"])
def test_what_does_not_pass_keeps_what_was_done(
    kind: str, hub: Hub, whole: bytes, tmp_path: Path
) -> None:
    sizes = push_folder(hub, TINY)
    hub.faults.append(Fault(kind, path=SECOND, at_byte=4_000_000, n_times=-1))
    is_early = kind in ("other etag", "other size", "redirect loop")  # when the Hub is first asked
    if is_early:
        hub.faults[0].at_byte = None
    with pytest.raises(DownloadError, match=SECOND):
        stream(tmp_path / "out.gguf")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == (set() if is_early else {"out.gguf.part", "out.gguf.journal"})
    hub.faults.clear()
    hub.served.clear()
    result = stream(tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == whole
    if not is_early:
        assert hub.count_bytes("*.safetensors") < 0.6 * sum(sizes.values())
        assert result.unverified == (SECOND,)


def fail_at(hub: Hub, at_byte: int, output: Path) -> None:
    """Stream up to a byte of the second file, which the server does not have for the moment."""
    hub.faults.append(Fault("404", path=SECOND, at_byte=at_byte, n_times=-1))
    with pytest.raises(DownloadError):
        stream(output)
    hub.faults.clear()


def test_a_revision_that_moves_meanwhile_is_not_followed(
    hub: Hub, whole: bytes, tmp_path: Path
) -> None:
    push_folder(hub, TINY)
    moved = False

    def move(stage: str, _done: int, _total: int) -> None:
        nonlocal moved
        if not moved:
            files = hub.repos["org/model"].commits[hub.repos["org/model"].branches["main"]]
            hub.push("org/model", {name: bytes(len(data)) for name, data in files.items()})
            moved = True

    stream(tmp_path / "out.gguf", on_progress=move)
    assert (tmp_path / "out.gguf").read_bytes() == whole


def test_another_revision_does_not_continue_a_failed_run(hub: Hub, tmp_path: Path) -> None:
    push_folder(hub, TINY)
    old = hub.repos["org/model"].branches["main"]
    fail_at(hub, 4_000_000, tmp_path / "out.gguf")
    # The same config, tokenizer and sizes, but other weights.
    files = dict(hub.repos["org/model"].commits[old])
    files[SECOND] = files[SECOND][:-100_000] + bytes(100_000)
    hub.push("org/model", files)
    shutil.copytree(TINY, tmp_path / "new")
    (tmp_path / "new" / SECOND).write_bytes(files[SECOND])
    quantize_checkpoint(tmp_path / "new", tmp_path / "new.gguf", "q8_0", name="same")
    stream(tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()
    stream(tmp_path / "old.gguf", source=f"org/model@{old}")
    assert (tmp_path / "old.gguf").read_bytes() != (tmp_path / "new.gguf").read_bytes()


# --- killed, interrupted, refused early


def run_killed(folder: Path, after_bytes: int) -> None:
    """Stream tiny in a process that kills itself once so many bytes are written."""
    code = f"""
import os, signal
from pathlib import Path
from tests.localcascade.test_download_remote import stream
def die(stage, done, total):
    if stage == "verify" or done >= {after_bytes}:
        os.kill(os.getpid(), signal.SIGKILL)
stream(Path({str(folder)!r}) / "out.gguf", n_threads=2, on_progress=die)
"""
    process = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after_bytes", sample([*range(1, 6_200_000, 30_000), 6_290_000], 4))
def test_a_killed_run_is_continued_and_little_is_fetched_twice(
    after_bytes: int, hub: Hub, whole: bytes, tmp_path: Path
) -> None:
    sizes = push_folder(hub, TINY)
    run_killed(tmp_path, after_bytes)
    assert not (tmp_path / "out.gguf").exists()
    result = stream(tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf"}
    # Twice: what was written since the last record (1 MiB of q8_0), the window, two headers.
    twice = hub.count_bytes("*.safetensors") - sum(sizes.values())
    assert twice <= (1 << 20) * 2 + 700_000
    assert {*result.verified, *result.unverified} == set(sizes)
    assert len(result.unverified) <= 1


def test_what_several_runs_have_read_is_not_called_verified(hub: Hub, tmp_path: Path) -> None:
    push_folder(hub, TINY)
    for at_byte in (3_000_000, 5_000_000):
        fail_at(hub, at_byte, tmp_path / "out.gguf")
    # The first file was verified by the first run, and the third one knows.
    result = stream(tmp_path / "out.gguf")
    assert (result.verified, result.unverified) == (
        ("model-00001-of-00002.safetensors",),
        (SECOND,),
    )


def test_an_interrupted_run_ends_though_the_server_is_silent(hub: Hub, tmp_path: Path) -> None:
    push_folder(hub, TINY)
    hub.faults.append(Fault("stall", path=SECOND, at_byte=1_000_000, n_times=-1))

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "out.gguf", patience=IMPATIENT, on_progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf.part", "out.gguf.journal"}


def test_only_the_result_needs_room_on_the_disk(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(hub, TINY)
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((6_360_351, False), (6_400_000, True)):
        with monkeypatch.context() as patch:
            patch.setattr(part.shutil, "disk_usage", lambda _path, n=free: usage._replace(free=n))
            hub.served.clear()
            if fits:
                stream(tmp_path / "out.gguf")
            else:
                with pytest.raises(OutputError, match="needs"):
                    stream(tmp_path / "out.gguf")
                assert hub.count_bytes("*.safetensors") < 20_000  # headers


def test_weights_that_are_not_there_are_named_with_the_repository(hub: Hub, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in TINY.iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"] |= {"backbone.more": "more.safetensors"}
    hub.push("org/model", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    error = refuse(tmp_path / "out.gguf")
    assert error.message.startswith("org/model@")
    assert error.message.endswith("/more.safetensors: shard not found")


def test_a_small_file_of_hostile_size_is_not_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(hub, TINY)
    monkeypatch.setattr(remote, "MAX_SMALL_BYTES", 12_000)
    assert "tokenizer.json: 13417 bytes" in refuse(tmp_path / "out.gguf").message
    assert not hub.served


@pytest.mark.parametrize("variable", ["LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody(
    variable: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(hub, TINY)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match=r"org/model.* needs the network"):
        stream(tmp_path / "out.gguf")
    assert not hub.served and not hub.api_calls and not list(tmp_path.iterdir())


def test_the_result_loads(hub: Hub, tmp_path: Path) -> None:
    push_folder(hub, TINY)
    stream(tmp_path / "out.gguf", "q4_0")
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["general.name"] == "same"
