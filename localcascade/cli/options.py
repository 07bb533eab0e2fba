"""Arguments that several commands take, said once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from localcascade.store import Kind, complete_installed_name

InstalledName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name of `localcascade ls`.",
        autocompletion=complete_installed_name,
    ),
]
OfKind = Annotated[Kind | None, typer.Option("--kind", help="Where two models have the same name.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="URL",
        help="Ask an OpenAI-compatible server; MODEL is its name there, - its first one.",
    ),
]
RemoteKey = Annotated[
    str | None,
    typer.Option(
        "--remote-key",
        metavar="KEY",
        envvar="LOCALCASCADE_REMOTE_KEY",
        help="The server's key; the variable keeps it out of the list of processes.",
    ),
]
CacheType = Annotated[
    Literal["f16", "q8_0", "q4_0"],
    typer.Option("--kv", help="Type of the KV cache: the smaller, the longer a context fits."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="CPU threads; as many as cores."),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers", min=-1, metavar="N", help="Layers on the GPU, -1 for all; as many as fit."
    ),
]
CpuExperts = Annotated[
    int | None,
    typer.Option(
        "--cpu-experts",
        min=0,
        metavar="N",
        help="Layers whose experts stay in main memory; as few as must.",
    ),
]
Mlock = Annotated[
    bool, typer.Option("--mlock", help="Keep the model from being swapped out of memory.")
]
NoMmap = Annotated[
    bool, typer.Option("--no-mmap", help="Read the model into memory instead of mapping it.")
]


def choose_loading(
    kv: str = "f16",
    threads: int | None = None,
    gpu_layers: int | None = None,
    cpu_experts: int | None = None,
    mlock: bool = False,
    no_mmap: bool = False,
) -> dict[str, Any]:
    """Say in the engine's words how a model is to be loaded.

    Returns:
        Arguments for open_engine; only those that are not the default.
    """
    chosen = {
        "cache_type": kv if kv != "f16" else None,
        "n_threads": threads,
        "n_gpu_layers": gpu_layers,
        "n_cpu_expert_layers": cpu_experts,
        "use_mlock": mlock or None,
        "use_mmap": False if no_mmap else None,
    }
    return {name: value for name, value in chosen.items() if value is not None}
