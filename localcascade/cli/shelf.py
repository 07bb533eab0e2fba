"""The models for the screens of the chat: looked at, fetched and made on this machine.

The chat makes it before its first paint, so what looks and fetches is imported when it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localcascade.errors import CascadeError
from localcascade.tui.shelf import Cancelled, Look, Offer, Transfer

if TYPE_CHECKING:
    from localcascade.cli.transfer import Meter
    from localcascade.download.ranges import Connections

OnTransfer = Callable[[Transfer], None]
IsCancelled = Callable[[], bool]

_LOOK_EVERY_S = 0.1


class LocalShelf:
    """The store and the catalog of this machine; implements `localcascade.tui.shelf.Shelf`."""

    def look(self) -> Look:
        """Measure the machine, and list what is installed, then what could be."""
        from localcascade.cli.offering import Offering, describe_machine, measure_machine

        machine = measure_machine()
        return Look(describe_machine(machine), tuple(Offering(machine).list_offers()))

    def read_free_disk(self) -> int:
        """Free bytes where models are kept."""
        from localcascade import hardware, paths

        return hardware.read_free_disk(paths.find_data_folder())

    def fetch(self, offer: Offer, on_progress: OnTransfer, is_cancelled: IsCancelled) -> str:
        """Fetch a model, or quantize the bundled one; as Shelf says."""
        from quantize.errors import QuantizeError

        try:
            if offer.state == "bundled":
                _quantize_bundled(offer.name, on_progress, is_cancelled)
                return ""
            if offer.download_bytes:
                return _pull(offer, on_progress, is_cancelled)
        except QuantizeError as error:
            raise CascadeError(error.message, error.hint) from error
        return _advise_quantize(offer)


def _quantize_bundled(name: str, on_progress: OnTransfer, is_cancelled: IsCancelled) -> None:
    from localcascade.cli.offering import BUNDLED_TYPE
    from localcascade.store import bundled_model_path, find_checkpoint
    from quantize.convert import quantize_checkpoint

    def tell(_stage: str, done: int, total: int) -> None:
        if is_cancelled():
            raise Cancelled
        on_progress(Transfer("Quantizing", done, total))

    output = bundled_model_path(name)
    output.parent.mkdir(parents=True, exist_ok=True)
    quantize_checkpoint(find_checkpoint(name), output, BUNDLED_TYPE, name=name, on_progress=tell)


def _pull(offer: Offer, on_progress: OnTransfer, is_cancelled: IsCancelled) -> str:
    """Fetch a checkpoint as `localcascade pull` does, the licence having been accepted."""
    from localcascade.cli.pull import find_same, forget_work, install_plan
    from localcascade.cli.transfer import Meter
    from localcascade.download.hub import check_online, find_token
    from localcascade.download.plan import resolve_pull
    from localcascade.download.ranges import Connections
    from localcascade.download.transfer import FILES_NAME, fetch_files
    from localcascade.store import open_staging

    check_online(f"pull {offer.name}")
    on_progress(Transfer("Asking the Hub", 0, 0))
    token = find_token()
    plan = resolve_pull(offer.name, token=token)
    meter = Meter({file.path: file.size_bytes for file in plan.files})

    def count(stage: str, path: str, n_bytes: int) -> None:
        meter.count(stage, path, n_bytes)
        on_progress(_read_meter(meter))

    def tell_wait() -> None:
        on_progress(Transfer("Another process is fetching it; waiting for that one", 0, 0))

    with open_staging(plan.kind, plan.name, on_wait=tell_wait) as staging:
        if find_same(plan) is None:
            with Connections(token) as connections, _stop_when(is_cancelled, connections):
                digests = fetch_files(connections, plan.files, staging, on_bytes=count)
            install_plan(plan, staging / FILES_NAME, digests)
        forget_work(staging)
    return _advise_quantize(offer)


def _read_meter(meter: Meter) -> Transfer:
    verified_bytes = sum(meter.verified.values())
    stage = "Fetching" if meter.done_bytes < meter.total_bytes else "Reading back"
    done = meter.done_bytes if stage == "Fetching" else verified_bytes
    rate, left_s = meter.compute_rate(), meter.compute_left_s()
    return Transfer(stage, max(done, 0), meter.total_bytes, rate, left_s)


@contextmanager
def _stop_when(is_cancelled: IsCancelled, connections: Connections) -> Iterator[None]:
    """Break all connections off once that is wanted, also while no byte comes."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            if is_cancelled():
                connections.stop()
                return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    except CascadeError as error:
        if is_cancelled():
            raise Cancelled from error
        raise
    finally:
        is_over.set()
        looking.join()


def _advise_quantize(offer: Offer) -> str:
    from localcascade.cli.plan import DEFAULT_TYPE

    type_name = offer.type or DEFAULT_TYPE
    option = f"--fit {type_name}" if type_name[:1].isdecimal() else f"--type {type_name}"
    command = f"localcascade quantize {offer.name} {offer.name}.gguf {option}"
    return f"{offer.name} is here. Now quantize it:\n{command}"
