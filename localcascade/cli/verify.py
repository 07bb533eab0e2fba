"""`localcascade verify`: is an installed model still what was installed, and if not, mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson, InstalledName, OfKind
from localcascade.cli.progress import OnProgress, draw_progress
from localcascade.cli.units import format_bytes
from localcascade.errors import CascadeError, ModelFileError
from localcascade.store import find_installed

if TYPE_CHECKING:
    from localcascade.store import InstalledModel, Manifest
    from localcascade.store.check import FileCheck

_STAGES = {"verify": "Reading", "repair": "Fetching"}
_MAX_SHOWN = 3


def verify(
    name: InstalledName,
    kind: OfKind = None,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Fetch what is damaged anew.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare a model with what was installed, and mend it.

    It is read from the disk; sizes and SHA-256 of every 16 MiB are compared. What is damaged is
    named and, if the model came from a Hub, fetched again: only that. The exit code is 5 if
    damage remains, and 6 if mending needs the network but must not use it.

    \b
    localcascade verify nemotron-cascade-2
    localcascade verify tiny --no-repair --json
    """
    from localcascade.store.check import check_model

    model = find_installed(name, kind)
    with draw_progress(_STAGES) as on_progress:
        checks = check_model(model, on_progress)
        broken = [check for check in checks if not check.is_sound]
        mended, failure = _try_mend(model, broken if repair else [], on_progress)
    if as_json:
        console.print_json(_describe(model, checks, mended))
    else:
        _draw(model, checks, mended)
    if failure:
        raise failure
    mended_paths = {check.file.path for check in mended if check.is_sound}
    _refuse_damage(model, [check for check in broken if check.file.path not in mended_paths])


def _try_mend(
    model: InstalledModel, broken: Sequence[FileCheck], on_progress: OnProgress
) -> tuple[tuple[FileCheck, ...], CascadeError | None]:
    """Mend what a Hub has; what was found is reported before a failure is."""
    manifest = model.manifest
    if not (broken and manifest and manifest.repo and manifest.commit):
        return (), None
    try:
        return _mend(model, manifest, broken, on_progress), None
    except CascadeError as error:
        return (), error


def _mend(
    model: InstalledModel, manifest: Manifest, broken: Sequence[FileCheck], on_progress: OnProgress
) -> tuple[FileCheck, ...]:
    from localcascade.download.hub import check_online, find_endpoint, find_token

    check_online(f"mending {model.name}")
    from localcascade.download.ranges import Connections, RemoteFile
    from localcascade.store.check import find_url, repair_model

    endpoint = find_endpoint()
    with Connections(find_token()) as connections:
        return repair_model(
            model,
            broken,
            lambda file: RemoteFile(connections, find_url(manifest, file, endpoint), file.size),
            on_progress,
        )


def _refuse_damage(model: InstalledModel, broken: Sequence[FileCheck]) -> None:
    if not broken:
        return
    manifest = model.manifest
    can_mend = bool(manifest and manifest.repo and manifest.commit)
    again = f"Run `localcascade verify {model.name}`, which fetches what is damaged."
    hint = again if can_mend else "Its origin is not known: remove it and install it again."
    problem = f"{len(broken)} of its files are not what was installed"
    raise ModelFileError(model.place, problem, hint=hint)


def _describe(
    model: InstalledModel, checks: Sequence[FileCheck], mended: Sequence[FileCheck]
) -> dict[str, Any]:
    sound_now = {check.file.path for check in (*checks, *mended) if check.is_sound}
    return {
        "name": model.name,
        "kind": model.kind,
        "ok": len(sound_now) == len(checks),
        "files": [
            {
                "path": check.file.path,
                "expected_bytes": check.file.size,
                "found_bytes": check.found_bytes,
                "damaged": [list(part) for part in check.damaged],
                "was_sound": check.is_sound,
                "mended": not check.is_sound and check.file.path in sound_now,
            }
            for check in checks
        ],
    }


def _draw(model: InstalledModel, checks: Sequence[FileCheck], mended: Sequence[FileCheck]) -> None:
    mended_paths = {check.file.path for check in mended if check.is_sound}
    table = console.make_table("File", "Size>", "State")
    for check in checks:
        state = describe_check(check)
        if check.file.path in mended_paths:
            state = f"mended ({state})"
        size = format_bytes(check.file.size)
        table.add_row(console.make_text(check.file.path), size, state)
    console.print_tables(table)
    n_sound = sum(check.is_sound for check in checks) + len(mended_paths)
    total = format_bytes(sum(check.file.size for check in checks))
    print(f"{model.name}: {n_sound} of {len(checks)} files are sound, {total}")


def describe_check(check: FileCheck) -> str:
    """Say in a few words what is wrong with a file, and where; "sound" if nothing is."""
    if check.is_sound:
        return "sound"
    if check.found_bytes is None:
        return "missing"
    shown = [f"{start} to {stop}" for start, stop in check.damaged[:_MAX_SHOWN]]
    more = len(check.damaged) - _MAX_SHOWN
    parts = [f"damaged: bytes {', '.join(shown)}{f' and {more} more' if more > 0 else ''}"]
    if check.found_bytes != check.file.size:
        parts[:0] = [f"{check.found_bytes} bytes instead of {check.file.size}"]
    return "; ".join(parts if check.damaged else parts[:1])
