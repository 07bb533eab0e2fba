"""What the screens are told of models: which there are, what fits, how far a transfer is.

Plain data. Who knows the store, the catalog and the network implements Shelf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from localcascade.fit import Plan

State = Literal["installed", "bundled", "catalog"]
"""Here; here, but to be quantized first, which takes seconds; or to be fetched."""
Fit = Literal["gpu", "memory", "experts", "layers", "no", "unknown"]

FIT_WORDS: Final[Mapping[Fit, str]] = MappingProxyType(
    {
        "gpu": "fits the GPU",
        "memory": "fits in RAM",
        "experts": "with CPU experts",
        "layers": "with CPU layers",
        "no": "does not fit",
        "unknown": "cannot tell",
    }
)


@dataclass(frozen=True, slots=True)
class Share:
    """What a model takes of one device."""

    device: str
    used_bytes: int
    free_bytes: int
    """Before the model is loaded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that can be had, and what it would be on this machine."""

    name: str
    state: State
    summary: str = ""
    type: str = ""
    """Of most weights, or the preset that it would be quantized by."""
    size_bytes: int = 0
    """Of the GGUF file, as it is or would be."""
    fit: Fit = "unknown"
    tokens_per_s: float = 0.0
    """A rough estimate; 0 if there is none."""
    n_ctx: int = 0
    """Tokens of context that fit; 0 if unknown."""
    shares: tuple[Share, ...] = ()
    download_bytes: int = 0
    """To be fetched before it can be used."""
    licence: str = ""
    licence_url: str = ""
    notes: tuple[str, ...] = ()
    """Sentences: what is wrong with it, what would fit instead, what comes after fetching it."""


@dataclass(frozen=True, slots=True)
class Look:
    """All models at one moment."""

    machine: str
    """In a line: what there is to compute on, and how much memory it has."""
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far the fetching or making of a model is."""

    stage: str
    """In a word or two, for the reader."""
    done: int
    """Bytes, or whatever the stage counts."""
    total: int
    bytes_per_s: float = 0.0
    left_s: float | None = None
    """None while that cannot be told."""


class Cancelled(Exception):
    """The user did not want to wait any longer; raised by Shelf.fetch."""


class Shelf(Protocol):
    """The models there are. Every method may take seconds, and is called in a thread."""

    def look(self) -> Look:
        """Look at the machine and at what is installed, then at what could be.

        Raises:
            CascadeError: The catalog cannot be read.
        """

    def read_free_disk(self) -> int:
        """Free bytes where models are kept."""

    def fetch(
        self,
        offer: Offer,
        on_progress: Callable[[Transfer], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        """Fetch or make a model, its licence accepted.

        Returns:
            What has to be done before it can be used, for the reader; empty if nothing.

        Raises:
            Cancelled: is_cancelled said so; what has come is kept for the next time.
            CascadeError: It cannot be had.
        """


def judge_plan(planned: Plan) -> Fit:
    """Put a plan into one of a few words."""
    if not planned.fits:
        return "no"
    if len(planned.uses) == 1 or not planned.placement.n_gpu_layers:
        return "memory"
    if planned.placement.cpu_expert_layers:
        return "experts"
    # Only token embeddings stay in main memory where all layers are on GPUs.
    return "gpu" if planned.uses[-1].kv_bytes + planned.uses[-1].state_bytes == 0 else "layers"


def choose_recommended(offers: Sequence[Offer]) -> Offer | None:
    """Choose what to fetch on a machine that has nothing: the first of the catalog that fits."""
    fitting = [offer for offer in offers if offer.state == "catalog" and offer.fit in _FITTING]
    return fitting[0] if fitting else None


def choose_trial(offers: Sequence[Offer]) -> Offer | None:
    """Choose what can be tried at once, without a network."""
    return next((offer for offer in offers if offer.state == "bundled"), None)


def filter_offers(offers: Sequence[Offer], typed: str) -> list[Offer]:
    """Keep the offers that hold every word that was typed, anywhere in what is shown of them."""
    words = typed.lower().split()
    return [offer for offer in offers if all(word in _write_all(offer) for word in words)]


_FITTING: Final = ("gpu", "memory", "experts", "layers")


def _write_all(offer: Offer) -> str:
    parts = (offer.name, offer.state, offer.type, offer.summary, FIT_WORDS[offer.fit])
    return " ".join(parts).lower()
