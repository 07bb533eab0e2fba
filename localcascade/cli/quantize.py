"""`localcascade quantize`: a checkpoint becomes one GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.progress import OnProgress, draw_counts, draw_progress
from localcascade.cli.recipes import TRIAL_STAGES, Proposal, Request, propose
from localcascade.cli.units import format_bytes, format_duration
from localcascade.store import complete_model_name, find_checkpoint, find_model, mark_used

if TYPE_CHECKING:
    from localcascade.cli.validation import Validation
    from localcascade.download.remote import Stream
    from quantize.convert import Result

DEFAULT_TYPE = "q8_0"

_STAGES = {"fetch": "Fetching", "write": "Encoding", "verify": "Reading back"}


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, or a name of the catalog; or ORG/REPO[@REV] to stream.",
            autocompletion=complete_model_name,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT.gguf]", help="The file to make; not with --dry-run."),
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="One type for all large matrices: q8_0 (the default), q4_0, bf16, …",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Choose types for a card of this memory, as 16G."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Choose types for a file of this size.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take types and widths from a recipe or a preset."),
    ] = None,
    ctx: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --fit: tokens of the context.")
    ] = None,
    kv: Annotated[
        str, typer.Option(metavar="TYPE", help="With --fit: type of the KV cache.")
    ] = "f16",
    parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --fit: conversations at the same time.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, and make nothing.")
    ] = False,
    recipe_out: Annotated[
        Path | None,
        typer.Option("--recipe-out", "-o", metavar="FILE", help="Write the recipe as TOML."),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type for matrices whose width TYPE cannot divide."),
    ] = None,
    pad: Annotated[
        bool, typer.Option("--pad", help="Widen with zeros, exactly, what TYPE does not fit.")
    ] = False,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix, from `localcascade calibrate`."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sensitivities, from `calibrate --probe`."),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Second moments, from `calibrate --moments`."),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Measure the file, and try recipes beside its own.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="With --validate: the original as GGUF; else one is made, and removed.",
            autocompletion=complete_model_name,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="With --validate: UTF-8 to read."
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the weights from the Hub, and keep none of them.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Encoding threads; one a core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Convert and quantize a Hugging Face checkpoint to GGUF.

    With --fit, --size or --recipe every matrix gets its own type, and experts a width that makes
    better types usable, so that the file costs as little quality as its bytes allow; --dry-run
    shows the plan, also of a model that is not here. Otherwise the large matrices become TYPE,
    and one that TYPE does not fit is refused, never replaced silently. Norms, router, convolution
    and biases stay f32. OUT.gguf appears when it is complete and verified, and not before. A run
    that was killed goes on when given again.

    --imatrix, --sensitivity and --moments bring in what `calibrate` learnt, each for a smaller
    loss at the same size. --validate compares the file with its original and records the figures
    in it; with --fit or --size up to three more recipes of that size are made, and the best stays.

    With --stream the disk needs room for OUT.gguf only: each file of the repository is read once,
    in order, and must have the hash that the Hub announces.

    \b
    localcascade quantize tiny tiny.gguf --type q8_0
    localcascade quantize nemotron-cascade-2 --fit 16G --ctx 32768 --dry-run
    localcascade quantize nemotron-cascade-2 nc2.gguf --fit 16G --imatrix i.gguf
    localcascade quantize nemotron-cascade-2 --size 14G --dry-run -o nc2.toml
    localcascade quantize nemotron-cascade-2 nc2.gguf --recipe nc2.toml
    localcascade quantize tiny t.gguf --type iq3_s --pad --imatrix t.imatrix
    localcascade quantize tiny t.gguf --size 3M --validate --text notes.txt
    localcascade quantize --stream nemotron-cascade-2 nc2.gguf --type iq4_nl
    """
    request = Request(fit, size, recipe, ctx, kv, parallel, imatrix, sensitivity)
    _check_options(request, output, dry_run, type_name, fallback, pad)
    _check_validation(request, validate, stream or dry_run, reference, text)
    if dry_run:
        _show(_propose_local(source, request), recipe_out, as_json)
        return
    assert output
    original = find_model(reference) if reference else None
    given = _Given(
        output, type_name, fallback, pad, imatrix, moments, threads, validate, original, text
    )
    _convert(source, stream, request, given, recipe_out, as_json)


@dataclass(frozen=True)
class _Given:
    """What the conversion is told whatever the recipe."""

    output: Path
    type_name: str | None
    fallback: str | None
    pad: bool
    imatrix: Path | None
    moments: Path | None
    n_threads: int | None
    is_validated: bool
    reference: Path | None
    text: Path | None


def _convert(
    source: str,
    is_streamed: bool,
    request: Request,
    given: _Given,
    recipe_out: Path | None,
    as_json: bool,
) -> None:
    proposal = None
    if request.is_any and not is_streamed:
        find_checkpoint(source)  # weights are needed now, not only sizes
        proposal = _propose_local(source, request)
    with (
        draw_progress(_STAGES) as on_progress,
        _open_source(source, is_streamed, on_progress) as opened,
    ):
        if request.is_any and is_streamed:
            proposal = propose(source, opened.folder, opened.name, request, on_progress)
        result = _run(opened, given, proposal, on_progress)
    validation = _validate(opened, given, proposal) if proposal and given.is_validated else None
    proposal = validation.proposal if validation else proposal
    if proposal:
        _tell(proposal, recipe_out)
    _report(result, opened.stream, validation, as_json)


def _run(
    opened: _Source, given: _Given, proposal: Proposal | None, on_progress: OnProgress
) -> Result:
    from quantize.convert import quantize_checkpoint
    from quantize.draft import list_recipe_metadata
    from quantize.moments import read_moments

    type_name = None if proposal else given.type_name or DEFAULT_TYPE
    with read_moments(given.moments) if given.moments else nullcontext() as moments:
        return quantize_checkpoint(
            opened.folder,
            given.output,
            type_name,
            choices=proposal.choices if proposal else None,
            metadata=list_recipe_metadata(proposal.choices) if proposal else (),
            fallback=given.fallback,
            pad=given.pad,
            importance=given.imatrix,
            moments=moments,
            name=opened.name,
            shards=opened.stream.shards if opened.stream else None,
            n_threads=given.n_threads,
            on_progress=on_progress,
        )


def _validate(opened: _Source, given: _Given, proposal: Proposal) -> Validation:
    from localcascade.cli.validation import open_reference, validate

    def make(other: Proposal, output: Path) -> Result:
        with draw_progress(_STAGES) as on_progress:
            return _run(opened, replace(given, output=output), other, on_progress)

    with open_reference(opened.folder, given.output, given.reference) as reference:
        return validate(given.output, proposal, reference, given.text, make)


def _propose_local(source: str, request: Request) -> Proposal:
    with draw_counts(TRIAL_STAGES) as on_progress:
        return propose(source, None, None, request, on_progress)


def _show(proposal: Proposal, recipe_out: Path | None, as_json: bool) -> None:
    from localcascade.cli.proposal_table import describe_proposal, print_proposal

    if as_json:
        console.print_json(describe_proposal(proposal))
    else:
        print_proposal(proposal)
    _tell(proposal, recipe_out)


def _tell(proposal: Proposal, recipe_out: Path | None) -> None:
    for note in proposal.notes:
        console.print_note(note)
    if recipe_out:
        recipe_out.write_text(proposal.format_recipe(), "utf-8")


def _check_options(
    request: Request,
    output: Path | None,
    dry_run: bool,
    type_name: str | None,
    fallback: str | None,
    pad: bool,
) -> None:
    ways = {"--type": type_name, "--fit": request.fit, "--size": request.size}
    given = [option for option, value in (ways | {"--recipe": request.recipe}).items() if value]
    if len(given) > 1:
        raise console.UsageError(f"{given[0]} and {given[1]}: give one of them")
    if request.is_any and (fallback or pad):
        raise console.UsageError(f"--fallback and --pad go with --type, not with {given[0]}")
    if dry_run and not request.is_any:
        raise console.UsageError("--dry-run needs --fit, --size or --recipe")
    if output is None and not dry_run:
        raise console.UsageError("OUT.gguf is missing: name the file to make")
    for name in filter(None, (type_name, fallback)):
        _check_type(name)


def _check_validation(
    request: Request, is_validated: bool, is_wrong: bool, reference: str | None, text: Path | None
) -> None:
    if not is_validated and (reference or text):
        raise console.UsageError("--reference and --text go with --validate")
    if is_validated and not request.is_any:
        raise console.UsageError("--validate needs --fit, --size or --recipe; else use `compare`")
    if is_validated and is_wrong:
        raise console.UsageError("--validate goes neither with --stream nor with --dry-run")


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint is read from."""

    folder: Path
    name: str | None = None
    """Of the model; None takes the folder's."""
    stream: Stream | None = None
    """The Hub, if the weights come from there."""


@contextmanager
def _open_source(source: str, is_streamed: bool, on_progress: OnProgress) -> Iterator[_Source]:
    if not is_streamed:
        folder = find_checkpoint(source)
        mark_used(folder)
        yield _Source(folder)
        return
    from localcascade.download.remote import open_stream

    with open_stream(source, on_progress=on_progress) as stream:
        licence = stream.plan.licence or f"none is stated; look at {stream.plan.page}"
        print(f"note: licence: {console.escape_controls(licence)}", file=sys.stderr)
        yield _Source(stream.folder, stream.plan.name, stream)


def _check_type(name: str) -> None:
    from quantize.ggml import type_named

    try:
        type_named(name)
    except ValueError as error:
        raise console.UsageError(str(error)) from error


def _report(
    result: Result, stream: Stream | None, validation: Validation | None, as_json: bool
) -> None:
    from localcascade.cli.validation import describe_validation, list_lines

    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for name in result.unverified if stream else ():
        print(
            f"note: {console.escape_controls(name)} took several runs to read, so its hash could "
            "not be checked",
            file=sys.stderr,
        )
    if as_json:
        console.print_json(
            _describe(result)
            | ({"stream": _describe_stream(result, stream)} if stream else {})
            | ({"validation": describe_validation(validation)} if validation else {})
        )
        return
    print(
        f"{result.output}: {format_bytes(result.file_bytes)}, {result.n_tensors} tensors, "
        f"{format_duration(result.elapsed_s)}, peak memory {format_bytes(result.peak_rss_bytes)}"
    )
    for line in list_lines(validation) if validation else ():
        print(line)
    if stream:
        n_files = len(result.verified) + len(result.unverified)
        print(
            f"{stream.plan.repo}@{stream.plan.commit[:12]}: "
            f"{format_bytes(stream.shards.fetched_bytes)} fetched, "
            f"{len(result.verified)} of {n_files} files verified"
        )


def _describe(result: Result) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "file_bytes": result.file_bytes,
        "n_tensors": result.n_tensors,
        "elapsed_s": round(result.elapsed_s, 3),
        "peak_rss_bytes": result.peak_rss_bytes,
        "notes": list(result.notes),
    }


def _describe_stream(result: Result, stream: Stream) -> dict[str, Any]:
    return {
        "repo": stream.plan.repo,
        "commit": stream.plan.commit,
        "fetched_bytes": stream.shards.fetched_bytes,
        "verified": list(result.verified),
        "unverified": list(result.unverified),
    }
