"""The shelf of this machine: its offers, and what fetching one leaves in the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from localcascade.cli.offering import BUNDLED_TYPE, Offering, describe_machine, give_back
from localcascade.cli.shelf import LocalShelf
from localcascade.errors import CascadeError
from localcascade.fit import Device, Machine
from localcascade.store import find_checkpoint, find_model, list_models
from localcascade.tui.shelf import Cancelled, Offer, Transfer, choose_recommended, choose_trial
from quantize.gguf import open_gguf
from tests.hub import Fault, Hub, serve_hub
from tests.localcascade.stored import write_gguf

GIB = 1 << 30
TINY = Path(__file__).parents[2] / "localcascade" / "data" / "tiny"


def make_machine(gpu_gib: int, ram_gib: int) -> Machine:
    """A machine that is not this one."""
    gpus = (Device("CUDA0", "gpu", gpu_gib * GIB, gpu_gib * GIB, "Card"),) if gpu_gib else ()
    return Machine(gpus, Device("RAM", "cpu", ram_gib * GIB, ram_gib * GIB))


def find_offer(name: str, gpu_gib: int = 0, ram_gib: int = 64) -> Offer:
    """One of the offers for a machine."""
    offers = Offering(make_machine(gpu_gib, ram_gib)).list_offers()
    return next(offer for offer in offers if offer.name == name)


@pytest.mark.parametrize(
    ("gpu_gib", "ram_gib", "preset", "fit"),
    [
        (32, 64, "24G", "gpu"),
        (21, 64, "20G", "gpu"),
        (14, 64, "12G", "gpu"),
        (6, 64, "24G", "experts"),
        (0, 64, "24G", "memory"),
        (0, 4, "12G", "no"),
    ],
)
def test_the_best_preset_that_fits_is_offered(
    home: Path, gpu_gib: int, ram_gib: int, preset: str, fit: str
) -> None:
    offer = find_offer("nemotron-cascade-2", gpu_gib, ram_gib)
    assert (offer.type, offer.fit, offer.state) == (preset, fit, "catalog")
    assert offer.download_bytes == 63_155_874_688
    assert offer.licence == "NVIDIA Open Model License"
    assert bool(offer.tokens_per_s) == (fit != "no")
    assert [share.device for share in offer.shares] == ["CUDA0", "RAM"][0 if gpu_gib else 1 :]


def test_a_new_user_can_try_one_and_pull_another(home: Path) -> None:
    offers = Offering(make_machine(24, 64)).list_offers()
    trial, recommended = choose_trial(offers), choose_recommended(offers)
    assert trial is not None and trial.name == "tiny" and trial.download_bytes == 0
    assert recommended is not None and recommended.name == "nemotron-cascade-2"


def test_what_is_installed_stands_first_and_what_cannot_be_planned_says_so(home: Path) -> None:
    write_gguf(home / "data" / "models" / "by-hand.gguf")
    offers = Offering(make_machine(0, 64)).list_offers()
    assert [offer.name for offer in offers][:2] == ["by-hand", "tiny"]
    assert (offers[0].state, offers[0].fit) == ("installed", "unknown")
    assert "'llama'" in offers[0].notes[0]


def test_the_bundled_model_is_made_and_then_installed(home: Path) -> None:
    shelf = LocalShelf()
    told: list[Transfer] = []
    offer = find_offer("tiny")
    assert shelf.fetch(offer, told.append, lambda: False) == ""
    with open_gguf(find_model("tiny")) as file:
        names = {tensor.type.name for tensor in file.tensors.values()}
    assert BUNDLED_TYPE in names
    assert told and told[-1].done == told[-1].total
    made = find_offer("tiny")
    assert (made.state, made.fit) == ("installed", "memory")


def test_making_it_can_be_ended_and_leaves_nothing_that_runs(home: Path) -> None:
    shelf = LocalShelf()
    with pytest.raises(Cancelled):
        shelf.fetch(find_offer("tiny"), lambda _transfer: None, lambda: True)
    assert list_models() == []
    assert find_offer("tiny").state == "bundled"


ENTRY = """
[small]
summary = "A small one"
repo = "org/small"
licence = { name = "MIT", url = "https://opensource.org/license/mit" }
parameters = { total = 10, active = 10 }
context_tokens = 4096
checkpoint_bytes = 11_809_040
modes = ["thinking"]
sampling = { temperature = 1.0, top_p = 0.95 }
"""


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one checkpoint, which the user's own catalog names."""
    (home / "config").mkdir()
    (home / "config" / "models.toml").write_text(ENTRY)
    with serve_hub() as hub:
        hub.push("org/small", {path.name: path.read_bytes() for path in TINY.iterdir()})
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "")
        monkeypatch.setenv("HF_HOME", str(home / "hf"))
        yield hub


def test_a_checkpoint_is_fetched_and_the_next_step_told(hub: Hub, home: Path) -> None:
    shelf, told = LocalShelf(), list[Transfer]()
    offer = find_offer("small")
    words = shelf.fetch(offer, told.append, lambda: False)
    assert "localcascade quantize small small.gguf --type iq4_nl" in words
    for path in TINY.iterdir():
        assert (find_checkpoint("small") / path.name).read_bytes() == path.read_bytes()
    total = sum(path.stat().st_size for path in TINY.iterdir())
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("Reading back", total, total)
    again = find_offer("small")
    assert (again.state, again.download_bytes) == ("catalog", 0)
    n_bytes = hub.count_bytes()
    assert shelf.fetch(again, told.append, lambda: False) == words
    assert hub.count_bytes() == n_bytes


@pytest.mark.timeout(300)
def test_a_fetch_that_hangs_can_be_ended_and_goes_on_later(hub: Hub, home: Path) -> None:
    shelf = LocalShelf()
    hub.faults.append(Fault("stall", "*.safetensors", n_times=-1))
    offer = find_offer("small")
    with pytest.raises(Cancelled):
        shelf.fetch(
            offer, lambda _transfer: None, lambda: any(s.fault and s.n_bytes for s in hub.served)
        )
    assert find_offer("small").download_bytes
    hub.faults.clear()
    assert shelf.fetch(offer, lambda _transfer: None, lambda: False)
    assert (find_checkpoint("small") / "config.json").exists()


def test_a_repository_that_is_gone_is_an_error(hub: Hub, home: Path) -> None:
    shelf = LocalShelf()
    hub.repos.clear()
    with pytest.raises(CascadeError, match="org/small"):
        shelf.fetch(find_offer("small"), lambda _transfer: None, lambda: False)


def test_the_machine_is_told_in_a_line(home: Path) -> None:
    words = describe_machine(make_machine(24, 64))
    assert words == "Card 24.0 GiB  ·  RAM 64.0 GiB, 64.0 GiB free"


def test_what_the_model_in_use_holds_counts_as_free() -> None:
    gpus = (Device("A", "gpu", 24 * GIB, 4 * GIB), Device("B", "gpu", 24 * GIB, 14 * GIB))
    machine = Machine(gpus, Device("RAM", "cpu", 64 * GIB, 50 * GIB))
    freed = give_back(machine, 15 * GIB, 20 * GIB)
    assert [gpu.free_bytes // GIB for gpu in freed.gpus] == [14, 19]
    assert freed.host.free_bytes == 64 * GIB
    assert give_back(machine, 0, 0) == machine


def test_this_machine_is_looked_at(home: Path) -> None:
    look = LocalShelf().look()
    assert "RAM " in look.machine
    assert {"tiny", "nemotron-cascade-2"} <= {offer.name for offer in look.offers}
    assert next(offer for offer in look.offers if offer.name == "tiny").fit != "unknown"
