"""Everything the runner can refuse, as one tree.

CascadeError
├── ConfigError        a file or a key of ours or the user's is wrong
├── ModelNotFound      no model of that name is in the catalog, installed or on disk
├── ModelFileError     a model file is damaged, or llama.cpp refuses it
├── UnsafeName         a name from outside that must not become a file or folder of ours
├── StoreError         the store cannot take, keep or let go of a model
├── HistoryError       the file of sessions cannot be read or written
│   ├── HistoryDamaged the file of sessions is damaged
│   └── SessionNotFound no session, or several, go by that id
├── TemplateError      a chat template loops, calls, fails or is not Jinja
├── DownloadError      a transfer failed
│   └── OfflineError   the network is needed but must not be used
├── OutOfBudget        it does not fit the memory
├── EvaluationError    a text or a pair of models cannot be measured
├── ContextFull        the conversation does not fit the context
├── NativeError        a llama.cpp call returned an error
├── EngineDied         the worker process is gone
├── RemoteError        a remote engine cannot be reached, refuses, or breaks off
└── ToolError          a tool failed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class CascadeError(Exception):
    """Base of all errors of the runner.

    Args:
        message: What is wrong and where (file, tensor, key or byte), one sentence.
        hint: What to do about it, one sentence; empty if there is nothing to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(CascadeError):
    """A settings or catalog file is wrong; names the file and the key."""

    def __init__(self, file: Path | str, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}", hint)
        self.file = file
        self.key = key


class ModelNotFound(CascadeError):
    """No model of that name is in the catalog, installed or on disk."""


class ModelFileError(CascadeError):
    """A model file is damaged, or llama.cpp refuses it."""

    def __init__(self, path: Path | str, problem: str, *, tensor: str = "", hint: str = "") -> None:
        where = f"{path}: tensor {tensor}" if tensor else str(path)
        super().__init__(f"{where}: {problem}", hint)
        self.path = path
        self.tensor = tensor


class UnsafeName(CascadeError):
    """A name from outside that must not become a file or folder of ours."""


class StoreError(CascadeError):
    """The store cannot take, keep or let go of a model."""


class HistoryError(CascadeError):
    """The file of sessions cannot be read or written."""

    def __init__(self, path: Path | str, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {problem}", hint)
        self.path = path


class HistoryDamaged(HistoryError):
    """The file of sessions is damaged; what can still be read can be exported."""


class SessionNotFound(HistoryError):
    """No session, or more than one, goes by that id."""


class TemplateError(CascadeError):
    """A chat template loops, calls what it must not, fails, or is not Jinja."""


class DownloadError(CascadeError):
    """A transfer failed."""


class OfflineError(DownloadError):
    """The network is needed but must not be used."""


class OutOfBudget(CascadeError):
    """It does not fit the memory; sizes in bytes."""

    def __init__(self, message: str, *, need_bytes: int, have_bytes: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class EvaluationError(CascadeError):
    """A text or a pair of models cannot be measured."""


class ContextFull(CascadeError):
    """The conversation does not fit the context; all counts in tokens.

    `message_tokens` says about how many each message takes, the oldest first. `droppable` lists
    the turns that may be left out, the oldest first, each as the numbers of its messages: neither
    the system prompt is among them nor the last question and what follows it. `is_least` says that
    `need_tokens` is not all: a prompt several times as long as the context is not read to its end.
    """

    def __init__(
        self,
        need_tokens: int,
        have_tokens: int,
        message_tokens: Sequence[int] = (),
        droppable: Sequence[Sequence[int]] = (),
        *,
        is_least: bool = False,
    ) -> None:
        self.need_tokens = need_tokens
        self.have_tokens = have_tokens
        self.is_least = is_least
        self.message_tokens = list(message_tokens)
        self.droppable = [list(turn) for turn in droppable]
        least = "at least " if is_least else ""
        super().__init__(
            f"the prompt has {least}{need_tokens} tokens, the context holds {have_tokens}",
            f"Start with a larger --ctx, or {self._name_excess()}.",
        )

    def _name_excess(self) -> str:
        n_tokens, n_all = 0, self.need_tokens
        if self.is_least:
            n_all = max(n_all, sum(self.message_tokens))
        for n_turns, turn in enumerate(self.droppable, 1):
            n_tokens += sum(self.message_tokens[number] for number in turn)
            if n_tokens >= n_all - self.have_tokens:
                turns = "turn" if n_turns == 1 else f"{n_turns} turns"
                return f"leave out the oldest {turns}, about {n_tokens} tokens"
        return "shorten the conversation"


class NativeError(CascadeError):
    """A llama.cpp call returned an error code."""

    def __init__(self, call: str, code: int, hint: str = "") -> None:
        super().__init__(f"{call} returned {code}", hint)
        self.call = call
        self.code = code


def cut_fault(log: str) -> str:
    """Cut the log of a process before Python's fault handler, which says where, not why."""
    return log.partition("Fatal Python error")[0]


class EngineDied(CascadeError):
    """The worker process is gone; `log_tail` holds its last lines."""

    def __init__(self, message: str, *, log_tail: str = "", hint: str = "") -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail


class RemoteError(CascadeError):
    """A remote engine cannot be reached, refuses, or breaks off; never holds its key.

    `status` is what HTTP calls it, if the server answered; `retry_after_s` how long it asks to
    be left alone, if it does.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after_s = retry_after_s


class ToolError(CascadeError):
    """A tool failed."""
