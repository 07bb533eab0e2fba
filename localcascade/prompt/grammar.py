"""A grammar (GBNF), read before llama.cpp reads it: what would kill or hang that is refused. Pure.

llama.cpp says no to most of what is no grammar. But a rule that begins with itself behind an empty
one takes all memory, `{5,3}` counts down from 2^64, a thousand brackets are a thousand calls deep,
and rules that lead to each other twice are followed 2^n times. What is left to llama.cpp is to
understand the rest; what is left to who chooses tokens is a place where nothing is allowed.

Source: llama.cpp's src/llama-grammar.cpp, whose parser has the same parts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

MAX_CHARS = 1 << 20
MAX_ELEMENTS = 1 << 20
"""Characters, classes and references, repeated ones as often as that: llama.cpp writes them out."""
MAX_DEPTH = 100
"""Of brackets."""
MAX_REPEATS = 2000
"""llama.cpp's own; a higher upper bound it would forget without a word."""
MAX_WAYS = 20_000
"""Beginnings that may be open at one place: each is tried with every token, and held against all
others."""
MAX_ALL_WAYS = 20_000_000

_TERMINAL = ""
_PARTS = re.compile(
    r"""
      (?P<space> (?: [\ \t\r\n] | \#[^\r\n]* )+ )
    | (?P<rule> (?P<name>[a-zA-Z0-9-]+) [\ \t]* ::= )
    | (?P<reference> [a-zA-Z0-9-]+ )
    | (?P<literal> "(?:[^"\\]|\\.)*" )
    | (?P<kind> \[(?:[^\]\\]|\\.)*\] )
    | (?P<token> !?<[^>]*> )
    | (?P<any> \. )
    | (?P<times> [*+?] | \{ \s* (?P<least>\d+) \s* (?:(?P<comma>,) \s* (?P<most>\d*) \s*)? \} )
    | (?P<opening> \( )
    | (?P<closing> \) )
    | (?P<bar> \| )
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)|.", re.DOTALL)
_SHORT_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def check_grammar(grammar: str) -> None:
    """Refuse a grammar that llama.cpp would not survive, or would not mean as it is written.

    Args:
        grammar: GBNF, whose start is `root`.

    Raises:
        ValueError: Says what is wrong, and where.
    """
    check_grammar_text(grammar)
    rules = _Reader(grammar).read()
    _check_names(rules)
    _check_beginnings(rules)


def check_grammar_text(grammar: str) -> None:
    """Refuse what is no text of a grammar, whatever it says.

    Raises:
        ValueError: It is empty or too long, or holds what no text in C can; says at which byte.
    """
    if not grammar.strip():
        raise ValueError("grammar: it is empty")
    if len(grammar) > MAX_CHARS:
        raise ValueError(f"grammar: it has {len(grammar)} characters, but may have {MAX_CHARS}")
    found = re.search("[\0\ud800-\udfff]", grammar)
    if found:
        place = len(grammar[: found.start()].encode())
        what = "a zero, which ends a text" if found[0] == "\0" else "half a character"
        raise ValueError(f"grammar: byte {place} is {what}; write it as an escape")


@dataclass(slots=True)
class _Rule:
    """Alternatives, each the names of rules that follow each other; _TERMINAL is a character."""

    alternatives: list[list[str]] = field(default_factory=lambda: [[]])
    n_times: int = 1
    """How often its first part may follow itself, if that may be empty."""


class _Reader:
    """Reads rules; groups and repetitions become rules of their own, as in llama.cpp.

    Args:
        grammar: GBNF.
    """

    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._rules: dict[str, _Rule] = {}
        self._open: list[_Rule] = []
        self._place = self._n_elements = 0
        self._last_size = 0  # elements of the last symbol

    def read(self) -> dict[str, _Rule]:
        """Read all rules.

        Raises:
            ValueError: It is no GBNF, or too much of it.
        """
        while self._place < len(self._grammar):
            found = _PARTS.match(self._grammar, self._place)
            if found is None:
                raise self._refuse("this is no GBNF")
            self._take(found)
            self._place = found.end()
        if len(self._open) > 1:
            raise self._refuse("a bracket is left open")
        return self._rules

    def _take(self, part: re.Match[str]) -> None:
        kind = next(name for name in _KINDS if part[name] is not None)
        if kind == "space":
            return
        if kind == "rule":
            self._begin(part["name"])
        elif not self._open:
            raise self._refuse("in GBNF a rule begins with its name and ::=")
        elif kind == "times":
            self._repeat(*self._read_times(part))
        elif kind in ("opening", "closing"):
            self._group(is_opening=kind == "opening")
        elif kind == "bar":
            self._open[-1].alternatives.append([])
        elif kind == "reference":
            self._add(part[0], 1)
        else:
            size = _count_characters(part[0]) if kind in ("literal", "kind") else 1
            self._add(_TERMINAL, size)

    def _begin(self, name: str) -> None:
        if len(self._open) > 1:
            raise self._refuse("a bracket is left open")
        self._rules[name] = _Rule()
        self._open = [self._rules[name]]

    def _add(self, symbol: str, size: int) -> None:
        if size:
            self._open[-1].alternatives[-1].append(symbol)
        self._last_size = size
        self._grow(size)

    def _grow(self, n_elements: int) -> None:
        self._n_elements += n_elements
        if self._n_elements > MAX_ELEMENTS:
            raise self._refuse(f"repetitions written out, it has more than {MAX_ELEMENTS} elements")

    def _group(self, *, is_opening: bool) -> None:
        if is_opening:
            if len(self._open) > MAX_DEPTH:
                raise self._refuse(f"brackets may be {MAX_DEPTH} deep")
            self._open.append(self._refer(_Rule()))
            return
        if len(self._open) == 1:
            raise self._refuse("no bracket is open here")
        self._open.pop()
        self._last_size = 1

    def _refer(self, rule: _Rule) -> _Rule:
        """Give a rule a name that no grammar can write, and refer to it."""
        name = f"#{len(self._rules)}"
        self._rules[name] = rule
        self._add(name, 1)
        return rule

    def _read_times(self, part: re.Match[str]) -> tuple[int, int | None]:
        if part[0] in _SHORT_TIMES:
            return _SHORT_TIMES[part[0]]
        if max(map(len, (part["least"], part["most"] or ""))) > 9:
            raise self._refuse(f"a repetition may be {MAX_REPEATS} times")
        least = int(part["least"])
        most = least if part["comma"] is None else int(part["most"]) if part["most"] else None
        if max(least, most or 0) > MAX_REPEATS:
            raise self._refuse(f"a repetition may be {MAX_REPEATS} times")
        if most is not None and most < least:
            raise self._refuse(f"at least {least} times is more than at most {most}")
        return least, most

    def _repeat(self, least: int, most: int | None) -> None:
        """Put a rule in place of the last symbol: as often as must be, then as often as may be."""
        sequence = self._open[-1].alternatives[-1]
        if not sequence:
            raise self._refuse("there is nothing to repeat")
        symbol, size = sequence.pop(), self._last_size
        n_more = 1 if most is None else most - least
        self._grow(size * least + (size + 3) * n_more)
        whole = self._refer(_Rule([[symbol] * min(least, 2)], n_times=max(least, 1)))
        if n_more:
            # That it may go on with itself adds no other beginning.
            more = f"#{len(self._rules)}"
            self._rules[more] = _Rule([[symbol], []], n_times=n_more)
            whole.alternatives[0].append(more)

    def _refuse(self, problem: str) -> ValueError:
        before = self._grammar[: self._place]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return ValueError(f"grammar: line {line}, column {column}: {problem}")


_KINDS = (
    "space", "reference", "literal", "rule", "times", "bar", "opening", "closing", "kind", "any",
    "token",
)  # fmt: skip


def _count_characters(part: str) -> int:
    """Count those of a literal or a class, quotes and brackets left off."""
    body = part[1:-1].removeprefix("^") if part.startswith("[") else part[1:-1]
    return sum(1 for _ in _CHARACTER.finditer(body)) if "\\" in body else len(body)


def _check_names(rules: dict[str, _Rule]) -> None:
    named = {symbol for rule in rules.values() for part in rule.alternatives for symbol in part}
    if missing := sorted({"root", *named} - {_TERMINAL, *rules}):
        raise ValueError(f"grammar: there is no rule `{missing[0]}`")


def _check_beginnings(rules: dict[str, _Rule]) -> None:
    """Refuse rules that begin with themselves, or in too many ways."""
    empty = _find_empty(rules)
    firsts = {name: list(_list_firsts(rule, empty)) for name, rule in rules.items()}
    try:
        order = list(TopologicalSorter(firsts).static_order())
    except CycleError as exc:
        named = [name for name in exc.args[1] if not name.startswith("#")]
        problem = f"rule `{(named or ['root'])[0]}` begins with itself, which none may in GBNF"
        raise ValueError(f"grammar: {problem}") from exc
    ways = {_TERMINAL: 1}
    for name in order:
        if name != _TERMINAL:
            ways[name] = 1 + sum(ways[symbol] for symbol in firsts[name])
            if rules[name].n_times > 1 and set(firsts[name]) & empty:
                ways[name] *= rules[name].n_times
    if max(ways.values()) > MAX_WAYS or sum(ways.values()) > MAX_ALL_WAYS:
        raise ValueError(f"grammar: it may go on in more than {MAX_WAYS} ways at one place")


def _list_firsts(rule: _Rule, empty: set[str]) -> Iterator[str]:
    """List what a rule may begin with."""
    for sequence in rule.alternatives:
        for symbol in sequence:
            yield symbol
            if symbol not in empty:
                break


def _find_empty(rules: dict[str, _Rule]) -> set[str]:
    """Find the rules that may stand for nothing."""
    users: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    n_left: dict[tuple[str, int], int] = {}
    for name, rule in rules.items():
        for number, sequence in enumerate(rule.alternatives):
            n_left[name, number] = len(sequence)
            for symbol in sequence:
                users[symbol].append((name, number))
    empty: set[str] = set()
    found = [name for (name, _), count in n_left.items() if count == 0]
    while found:
        name = found.pop()
        if name in empty:
            continue
        empty.add(name)
        for user in users[name]:
            n_left[user] -= 1
            if n_left[user] == 0:
                found.append(user[0])
    return empty
