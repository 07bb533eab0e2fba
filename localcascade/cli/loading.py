"""How a model is to be loaded, or which server has it: options said once for all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, Literal, get_type_hints

import typer

from localcascade.cli import console


@dataclass(frozen=True, slots=True)
class Placement:
    """How a file is loaded, and where its parts are."""

    kv: Annotated[
        Literal["f16", "q8_0", "q4_0"],
        typer.Option("--kv", help="Type of the KV cache: the smaller, the longer a context fits."),
    ] = "f16"
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, metavar="N", help="CPU threads; as many as cores."),
    ] = None
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "--gpu-layers",
            min=-1,
            metavar="N",
            help="Layers on the GPU, -1 for all; as many as fit.",
        ),
    ] = None
    cpu_experts: Annotated[
        int | None,
        typer.Option(
            "--cpu-experts",
            min=0,
            metavar="N",
            help="Layers whose experts stay in main memory; as few as must.",
        ),
    ] = None
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash/--no-flash",
            help="Flash attention; where the device can. A small --kv needs it.",
        ),
    ] = None
    mlock: Annotated[
        bool, typer.Option("--mlock", help="Keep the model from being swapped out of memory.")
    ] = False
    no_mmap: Annotated[
        bool, typer.Option("--no-mmap", help="Read the model into memory instead of mapping it.")
    ] = False

    lookup: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(
            "--lookup",
            help="Run ahead of greedy answers that repeat what was said; auto: where it is faster.",
        ),
    ] = None

    @property
    def engine_options(self) -> dict[str, Any]:
        """Say it in the engine's words: arguments of Engine, only those that were chosen."""
        chosen = {
            "cache_type": self.kv if self.kv != "f16" else None,
            "n_threads": self.threads,
            "n_gpu_layers": self.gpu_layers,
            "n_cpu_expert_layers": self.cpu_experts,
            "flash_attention": self.flash_attention,
            "use_mlock": self.mlock or None,
            "use_mmap": False if self.no_mmap else None,
            "lookup": self.lookup,
        }
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the answers come from: a model that is loaded here, or a server's."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            min=1,
            metavar="N",
            help="Context in tokens, prompt and answer; what fits, to 32768.",
        ),
    ] = None
    placement: Placement = Placement()
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote",
            metavar="URL",
            help="Ask an OpenAI-compatible server; MODEL is its name there, - its first one.",
        ),
    ] = None
    remote_key: Annotated[
        str | None,
        typer.Option(
            "--remote-key",
            metavar="KEY",
            envvar="LOCALCASCADE_REMOTE_KEY",
            help="The server's key; the variable keeps it out of the list of processes.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.remote is not None and self.engine_options:
            raise console.UsageError(
                "--remote: the server chooses its context and how it loads",
                "Leave such options out.",
            )

    @property
    def engine_options(self) -> dict[str, Any]:
        """Say it in the engine's words: arguments of Engine, only those that were chosen."""
        context = {} if self.ctx is None else {"n_ctx": self.ctx}
        return context | self.placement.engine_options


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take a group of options as one parameter.

    Args:
        command: Each of its parameters whose type is a dataclass stands for that one's fields,
            which are options as they would be parameters; a field may be such a group itself.

    Returns:
        The command as Typer is to see it, with all options one by one.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    groups = {p.name: hints[p.name] for p in own if is_dataclass(hints[p.name])}
    flat: list[inspect.Parameter] = []
    for parameter in own:
        group = groups.get(parameter.name)
        typed = parameter.replace(annotation=hints[parameter.name])
        flat += _list_options(group) if group is not None else [typed]

    @wraps(command)
    def call(**values: Any) -> None:
        made = {name: _gather(group, values) for name, group in groups.items()}
        command(**values, **made)

    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in flat}
    return call


def _list_options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    listed: list[inspect.Parameter] = []
    for field in fields(group):
        kind = hints[field.name]
        default = field.default if field.default is not MISSING else inspect.Parameter.empty
        parameter = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        )
        listed += _list_options(kind) if is_dataclass(kind) else [parameter]
    return listed


def _gather(group: Any, values: dict[str, Any]) -> Any:
    """Take the values of a group out of all values."""
    hints = get_type_hints(group)
    return group(
        **{
            f.name: _gather(hints[f.name], values)
            if is_dataclass(hints[f.name])
            else values.pop(f.name)
            for f in fields(group)
        }
    )
