"""`localcascade plan`: would a model fit, and what of it would go where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.options import AsJson
from localcascade.cli.units import parse_size
from localcascade.errors import EngineDied, ModelNotFound
from localcascade.store import complete_model_name, list_parts

if TYPE_CHECKING:
    from localcascade.catalog import Preset
    from localcascade.fit import Device, Machine, ModelShape, Wishes

DEFAULT_TYPE = "iq4_nl"
"""Of a model that is not here yet: small, and its blocks divide every width of the 30 B ones."""


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, an installed name, or a name of the catalog.",
            autocompletion=complete_model_name,
        ),
    ],
    vram: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="A card's memory, once for each; 0 for none."),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Main memory; without --vram, there is no card."),
    ] = None,
    ctx: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Context in tokens, of all sequences.")
    ] = None,
    kv: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of the KV cache: f16, q8_0 or q4_0.")
    ] = "f16",
    parallel: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Conversations at the same time.")
    ] = 1,
    gpu_layers: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Layers on the GPU, the output being one."),
    ] = None,
    cpu_experts: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Layers whose experts stay in main memory."),
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Type or preset of a model to be made."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whether a model fits, and what of it goes where.

    A model that is not here yet is planned from the catalog, by the preset for the memory there
    is or as if every matrix had --type. With --vram or --ram the plan is for a machine that is
    not this one. If it does not fit, the nearest plans that do are shown, and the exit code is 4.
    Speeds are rough estimates.

    \b
    localcascade plan tiny
    localcascade plan nemotron-cascade-2 --vram 16G --ram 32G --ctx 131072
    localcascade plan nemotron-cascade-2 --type iq3_s --vram 12G --vram 12G
    localcascade plan ./model.gguf --kv q8_0 --parallel 4 --json | jq .fits
    """
    from localcascade import fit
    from localcascade.cli.memory_bars import print_plan

    if kv not in fit.KV_TYPES:
        raise console.UsageError(f"--kv {kv}: there are {', '.join(fit.KV_TYPES)}")
    machine = find_machine(vram, ram)
    shape, note = find_shape(model, type_name, machine)
    wishes = fit.Wishes(ctx, kv, parallel, cpu_experts, gpu_layers)
    try:
        planned = fit.plan(shape, machine, wishes)
    except ValueError as error:
        raise console.UsageError(f"{model}: {error}") from error
    if as_json:
        console.print_json({"model": model, **fit.describe_plan(planned), "note": note or None})
    else:
        print_plan(model, shape, planned)
        if note:
            console.print_note(note)
    if not planned.fits:
        _explain_holders(shape, machine, wishes)
        raise typer.Exit(console.ExitCode.DOES_NOT_FIT)


def find_shape(model: str, type_name: str | None, machine: Machine) -> tuple[ModelShape, str]:
    """Find out what a model weighs: from its file, or else from the catalog.

    Args:
        model: As the user named it.
        type_name: Plan it in this type, or by the catalog's preset of this name, whatever file
            there is; None takes the file.
        machine: For which a preset is chosen if there is no file.

    Returns:
        Its shape, and a line on how it was estimated; empty if it was read.

    Raises:
        ModelNotFound: Neither file, nor checkpoint, nor an entry that knows its sizes.
    """
    from localcascade.fit import read_file_shape
    from localcascade.store import find_model
    from quantize.gguf import open_gguf

    if type_name is not None:
        return _estimate_shape(model, type_name)
    try:
        path = find_model(model)
    except ModelNotFound:
        return _estimate_shape(model, choose_preset(_find_presets(model), machine) or DEFAULT_TYPE)
    with ExitStack() as stack:
        files = [stack.enter_context(open_gguf(part)) for part in list_parts(path)]
        return read_file_shape(*files), ""


def choose_preset(presets: Iterable[str], machine: Machine) -> str | None:
    """Choose the preset for the largest card that a machine's memory is no smaller than.

    Args:
        presets: Their names, which are sizes of cards.
        machine: Its GPUs count, or its main memory if it has none.

    Returns:
        The preset's name: that of the smallest if all are too large, None if there is none.
    """
    have_bytes = sum(device.total_bytes for device in machine.gpus or (machine.host,))
    names = sorted(presets, key=parse_size)
    fitting = [name for name in names if parse_size(name) <= have_bytes]
    return next(iter(fitting[-1:] or names[:1]), None)


def _find_presets(model: str) -> Mapping[str, Preset]:
    from localcascade.catalog import load_catalog

    found = load_catalog().find_entry(model)
    return found[1].presets if found else {}


def _estimate_shape(model: str, type_name: str) -> tuple[ModelShape, str]:
    from localcascade.fit import make_config_shape, make_recipe_shape
    from quantize.recipe_file import parse_recipe

    path, config = _find_config(model)
    preset = _find_presets(model).get(type_name)
    if preset:
        rules = parse_recipe(preset.recipe, Path(f"catalog entry {model}"))
        return make_recipe_shape(path, config, rules), f"as the preset {type_name} would make it"
    try:
        shape = make_config_shape(path, config, type_name)
    except ValueError as error:
        raise console.UsageError(f"--type: {error}") from error
    return shape, f"estimated, as if every large matrix were {type_name}"


def _find_config(model: str) -> tuple[Path, Mapping[str, Any]]:
    """Find a config.json: of a checkpoint that is here, or what the catalog keeps of one."""
    from localcascade.catalog import load_catalog
    from localcascade.store import find_checkpoint
    from quantize.safetensors import read_object

    try:
        path = find_checkpoint(model) / "config.json"
    except ModelNotFound:
        _, entry = load_catalog().find_entry(model) or (model, None)
        if entry is None or not entry.geometry:
            raise
        return Path(f"catalog entry {model}"), entry.geometry
    return path, read_object(path)


def find_machine(vram: Sequence[str] | None, ram: str | None) -> Machine:
    """Make the machine to plan for: this one unless something is said.

    Args:
        vram: Memory of each card; None and nothing else said takes this machine's.
        ram: Main memory; None takes this machine's.

    Raises:
        UsageError: A size is none.
    """
    from localcascade import fit, hardware
    from localcascade.engine import backends

    try:
        cards = [parse_size(size) for size in vram or ()]
        ram_bytes = parse_size(ram) if ram is not None else None
    except ValueError as error:
        raise console.UsageError(str(error)) from error
    memory = hardware.read_memory()
    host = backends.make_host(memory)
    if ram_bytes is not None:
        host = fit.Device("RAM", "cpu", ram_bytes, ram_bytes)
    if vram is None and ram is None:
        return _find_own_machine(host)
    sizes = [size for size in cards if size]
    gpus = (fit.Device(f"GPU {i}", "gpu", size, size) for i, size in enumerate(sizes))
    return fit.Machine(tuple(gpus), host)


def _find_own_machine(host: Device) -> Machine:
    from localcascade import fit, hardware
    from localcascade.engine import backends

    try:
        found = backends.describe_backends()
    except EngineDied as error:
        console.print_note(f"{error.message}; planned without a GPU")
        return fit.Machine((), host)
    if hardware.find_gpus() and not found.gpus:
        console.print_note("this llama.cpp cannot use the GPU: `localcascade doctor` tells how")
    return backends.make_machine(found.devices, hardware.read_memory())


def _explain_holders(shape: ModelShape, machine: Machine, wishes: Wishes) -> None:
    """Say who holds the memory, if the model would fit an idle machine."""
    from localcascade import fit, hardware

    if machine.idle == machine or not fit.plan(shape, machine.idle, wishes).fits:
        return
    console.print_note("it would fit if other programs held no memory")
    for holder in hardware.list_hoarders():
        console.print_note(holder.describe())
