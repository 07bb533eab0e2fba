"""What a pull would fetch: a name or a repository into one model and its files; pure but for one
question to the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from localcascade.catalog import load_catalog
from localcascade.download.hub import check_online, find_endpoint
from localcascade.download.metadata import HubFile, HubRepo, read_repo
from localcascade.download.patience import Patience
from localcascade.errors import DownloadError, ModelNotFound
from localcascade.names import REPO_PATTERN, check_file_paths, check_name, is_data_file

Kind = Literal["gguf", "checkpoint"]

_TARGET = re.compile(r"(?P<name>[^@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<quantization>.+))?")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
_STANDARD_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SETTINGS_SUFFIXES = frozenset((".json", ".jinja", ".model", ".txt"))
_MAX_FILES = 500


@dataclass(frozen=True)
class Target:
    """What a person asked for."""

    name: str
    """A name of the catalog, or OWNER/NAME."""
    revision: str | None
    quantization: str | None


@dataclass(frozen=True)
class PullPlan:
    """One model, at one commit, file by file."""

    name: str
    """What it will be called in the store."""
    kind: Kind
    repo: str
    commit: str
    files: tuple[HubFile, ...]
    """Their paths are relative to the model's folder, and safe."""
    licence: str
    """For people; empty if nobody stated one."""
    is_gated: bool
    page: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Quantization:
    """One GGUF model of a repository: a file, or all its splits."""

    name: str
    """As the file names it, such as "Q4_K_M"; its whole stem if that holds none."""
    stem: str
    """Name of the file without its ending and the number of the split."""
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all splits."""
        return sum(file.size_bytes for file in self.files)


def resolve_pull(
    target: str,
    patterns: Sequence[str] = (),
    *,
    token: str | None = None,
    patience: Patience | None = None,
) -> PullPlan:
    """Find out what a pull would fetch; asks the Hub once and fetches nothing.

    Args:
        target: NAME or ORG/REPO, then @REVISION and :QUANTIZATION if wanted.
        patterns: Only files whose path matches one of these; none lets us choose.
        token: Sent to the Hub.
        patience: How long to wait for it.

    Returns:
        The plan, pinned to the commit that the revision has now.

    Raises:
        OfflineError: The network must not be used.
        ModelNotFound: No such name or quantization, or one that is ambiguous; the hint lists
            the choices.
        DownloadError: The Hub does not answer, or the repository holds no model.
        UnsafeName: A file has a name that must not become one of ours.
    """
    check_online(target)
    asked = parse_target(target)
    own_name, repo_name, licence = _find_repo(asked.name)
    repo = read_repo(
        repo_name, asked.revision, endpoint=find_endpoint(), token=token, patience=patience
    )
    kind, stem, files = choose_files(repo, patterns, asked.quantization)
    check_file_paths(file.path for file in files)
    name = own_name if own_name and kind == "checkpoint" else _make_name(stem, repo)
    return PullPlan(
        name=check_name(name),
        kind=kind,
        repo=repo.name,
        commit=repo.commit,
        files=files,
        licence=licence or repo.licence,
        is_gated=repo.is_gated,
        page=repo.page,
    )


def parse_target(text: str) -> Target:
    """Take NAME[@REVISION][:QUANTIZATION] apart; NAME may be ORG/REPO.

    Raises:
        ModelNotFound: It does not read so.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ModelNotFound(
            f"{text!a:.120} names no model",
            "Write a name of `localcascade models`, or ORG/REPO[@REVISION][:QUANT].",
        )
    return Target(**match.groupdict())


def _find_repo(name: str) -> tuple[str, str, str]:
    """Look a name up: our own name for it (may be empty), its repository, its licence if known."""
    catalog = load_catalog()
    found = catalog.find_entry(name)
    if found is None and not REPO_PATTERN.fullmatch(name):
        raise ModelNotFound(
            f"{name!a:.120} is neither a model of the catalog nor ORG/REPO",
            "`localcascade models` lists the catalog.",
        )
    if found is None:
        return "", name, ""
    own_name, entry = found
    if not entry.repo:
        raise ModelNotFound(
            f"{own_name} is bundled: there is nothing to pull", "Run `localcascade demo`."
        )
    return own_name, entry.repo, f"{entry.licence.name}, {entry.licence.url}"


def _make_name(stem: str, repo: HubRepo) -> str:
    """Make a name for the store; never one of the catalog's, which is another model."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem)
    taken = {own_name.casefold() for own_name in load_catalog().entries}
    return f"{repo.name.split('/')[0]}-{name}" if name.casefold() in taken else name


def choose_files(
    repo: HubRepo, patterns: Sequence[str], quantization: str | None
) -> tuple[Kind, str, tuple[HubFile, ...]]:
    """Choose the files of one model; code and pickles are never among them.

    Args:
        repo: As the Hub describes it.
        patterns: Only files whose path matches one of these.
        quantization: A GGUF's; None takes the checkpoint, or the only GGUF there is.

    Returns:
        The kind, a name for the model, and its files.

    Raises:
        ModelNotFound, DownloadError: As `resolve_pull`.
    """
    files = _match_files(repo, patterns)
    weights = [file for file in files if file.path.endswith(".safetensors")]
    choices = list_quantizations(files)
    if quantization is None and weights:
        if patterns and choices:
            raise DownloadError(
                f"{repo.name}: the patterns match safetensors and GGUF files",
                "Choose one kind with --file.",
            )
        chosen = _choose_checkpoint(repo, files, takes_all=bool(patterns))
        return "checkpoint", repo.name.split("/")[1], _limit(repo, chosen)
    if not choices:
        what = "no GGUF" if weights else "no safetensors and no GGUF"
        where = "the files that match" if patterns else f"its {len(repo.files)} files"
        raise DownloadError(f"{repo.name}: {what} among {where}", f"Look at {repo.page}.")
    choice = _choose_quantization(repo, choices, quantization)
    return "gguf", choice.stem, _limit(repo, choice.files)


def _match_files(repo: HubRepo, patterns: Sequence[str]) -> list[HubFile]:
    """Files that may be fetched: those that match, code and pickles left out."""
    matching = [
        file
        for file in repo.files
        if not patterns or any(fnmatchcase(file.path, pattern) for pattern in patterns)
    ]
    files = [file for file in matching if is_data_file(file.path)]
    if matching and patterns and not files:
        raise DownloadError(
            f"{repo.name}: {matching[0].path!a:.120} is no weights, settings or text",
            "What could run code is never fetched.",
        )
    if patterns and not matching:
        raise ModelNotFound(
            f"{repo.name}: no file matches {', '.join(patterns)}",
            f"{repo.page}/tree/main lists them.",
        )
    return files


def _choose_checkpoint(
    repo: HubRepo, files: Sequence[HubFile], *, takes_all: bool
) -> Sequence[HubFile]:
    """The weights, settings, tokenizer and licence in the root of a repository; or all of `files`,
    if those are a checkpoint."""
    root = [file for file in files if "/" not in file.path]
    weights = [file for file in root if file.path.endswith(".safetensors")]
    standard = [file for file in weights if _STANDARD_SHARD.fullmatch(file.path)]
    if not weights or "config.json" not in {file.path for file in root}:
        raise DownloadError(
            f"{repo.name}: no config.json with safetensors beside it "
            + ("among the files that match" if takes_all else "in its root"),
            f"Look at {repo.page}; --file chooses files.",
        )
    _check_whole(repo, [PurePosixPath(file.path).stem for file in standard or weights])
    texts = [file for file in root if _is_setting(PurePosixPath(file.path))]
    return files if takes_all else (standard or weights) + texts


def _is_setting(path: PurePosixPath) -> bool:
    return path.suffix in _SETTINGS_SUFFIXES or path.stem.upper() in (
        "LICENSE",
        "LICENCE",
        "NOTICE",
    )


def list_quantizations(files: Iterable[HubFile]) -> list[Quantization]:
    """Group GGUF files into models, by size; projectors and importance matrices are none."""
    groups: dict[tuple[str, str], list[HubFile]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.suffix != ".gguf" or path.name.startswith("mmproj") or "imatrix" in path.name:
            continue
        split = _SPLIT.fullmatch(path.stem)
        stem = split["stem"] if split else path.stem
        groups.setdefault((str(path.parent), stem), []).append(file)
    found = [
        Quantization(_name_quantization(stem), stem, tuple(sorted(members, key=lambda f: f.path)))
        for (_, stem), members in groups.items()
    ]
    return sorted(found, key=lambda quantization: quantization.size_bytes)


def _name_quantization(stem: str) -> str:
    names: list[str] = _QUANTIZATION.findall(stem)
    return names[-1] if names else stem


def _choose_quantization(
    repo: HubRepo, choices: Sequence[Quantization], wanted: str | None
) -> Quantization:
    fitting = [
        choice
        for choice in choices
        if wanted is None or wanted.lower() in (choice.name.lower(), choice.stem.lower())
    ]
    if len(fitting) != 1:
        listed = ", ".join(f"{c.name} ({c.size_bytes / 2**30:.1f} GiB)" for c in fitting or choices)
        problem = f"{len(fitting)} GGUF models fit" if fitting else f"no GGUF is called {wanted}"
        raise ModelNotFound(
            f"{repo.name}: {problem}",
            f"Choose with {repo.name}:NAME, or with --file. There are: {listed}.",
        )
    _check_whole(repo, [PurePosixPath(file.path).stem for file in fitting[0].files])
    return fitting[0]


def _check_whole(repo: HubRepo, stems: Iterable[str]) -> None:
    """Refuse a set of splits in which one is missing."""
    splits = [match for match in map(_SPLIT.fullmatch, stems) if match]
    for count in {split["count"] for split in splits}:
        there = {int(split["index"]) for split in splits if split["count"] == count}
        missing = set(range(1, min(int(count), _MAX_FILES) + 1)) - there
        if missing:
            raise DownloadError(
                f"{repo.name}: part {min(missing)} of {int(count)} is missing",
                f"Its owner has not uploaded everything: look at {repo.page}.",
            )


def _limit(repo: HubRepo, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    if len(files) > _MAX_FILES:
        raise DownloadError(
            f"{repo.name}: {len(files)} files, more than the {_MAX_FILES} of any model",
            "Choose some with --file.",
        )
    return tuple(files)
