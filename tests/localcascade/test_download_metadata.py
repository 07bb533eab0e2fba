"""What a Hub says about a repository: read with the real client, believed only if it can be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from localcascade.download import metadata
from localcascade.download.hub import find_endpoint
from localcascade.download.metadata import read_repo
from localcascade.download.patience import Patience
from localcascade.errors import DownloadError
from tests.hub import Hub, git_sha1, serve_hub, sha256

HASTY = Patience(connect_s=120, first_wait_s=0.001, longest_wait_s=0.01)
FILES = {"config.json": b"{}", "model.safetensors": os.urandom(5000), "sub/a b%.txt": b"text"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.push("org/model", FILES)
        yield running


def test_the_real_client_works_against_our_hub(hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.endpoint, token=False)
    commit = hub.repos["org/model"].branches["main"]
    assert api.model_info("org/model").sha == commit
    tree = {entry.path: entry for entry in api.list_repo_tree("org/model", recursive=True)}
    assert {path: entry.size for path, entry in tree.items()} == {
        path: len(data) for path, data in FILES.items()
    }
    snapshot_download("org/model", endpoint=hub.endpoint, local_dir=tmp_path, token=False)
    for path, data in FILES.items():
        assert (tmp_path / path).read_bytes() == data
    single = hf_hub_download(
        "org/model", "config.json", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=False
    )
    assert Path(single).read_bytes() == b"{}"


def test_a_repository_is_described_and_pinned(hub: Hub) -> None:
    repo = hub.repos["org/model"]
    repo.card = {"license": "other", "license_name": "own", "license_link": "https://l.example"}
    described = read_repo("org/model", endpoint=hub.endpoint)
    commit = repo.branches["main"]
    assert (described.name, described.commit) == ("org/model", commit)
    assert described.licence == "own, https://l.example"
    assert not described.is_gated
    files = {file.path: file for file in described.files}
    assert {path: file.size_bytes for path, file in files.items()} == {
        path: len(data) for path, data in FILES.items()
    }
    assert files["model.safetensors"].etag == sha256(FILES["model.safetensors"])
    assert files["config.json"].etag == git_sha1(b"{}")
    assert files["sub/a b%.txt"].url == (
        f"{hub.endpoint}/org/model/resolve/{commit}/sub/a%20b%25.txt"
    )
    assert len(hub.api_calls) == 1


def test_revisions_are_found_by_branch_and_commit(hub: Hub) -> None:
    first = hub.repos["org/model"].branches["main"]
    second = hub.push("org/model", {"config.json": b"[]"}, branch="refs/pr/1")
    for revision, commit in ((None, first), ("refs/pr/1", second), (first, first)):
        assert read_repo("org/model", revision, endpoint=hub.endpoint).commit == commit
    with pytest.raises(DownloadError, match="org/model@v9: no such revision"):
        read_repo("org/model", "v9", endpoint=hub.endpoint)


HOSTILE: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"sha": "main"}, []),
    ({"sha": None}, []),
    ({"sha": "../" * 14}, []),
    ({"siblings": 5}, []),
    ({"siblings": [5]}, []),
    ({"siblings": [{}]}, []),
    ({"lastModified": "yesterday"}, []),
    ({}, [{"rfilename": 3, "size": 1, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": -1, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": "1", "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": True, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": 1.5, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": 1 << 60, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": None, "blobId": "0" * 40}]),
    ({}, [{"rfilename": "a", "size": 1}]),
    ({}, [{"rfilename": "a", "size": 1, "blobId": "0" * 39}]),
    ({}, [{"rfilename": "a", "size": 1, "lfs": {"sha256": "0" * 64, "size": 2, "pointerSize": 1}}]),
    ({}, [{"rfilename": "a", "size": 1, "lfs": {"sha256": "x" * 64, "size": 1, "pointerSize": 1}}]),
    ({}, [{"rfilename": "a", "size": 1, "lfs": {"sha256": "0" * 64}}]),
    ({}, [{"rfilename": "config.json", "size": 1, "blobId": "0" * 40}]),
]  # fmt: skip


@pytest.mark.parametrize(("description", "siblings"), HOSTILE)
def test_what_cannot_be_is_refused(
    description: dict[str, Any], siblings: list[dict[str, Any]], hub: Hub
) -> None:
    hub.repos["org/model"].description = description
    hub.repos["org/model"].siblings = siblings
    with pytest.raises(DownloadError) as caught:
        read_repo("org/model", endpoint=hub.endpoint)
    assert f"{hub.endpoint}/org/model" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(status: int, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(metadata.time, "sleep", waits.append)
    hub.api_statuses += [(status, {"Retry-After": "9"}), (status, {})]
    assert read_repo("org/model", endpoint=hub.endpoint, patience=HASTY).name == "org/model"
    assert waits[0] == 9 and 0 < waits[1] < 1
    hub.api_statuses += [(status, {})] * 4
    with pytest.raises(DownloadError, match=f"status {status}"):
        read_repo("org/model", endpoint=hub.endpoint, patience=HASTY)
    assert hub.api_statuses == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "GatedRepo", "does not let you in"), (403, "GatedRepo", "does not let you in"),
        (403, "", "does not let you in"), (404, "RepoNotFound", "knows no such repository"),
        (401, "RepoNotFound", "knows no such repository"), (418, "", "answers with status 418"),
    ],
)  # fmt: skip
def test_a_refusal_is_put_into_words(status: int, code: str, message: str, hub: Hub) -> None:
    hub.api_statuses.append((status, {"X-Error-Code": code} if code else {}))
    with pytest.raises(DownloadError, match=message) as caught:
        read_repo("org/model", endpoint=hub.endpoint, patience=HASTY)
    assert caught.value.hint and len(hub.api_calls) == 1


def test_a_dead_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata.time, "sleep", lambda _: pytest.fail("waited for a dead server"))
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        read_repo("org/model", endpoint="http://127.0.0.1:9")
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["ftp://hub", "hub.example", "http://", "http://a:b", "//x"])
def test_an_endpoint_must_be_an_address(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DownloadError, match="HF_ENDPOINT is no address"):
        find_endpoint()
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:80/")
    assert find_endpoint() == "http://localhost:80"
