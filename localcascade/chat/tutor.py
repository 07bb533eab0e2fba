"""Tutor mode: how much help a student asks for, and what the model is told about giving it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Level = Literal["hint", "step", "solution"]
LEVELS: tuple[Level, ...] = ("hint", "step", "solution")
"""From little help to all of it."""
ATTEMPT = "My answer: "
"""What an answer of the student's own begins with."""

DATA_FOLDER = Path(__file__).parents[1] / "data" / "tutor"


@dataclass(frozen=True, slots=True)
class Help:
    """One level of help."""

    title: str
    wish: str
    """What the student says to have it."""
    rule: str
    """What the model is to do then."""


@dataclass(frozen=True, slots=True)
class Tutor:
    """What makes a model a tutor."""

    manner: str
    """How it behaves, whatever is asked for."""
    helps: Mapping[Level, Help]

    @property
    def system(self) -> str:
        """What the model is told, once for the whole conversation."""
        rules = (f'When the student says "{help.wish}"\n{help.rule}' for help in self._levels)
        return "\n\n".join([self.manner, *rules])

    def ask(self, level: Level, question: str = "") -> str:
        """Put a wish for help into the student's words.

        Args:
            level: How much.
            question: What was written besides.
        """
        return "\n\n".join(filter(None, [question.strip(), self.helps[level].wish]))

    @property
    def _levels(self) -> list[Help]:
        return [self.helps[level] for level in LEVELS]


@cache
def load_tutor() -> Tutor:
    """Read the instructions that are shipped with this program."""
    import tomllib

    tables = tomllib.loads((DATA_FOLDER / "instructions.toml").read_text(encoding="utf-8"))
    helps = {level: Help(**_strip(tables[level])) for level in LEVELS}
    return Tutor(tables["manner"].strip(), helps)


def _strip(table: Mapping[str, str]) -> dict[str, str]:
    return {key: text.strip() for key, text in table.items()}


def read_attempt(text: str) -> str | None:
    """The answer in a message that is an attempt; None where it is something else."""
    is_attempt = text.startswith(ATTEMPT)
    return text.removeprefix(ATTEMPT).strip() if is_attempt else None
