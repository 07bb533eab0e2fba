"""What the models of the store and the catalog would be on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from localcascade.cli.plan import DEFAULT_TYPE, find_shape
from localcascade.cli.units import format_bytes, parse_size
from localcascade.errors import CascadeError, EngineDied
from localcascade.tui.shelf import Offer, Share, judge_plan

if TYPE_CHECKING:
    import psutil

    from localcascade.catalog import CatalogEntry
    from localcascade.fit import Device, Machine, Plan
    from localcascade.store import InstalledModel

BUNDLED_TYPE = "q8_0"
_CHECKPOINT_NOTE = "It comes as a checkpoint, from which the file is then quantized."


class Offering:
    """Makes offers for one machine.

    Args:
        machine: What may be used of it.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._planned: dict[str, Offer] = {}

    def list_offers(self) -> Sequence[Offer]:
        """List what is installed, then what could be; what cannot be read says so itself.

        Raises:
            ConfigError: The user's catalog is wrong.
        """
        from localcascade.catalog import load_catalog
        from localcascade.store import list_models

        models = list_models()
        installed = [self._offer_installed(m) for m in models if m.kind == "gguf"]
        names = {offer.name for offer in installed}
        fetched = {model.name for model in models if model.kind == "checkpoint"}
        known = load_catalog().entries.items()
        others = [
            self._offer_entry(name, entry, is_fetched=name in fetched)
            for name, entry in known
            if name not in names
        ]
        return (*installed, *others)

    def _offer_installed(self, model: InstalledModel) -> Offer:
        weights = model.manifest.weights if model.manifest else None
        offer = Offer(
            model.name,
            "installed",
            type=weights.type if weights else "",
            size_bytes=model.size_bytes,
            notes=(model.problem,) if model.problem else (),
        )
        return self._plan(offer, None)

    def _offer_entry(self, name: str, entry: CatalogEntry, *, is_fetched: bool) -> Offer:
        if entry.bundled:
            planned = self._plan(Offer(name, "bundled"), BUNDLED_TYPE)
        else:
            planned = self._plan_presets(entry.like or name, tuple(entry.presets))
            planned = replace(planned, notes=(*planned.notes, _CHECKPOINT_NOTE))
        return replace(
            planned,
            name=name,
            summary=entry.summary,
            download_bytes=0 if entry.bundled or is_fetched else entry.checkpoint_bytes,
            licence=entry.licence.name,
            licence_url=entry.licence.url,
        )

    def _plan_presets(self, name: str, presets: Sequence[str]) -> Offer:
        """Plan a model of the catalog by its presets, once for all that are like it."""
        if name not in self._planned:
            offer = Offer(name, "catalog")
            types = sorted(presets, key=parse_size) or [DEFAULT_TYPE]
            smallest = self._plan(offer, types[0])
            larger = types[:0:-1] if smallest.fit != "no" else []
            plans = [*(self._plan(offer, type_name) for type_name in larger), smallest]
            self._planned[name] = choose_best(plans)
        return self._planned[name]

    def _plan(self, offer: Offer, type_name: str | None) -> Offer:
        """Add to an offer what the memory plan says of it."""
        from localcascade import fit
        from quantize.errors import QuantizeError

        try:
            shape, _ = find_shape(offer.name, type_name, self._machine)
            planned = fit.plan(shape, self._machine)
        except (CascadeError, QuantizeError, OSError, ValueError) as error:
            return replace(offer, notes=(*offer.notes, str(error)))
        alternatives = [f"Would fit with {a.change}." for a in planned.alternatives]
        return replace(
            offer,
            type=offer.type or type_name or "",
            size_bytes=offer.size_bytes or shape.weights_bytes,
            fit=judge_plan(planned),
            tokens_per_s=planned.tokens_per_s_estimate if planned.fits else 0.0,
            n_ctx=planned.max_context,
            shares=tuple(_list_shares(planned)),
            notes=(*offer.notes, *alternatives),
        )


def choose_best(offers: Sequence[Offer]) -> Offer:
    """Choose the largest that fits one kind of memory, else the largest that fits at all.

    Args:
        offers: Of one model, the largest first.

    Returns:
        One of them; the smallest where none fits.
    """
    for fits in (("gpu", "memory"), ("experts", "layers")):
        for offer in offers:
            if offer.fit in fits:
                return offer
    return offers[-1]


def _list_shares(planned: Plan) -> Iterator[Share]:
    for use in planned.uses:
        yield Share(use.device.name, use.used_bytes, use.device.free_bytes)


def measure_machine() -> Machine:
    """Measure what a model may use of this machine, as if none of ours were loaded."""
    from localcascade import fit, hardware
    from localcascade.engine import backends

    memory = hardware.read_memory()
    try:
        machine = backends.make_machine(backends.describe_backends().devices, memory)
    except EngineDied:
        machine = fit.Machine((), backends.make_host(memory))
    return give_back(machine, *_measure_own())


def give_back(machine: Machine, gpu_bytes: int, host_bytes: int) -> Machine:
    """Count as free what the model in use will leave when another one is opened.

    Args:
        machine: As measured beside the model.
        gpu_bytes: That the model holds of all GPUs; taken to be spread as the used memory is.
        host_bytes: That it holds of main memory.
    """
    used_bytes = sum(gpu.total_bytes - gpu.free_bytes for gpu in machine.gpus) or 1
    gpus = (
        _free(gpu, gpu_bytes * (gpu.total_bytes - gpu.free_bytes) // used_bytes)
        for gpu in machine.gpus
    )
    return replace(machine, gpus=tuple(gpus), host=_free(machine.host, host_bytes))


def _free(device: Device, n_bytes: int) -> Device:
    return replace(device, free_bytes=min(device.free_bytes + n_bytes, device.total_bytes))


def _measure_own() -> tuple[int, int]:
    """Measure what our own workers hold: of GPUs, and of main memory without mapped files."""
    import psutil

    from localcascade import hardware

    children = psutil.Process().children(recursive=True)
    pids = {child.pid for child in children}
    holders = hardware.find_memory_holders(limit=64)
    gpu_bytes = sum(h.held_bytes for h in holders if h.is_gpu and h.pid in pids)
    return gpu_bytes, sum(map(_measure_private, children))


def _measure_private(process: psutil.Process) -> int:
    """Weights that are mapped from their file count as available already."""
    import psutil

    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return max(memory.rss - getattr(memory, "shared", memory.rss), 0)


def describe_machine(machine: Machine) -> str:
    """Say in a line what there is to compute on."""
    gpus = (
        f"{gpu.description or gpu.name} {format_bytes(gpu.total_bytes)}" for gpu in machine.gpus
    )
    free, total = format_bytes(machine.host.free_bytes), format_bytes(machine.host.total_bytes)
    return "  ·  ".join([*gpus, f"RAM {total}, {free} free"])
