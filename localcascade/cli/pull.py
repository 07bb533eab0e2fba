"""`localcascade pull`: a model of the Hub into the store."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.transfer import Meter, Watcher, draw_transfer, print_line, write_lines
from localcascade.cli.units import format_bytes
from localcascade.errors import CascadeError, ModelFileError

if TYPE_CHECKING:
    from localcascade.digest import Digest
    from localcascade.download.plan import PullPlan
    from localcascade.store import InstalledModel

_ACCEPTED_NAME = "accepted"
"""In the staging folder: the licence that was accepted, so that a rerun does not ask again."""


def complete_catalog_name(incomplete: str) -> list[tuple[str, str]]:
    """Complete a name of the catalog that can be pulled; an unreadable catalog completes none."""
    from localcascade.catalog import load_catalog

    try:
        entries = load_catalog().entries
    except CascadeError:
        return []
    return [
        (name, entry.summary)
        for name, entry in entries.items()
        if entry.repo and name.startswith(incomplete)
    ]


def pull(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ORG/REPO[@REVISION][:QUANT]",
            help="A name of the catalog, or any repository of the Hub.",
            autocompletion=complete_catalog_name,
        ),
    ],
    patterns: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="PATTERN", help="Only files that match; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licence.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on stdout, the result last.")
    ] = False,
) -> None:
    """Download a model and verify it.

    A checkpoint comes for quantizing, a GGUF for running. What runs code is never fetched. The
    model appears when every byte has been read back from the disk and has the Hub's hash. A run
    that was killed goes on when given again. HF_ENDPOINT and HF_TOKEN are honoured.

    \b
    localcascade pull nemotron-cascade-2
    localcascade pull nvidia/Nemotron-Cascade-2-30B-A3B@main --yes --json
    localcascade pull ORG/REPO-GGUF:Q4_K_M
    localcascade pull ORG/REPO --file "*.json" --file "model-*.safetensors"
    """
    from localcascade.download.hub import check_online, find_token
    from localcascade.download.plan import resolve_pull
    from localcascade.store import open_staging

    check_online(f"pull {target}")
    token = find_token()
    plan = resolve_pull(target, patterns or (), token=token)
    if as_json:
        print_line({"event": "plan"} | _describe_plan(plan))
    with open_staging(plan.kind, plan.name, on_wait=lambda: _note_wait(plan.name)) as staging:
        model = find_same(plan)
        fetched_bytes = 0
        if model is None:
            _ask_licence(plan, staging, yes)
            model, fetched_bytes = _fetch(plan, staging, token, as_json)
        forget_work(staging)
    _report(plan, model, fetched_bytes, as_json)


def _describe_plan(plan: PullPlan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "kind": plan.kind,
        "repo": plan.repo,
        "commit": plan.commit,
        "licence": plan.licence,
        "total_bytes": plan.size_bytes,
        "files": [
            {"path": file.path, "bytes": file.size_bytes, "sha256": file.sha256 or None}
            for file in plan.files
        ],
    }


def _note_wait(name: str) -> None:
    print(f"note: another process is pulling {name}; waiting for it", file=sys.stderr)


def find_same(plan: PullPlan) -> InstalledModel | None:
    """Find the model if it is installed already; refuse if its name belongs to another one."""
    from localcascade.store import check_name_free, list_models

    for model in list_models():
        manifest = model.manifest
        if manifest is None or (model.name, model.kind) != (plan.name, plan.kind):
            continue
        sizes = {file.path: file.size for file in manifest.files}
        is_same = sizes == {file.path: file.size_bytes for file in plan.files}
        if is_same and (manifest.repo, manifest.commit) == (plan.repo, plan.commit):
            return model
    check_name_free(plan.name, plan.kind)
    return None


def _ask_licence(plan: PullPlan, staging: Path, is_accepted: bool) -> None:
    """Show the licence once, and go on only if it is accepted."""
    licence = plan.licence or f"none is stated; look at {plan.page}"
    mark = staging / _ACCEPTED_NAME
    if mark.exists() and mark.read_text("utf-8", errors="replace") == licence:
        return
    shown = [
        f"{plan.repo} at {plan.commit[:12]}: {plan.kind}, {len(plan.files)} files, "
        f"{format_bytes(plan.size_bytes)}",
        f"Licence: {licence}",
    ]
    if plan.is_gated:
        shown.append(f"Gated: its terms are accepted at {plan.page}, with the account of HF_TOKEN.")
    print(console.escape_controls("\n".join(shown)), file=sys.stderr)
    if not is_accepted:
        if not sys.stdin.isatty():
            raise console.UsageError(
                "the licence must be accepted, and nobody is here to ask",
                "Read it, then add --yes.",
            )
        if not typer.confirm("Do you accept it?", err=True):
            raise CascadeError("the licence was not accepted; nothing was fetched")
    mark.write_text(licence, "utf-8")


def _fetch(
    plan: PullPlan, staging: Path, token: str | None, as_json: bool
) -> tuple[InstalledModel, int]:
    """Fetch and install; returns the model, and how many bytes came over the network."""
    from localcascade.download.ranges import Connections
    from localcascade.download.transfer import FILES_NAME, fetch_files

    meter = Meter({file.path: file.size_bytes for file in plan.files})
    with Connections(token) as connections, _watch(meter, as_json) as watch:
        digests = fetch_files(connections, plan.files, staging, on_bytes=watch)
    return install_plan(plan, staging / FILES_NAME, digests), meter.fetched_bytes


def forget_work(staging: Path) -> None:
    """Delete what this run or an earlier one needed until the model was installed."""
    from localcascade.download.transfer import FILES_NAME, JOURNAL_NAME

    for name in (JOURNAL_NAME, _ACCEPTED_NAME):
        (staging / name).unlink(missing_ok=True)
    shutil.rmtree(staging / FILES_NAME, ignore_errors=True)


@contextmanager
def _watch(meter: Meter, as_json: bool) -> Iterator[Watcher]:
    with write_lines(meter) if as_json else draw_transfer(meter) as watcher:
        yield watcher


def install_plan(plan: PullPlan, folder: Path, digests: dict[str, Digest]) -> InstalledModel:
    from localcascade.store import install_model, make_manifest
    from quantize.errors import QuantizeError

    notes = [f"licence: {plan.licence}"] if plan.licence else []
    try:
        manifest = make_manifest(
            folder,
            plan.name,
            plan.kind,
            repo=plan.repo,
            commit=plan.commit,
            notes=notes,
            digests=digests,
        )
        return install_model(folder, manifest)
    except (ModelFileError, QuantizeError):
        # The bytes are the Hub's, so a rerun would only find the same.
        forget_work(folder.parent)
        raise


def _report(plan: PullPlan, model: InstalledModel, fetched_bytes: int, as_json: bool) -> None:
    if as_json:
        print_line(
            {
                "event": "installed",
                "name": model.name,
                "kind": model.kind,
                "path": str(model.place),
                "repo": plan.repo,
                "commit": plan.commit,
                "total_bytes": plan.size_bytes,
                "fetched_bytes": fetched_bytes,
            }
        )
        return
    print(f"{model.name}: {format_bytes(plan.size_bytes)}, verified, in {model.place}")
    step = f"quantize {model.name} {model.name}.gguf --type q4_0"
    step = f"run {model.name}" if model.kind == "gguf" else step
    print(f"note: next, `localcascade {step}`", file=sys.stderr)
