"""The README maps the house as it stands: every module, and every command."""

from __future__ import annotations

import ast
from pathlib import Path

from localcascade.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]


def list_modules() -> list[tuple[str, str]]:
    """Name and first sentence of every module of the two packages."""
    found = []
    for path in sorted([*ROOT.glob("quantize/**/*.py"), *ROOT.glob("localcascade/**/*.py")]):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = f"{path.parent.name}/" if path.name == "__init__.py" else path.name
        found.append((name, docstring.split("\n\n")[0].replace("\n", " ").rstrip(".")))
    return found


def test_every_module_has_its_line() -> None:
    lines = {" ".join(line.split()) for line in (ROOT / "README.md").read_text().splitlines()}
    missing = [f"{name} {says}" for name, says in list_modules() if f"{name} {says}" not in lines]
    assert not missing, "\n".join(missing)


def test_every_command_is_in_the_table() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"| `localcascade {name}" not in readme] == []
