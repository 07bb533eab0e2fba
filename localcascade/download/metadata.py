"""What a repository of the Hub holds at one commit: asked once, checked before it is believed."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from localcascade.download.hub import check_online, explain_refusal
from localcascade.download.patience import PASSING_STATUSES, Patience, parse_retry_after
from localcascade.errors import DownloadError
from localcascade.names import REPO_PATTERN

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_N_RETRIES = 3
_MAX_FILES = 100_000
_MAX_BYTES = 1 << 50
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one commit."""

    path: str
    """As the Hub writes it; not yet checked, so never joined to a folder as it is."""
    size_bytes: int
    sha256: str
    """64 hexadecimal digits; empty for a small file, which has a git hash."""
    git_sha1: str
    """Git's hash of a small file, 40 hexadecimal digits; empty for a large one."""
    url: str

    @property
    def etag(self) -> str:
        """The identity that the Hub sends along with the file."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit."""

    name: str
    """OWNER/NAME as the Hub writes it."""
    commit: str
    """40 hexadecimal digits; every address of a file holds it."""
    files: tuple[HubFile, ...]
    licence: str
    """What its card says, for people; empty if it says nothing."""
    is_gated: bool
    page: str
    """Where a person reads about it."""


def read_repo(
    name: str,
    revision: str | None = None,
    *,
    endpoint: str,
    token: str | None = None,
    patience: Patience | None = None,
) -> HubRepo:
    """Ask the Hub what a repository holds, and pin the commit.

    Args:
        name: OWNER/NAME.
        revision: Branch, tag or commit; None takes the default branch.
        endpoint: The Hub's address.
        token: Sent along; None sends none.
        patience: How long to wait for an answer.

    Raises:
        OfflineError: The network must not be used.
        DownloadError: The Hub cannot be reached, knows no such repository or revision, does not
            let us in, or describes something impossible.
    """
    from huggingface_hub import HfApi

    check_online(name)
    if not REPO_PATTERN.fullmatch(name):
        raise DownloadError(f"{name!a:.120} is no repository", "Write OWNER/NAME.")
    patience = patience or Patience()
    api = HfApi(endpoint=endpoint, token=token or False)

    def ask() -> ModelInfo:
        return api.model_info(
            name, revision=revision, files_metadata=True, timeout=patience.connect_s
        )

    page = f"{endpoint}/{name}"
    shown = f"{name}@{revision}" if revision else name
    info = _ask_patiently(ask, shown, page, patience, has_token=token is not None)
    try:
        return _check_info(info, name, endpoint)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DownloadError(
            f"{page}: the Hub describes something impossible: {error}"[:400],
            "Check HF_ENDPOINT; if that is right, report it to the owner of the repository.",
        ) from error


def _ask_patiently(
    ask: Callable[[], ModelInfo], shown: str, page: str, patience: Patience, *, has_token: bool
) -> ModelInfo:
    """Ask, again where it may help; a server that is not there is noticed at once."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for n_failures in range(1, _N_RETRIES + 2):
        try:
            return ask()
        except HfHubHTTPError as error:
            problem = _explain_status(error, shown, page, has_token=has_token)
            status = error.response.status_code
            asked_s = parse_retry_after(error.response.headers.get("retry-after", ""))
            if status not in PASSING_STATUSES or (asked_s or 0) > patience.longest_asked_s:
                raise problem from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            problem = _explain_silence(page, error)
            asked_s = None
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise problem from error
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise DownloadError(
                f"{page}: the answer is not that of a Hub: {type(error).__name__}: {error}"[:400],
                "Check HF_ENDPOINT.",
            ) from error
        if n_failures <= _N_RETRIES:
            time.sleep(patience.compute_wait_s(n_failures, asked_s, random.random()))
    raise problem


def _explain_silence(page: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"{page}: the Hub cannot be reached: {error or type(error).__name__}"[:400],
        "Check the connection and HF_ENDPOINT; `--offline` works with what is installed.",
    )


def _explain_status(error: Any, shown: str, page: str, *, has_token: bool) -> DownloadError:
    """Put a status of the Hub into words, with the next step."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        return explain_refusal(page, status, has_token=has_token)
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{shown}: no such revision", f"{page}/tree/main lists them.")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        hint = "Check the name"
        hint += "." if has_token else "; a private one needs a token in HF_TOKEN."
        return DownloadError(f"{shown}: the Hub knows no such repository ({status})", hint)
    return DownloadError(f"{page}: the Hub answers with status {status}", "Try again later.")


def _check_info(info: ModelInfo, name: str, endpoint: str) -> HubRepo:
    """Take what we need, and nothing that does not look as it must."""
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"commit {commit!a:.80}")
    siblings = info.siblings or []
    if len(siblings) > _MAX_FILES:
        raise ValueError(f"{len(siblings)} files")
    base = f"{endpoint}/{name}/resolve/{commit}"
    files = tuple(_check_file(sibling, base) for sibling in siblings)
    if len({file.path for file in files}) != len(files):
        raise ValueError("two files of one name")
    return HubRepo(
        name=name,
        commit=commit,
        files=files,
        licence=_read_licence(info),
        is_gated=bool(info.gated),
        page=f"{endpoint}/{name}",
    )


def _check_file(sibling: Any, base: str) -> HubFile:
    path, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
    if not isinstance(path, str):
        raise ValueError(f"a file called {path!a:.80}")
    if type(size) is not int or not 0 <= size < _MAX_BYTES:
        raise ValueError(f"{path!a:.80} has {size!a:.40} bytes")
    if lfs is not None and lfs.size != size:
        raise ValueError(f"{path!a:.80} has {size} bytes, and {lfs.size!a:.40}")
    sha256 = "" if lfs is None else str(lfs.sha256)
    git_sha1 = "" if lfs is not None else str(sibling.blob_id)
    if not (_SHA256.fullmatch(sha256) or _COMMIT.fullmatch(git_sha1)):
        raise ValueError(f"{path!a:.80} has the hash {sha256 or git_sha1!a:.80}")
    return HubFile(path, size, sha256, git_sha1, f"{base}/{quote(path, errors='replace')}")


def _read_licence(info: ModelInfo) -> str:
    """Put the card's licence keys into one line; a card is free text, so anything may be there."""
    keys = ("license_name", "license", "license_link")
    values = [getattr(info.card_data, key, None) for key in keys]
    name, kind, link = (value if isinstance(value, str) else "" for value in values)
    return ", ".join(part[:200] for part in (name or kind, link) if part)
