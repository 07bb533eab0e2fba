"""Where the Hub is, who we are to it, and whether the network may be used at all."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from localcascade.errors import DownloadError, OfflineError

ENDPOINT_VARIABLE = "HF_ENDPOINT"
OFFLINE_VARIABLES = ("LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE")
_DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE_WORDS = {"1", "true", "t", "yes", "y", "on"}


def check_online(need: str) -> None:
    """Refuse if the user forbade the network; opens nothing.

    Args:
        need: What it is needed for, as the subject of the message.

    Raises:
        OfflineError: `--offline`, LOCALCASCADE_OFFLINE or HF_HUB_OFFLINE is in force.
    """
    for variable in OFFLINE_VARIABLES:
        if os.environ.get(variable, "").strip().lower() in _TRUE_WORDS:
            raise OfflineError(
                f"{need} needs the network, which {variable} forbids",
                f"Run it again without --offline and without {variable}.",
            )


def find_endpoint() -> str:
    """Find the Hub's address: HF_ENDPOINT, or the public Hub; without a slash at its end.

    Raises:
        DownloadError: HF_ENDPOINT is not an http or https address.
    """
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "").strip().rstrip("/") or _DEFAULT_ENDPOINT
    if not _is_address(endpoint):
        raise DownloadError(
            f"{ENDPOINT_VARIABLE} is no address: {endpoint!a:.200}",
            f"Write for example {_DEFAULT_ENDPOINT}, or unset it.",
        )
    return endpoint


def find_token() -> str | None:
    """Find the user's token as the Hub's own client does: HF_TOKEN, or what a login has left."""
    from huggingface_hub import get_token

    return get_token()


def explain_refusal(url: str, status: int, *, has_token: bool) -> DownloadError:
    """Say why the Hub lets someone not in, and what the next step is.

    Args:
        url: Of a file, or of the repository's page.
        status: 401 or 403.
        has_token: True if a token was sent.
    """
    page = url.partition("/resolve/")[0]
    if has_token:
        hint = f"Open {page}, accept the terms with the account of your token, then run it again."
    else:
        hint = f"Accept the terms at {page}, then give a token of that account as HF_TOKEN."
    return DownloadError(f"{url}: status {status}: the Hub does not let you in", hint)


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
