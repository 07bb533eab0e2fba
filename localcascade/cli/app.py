"""The `localcascade` command: its subcommands, its global options, and errors into exit codes.

A subcommand's module is imported only when that command, or the list of all, is asked for; and
each imports what is heavy (numpy, pydantic, Rich, the engine) inside its functions.
"""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from localcascade import __version__
from localcascade.cli import console

# In the order of the help text. Each is the function, or the group of commands, of its own name in
# localcascade.cli.NAME; both end in "_" where the name is a keyword of Python.
COMMANDS = (
    "demo",
    "run",
    "solve",
    "chat",
    "serve",
    "pull",
    "quantize",
    "calibrate",
    "compare",
    "bench",
    "inspect",
    "models",
    "ls",
    "plan",
    "ps",
    "session",
    "show",
    "verify",
    "import",
    "rm",
    "du",
    "doctor",
)


class CommandTable(TyperGroup):
    """The commands of COMMANDS, each imported when it is first needed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  (typer's signature)
        """Name every command, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command by name; None for an unknown one, with all loaded to suggest from."""
        if cmd_name not in COMMANDS:
            for name in COMMANDS:
                self.get_command(ctx, name)
        elif cmd_name not in self.commands:
            self.add_command(_load_command(cmd_name), cmd_name)
        return self.commands.get(cmd_name)


def _load_command(name: str) -> Any:
    own_name = f"{name}_" if keyword.iskeyword(name) else name
    module = importlib.import_module(f"localcascade.cli.{own_name}")
    command = getattr(module, own_name)
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(command)
    return typer.main.get_command(single)


app = typer.Typer(
    name="localcascade",
    cls=CommandTable,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"localcascade {__version__}")
        raise typer.Exit


@app.callback()
def set_global_options(
    ctx: typer.Context,
    offline: Annotated[
        bool,
        typer.Option("--offline", envvar="LOCALCASCADE_OFFLINE", help="Never use the network."),
    ] = False,
    version: Annotated[  # noqa: ARG001  (acted on by its callback)
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run NVIDIA Nemotron-Cascade-2 and its relatives on the machine you have.

    Begin with `localcascade demo`: it takes a minute and needs no network.
    """
    if offline:
        os.environ["LOCALCASCADE_OFFLINE"] = "1"
        os.environ["HF_HUB_OFFLINE"] = "1"
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(console.ExitCode.USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code (table in console.py).

    Args:
        arguments: Without the program's name; None takes them from sys.argv.
    """
    sys.exit(run_arguments(arguments))


def run_arguments(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, errors printed.

    Returns:
        The exit code.
    """
    try:
        command = typer.main.get_command(app)
        result = command.main(arguments, prog_name="localcascade", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _report_usage(error)
    except SystemExit as ending:
        return _read_exit(ending)
    except BrokenPipeError:
        return _hush_stdout()
    except KeyboardInterrupt:
        return console.ExitCode.INTERRUPTED
    except Exception as error:
        # typer wraps an EOFError, which says nothing, and keeps what was raised as the cause.
        reason = error.__cause__ if isinstance(error, typer.Abort) and error.__cause__ else error
        console.print_error(reason)
        return console.find_exit_code(reason)
    return result if isinstance(result, int) else console.ExitCode.DONE


def _report_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "localcascade"
    message = error.format_message().replace(": Value error, ", ": ")  # pydantic's prefix
    console.print_problem(message, f"`{command} --help` tells how it is used.")
    return error.exit_code


def _read_exit(ending: SystemExit) -> int:
    """Turn typer's own endings into a code; a reader that left (`| head`) is no failure."""
    if isinstance(ending.__context__, BrokenPipeError):
        return _hush_stdout()
    return ending.code if isinstance(ending.code, int) else console.ExitCode.FAILED


def _hush_stdout() -> int:
    """Send what is still buffered nowhere, or the interpreter would complain while it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return console.ExitCode.DONE
