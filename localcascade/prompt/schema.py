"""A JSON schema as a grammar (GBNF) that lets a model write nothing else. Pure.

What a grammar cannot hold is refused, not forgotten: an answer either follows the whole schema or
the request fails. Members come in the schema's order; those that it does not name are left out,
unless `additionalProperties` asks for them.

Source: JSON Schema 2020-12; llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from localcascade.prompt.grammar import MAX_REPEATS, check_grammar

Schema = Mapping[str, Any]

_BASE = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": r'"true" | "false"',
    "null": r'"null"',
    "value": r"object | array | string | number | boolean | null",
    "member": r'string ws ":" ws value',
    "object": r'"{" ws (member (ws "," ws member)* ws)? "}"',
    "array": r'"[" ws (value (ws "," ws value)* ws)? "]"',
}
_ANNOTATIONS = {
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "format", "deprecated", "readOnly", "writeOnly",
}  # fmt: skip
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
}
_COMMA, _NOTHING = ' ws "," ws ', '""'
_CHOICES = ("anyOf", "oneOf")
MAX_RULES = 10_000


def write_grammar(schema: Schema) -> str:
    """Write the grammar of a JSON schema.

    Args:
        schema: The schema; references must be into itself.

    Returns:
        GBNF, whose start is `root`.

    Raises:
        ValueError: It asks for what a grammar cannot hold, or is no schema; names the place.
    """
    try:
        grammar = _Writer(schema).write()
    except RecursionError as exc:
        raise ValueError("JSON schema: it is nested too deeply") from exc
    except (AttributeError, TypeError) as exc:  # such as a list where an object should be
        raise ValueError(f"JSON schema: it is malformed: {exc}") from exc
    try:
        check_grammar(grammar)
    except ValueError as exc:
        raise ValueError(f"JSON schema, as a {exc}") from exc
    return grammar


class _Writer:
    """The rules of one schema, as they are found."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._rules: dict[str, str] = dict(_BASE)
        self._references: dict[str, str] = {}

    def write(self) -> str:
        self._rules["root"] = self._visit(self._schema, "#")
        return "\n".join(f"{name} ::= {rule}" for name, rule in self._rules.items())

    def _visit(self, schema: object, place: str) -> str:
        """Write what stands for a schema in a rule; `place` names it in messages."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise ValueError(f"JSON schema, {place}: nothing fits it")
        if "$ref" in schema:
            return self._refer(schema["$ref"], place)
        self._check_keywords(schema, place)
        if "const" in schema:
            return _write_value(schema["const"])
        if "enum" in schema:
            return self._any_of([_write_value(value) for value in schema["enum"]])
        for keyword in _CHOICES:
            if keyword in schema:
                return self._any_of(self._visit_all(schema[keyword], f"{place}/{keyword}"))
        types = schema.get("type", _guess_type(schema))
        named = types if isinstance(types, list) else [types]
        return self._any_of([self._write_type(kind, schema, place) for kind in named])

    def _visit_all(self, schemas: Sequence[object], place: str) -> list[str]:
        return [self._visit(schema, f"{place}/{i}") for i, schema in enumerate(schemas)]

    def _refer(self, reference: object, place: str) -> str:
        """Give a reference a rule of its own, since it may lead back to itself."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(f"JSON schema, {place}: $ref {reference!r} leads out of the schema")
        if reference not in self._references:
            name = self._references[reference] = f"ref-{len(self._references)}"
            self._rules[name] = self._visit(self._resolve(reference, place), reference)
        return self._references[reference]

    def _resolve(self, reference: str, place: str) -> object:
        found: Any = self._schema
        for step in reference.lstrip("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise ValueError(f"JSON schema, {place}: $ref {reference!r} leads nowhere")
            found = found[key]
        return found

    def _check_keywords(self, schema: Schema, place: str) -> None:
        known = {"type", "const", "enum", *_CHOICES, *_ANNOTATIONS}.union(*_OF_TYPE.values())
        unknown = sorted(set(schema) - known)
        if unknown:
            raise ValueError(
                f"JSON schema, {place}: {unknown[0]!r} cannot be held by a grammar; leave it out"
            )

    def _write_type(self, kind: object, schema: Schema, place: str) -> str:
        if kind == "object" and _OF_TYPE["object"] & set(schema):
            return self._write_object(schema, place)
        if kind == "array":
            return self._write_array(schema, place)
        if kind == "string":
            return self._write_string(schema, place)
        if kind not in ("object", "number", "integer", "boolean", "null", "value"):
            raise ValueError(f"JSON schema, {place}: {kind!r} is no type")
        return str(kind)

    def _write_string(self, schema: Schema, place: str) -> str:
        if "minLength" not in schema and "maxLength" not in schema:
            return "string"
        least, most = _read_limits(schema, "minLength", "maxLength", place)
        return rf'"\"" char{_count(least, most)} "\""'

    def _write_array(self, schema: Schema, place: str) -> str:
        first = self._visit_all(schema.get("prefixItems", ()), f"{place}/prefixItems")
        n_named = None if "items" in schema or not first else len(first)
        limits = {"maxItems": n_named} | dict(schema)
        least, most = _read_limits(limits, "minItems", "maxItems", place)
        if most is not None and most < len(first):
            raise ValueError(f"JSON schema, {place}: maxItems is less than prefixItems has")
        least = max(0, least - len(first))
        item = self._add(self._visit(schema.get("items", True), f"{place}/items"))
        rest = None if most is None else most - len(first)
        if first:
            more = f' (ws "," ws {item}){_count(least, rest)}'
            named = _COMMA.join(map(self._add, first))
            return f'"[" ws {named}{more} ws "]"'
        if rest == 0:
            return '"[" ws "]"'
        count = _count(max(0, least - 1), None if rest is None else rest - 1)
        items = f'{item} (ws "," ws {item}){count} ws'
        return f'"[" ws {items} "]"' if least else f'"[" ws ({items})? "]"'

    def _write_object(self, schema: Schema, place: str) -> str:
        """Write the members in order, each after what may come before it."""
        properties: Mapping[str, object] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        if missing := sorted(required - set(properties)):
            raise ValueError(f"JSON schema, {place}: {missing[0]!r} is required but not described")
        extra = schema.get("additionalProperties", False)
        after_none = after_some = _NOTHING
        if extra is not False:
            kind = self._add(self._visit(extra, f"{place}/additionalProperties"))
            pair = self._add(f'string ws ":" ws {kind}')
            after_none = self._add(f'({pair} (ws "," ws {pair})*)?')
            after_some = self._add(f'(ws "," ws {pair})*')
        for name, member in reversed(list(properties.items())):
            value = self._add(self._visit(member, f"{place}/properties/{name}"))
            pair = f'{_quote(name)} ws ":" ws {value}'
            first, later = f"{pair} {after_some}", f'ws "," ws {pair} {after_some}'
            if name not in required:
                first, later = f"{first} | {after_none}", f"{later} | {after_some}"
            after_none, after_some = self._add(first), self._add(later)
        return f'"{{" ws {after_none} ws "}}"'

    def _any_of(self, options: Sequence[str]) -> str:
        if not options:
            raise ValueError("JSON schema: a choice of nothing")
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"

    def _add(self, rule: str) -> str:
        """Give a rule a name, unless it is one."""
        if rule in self._rules:
            return rule
        if len(self._rules) >= MAX_RULES:
            raise ValueError(f"JSON schema: it takes more than {MAX_RULES} rules")
        name = f"rule-{len(self._rules)}"
        self._rules[name] = rule
        return name


def _guess_type(schema: Schema) -> str:
    """Which type a schema is about that names none."""
    about = [kind for kind, words in _OF_TYPE.items() if words & set(schema)]
    return about[0] if about else "value"


def _read_limits(schema: Schema, least: str, most: str, place: str) -> tuple[int, int | None]:
    """Read two counts of a schema, such as minLength and maxLength."""
    low, high = schema.get(least, 0), schema.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and not (type(value) is int and 0 <= value <= MAX_REPEATS):
            problem = f"{name} is {value!r:.20}, but a grammar counts from 0 to {MAX_REPEATS}"
            raise ValueError(f"JSON schema, {place}: {problem}")
    if high is not None and high < low:
        raise ValueError(f"JSON schema, {place}: {least} is {low}, which is more than {most}")
    return low, high


def _count(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _write_value(value: object) -> str:
    """Write what lets one JSON value through, with any white space."""
    if isinstance(value, Mapping):
        pairs = (f'{_quote(key)} ws ":" ws {_write_value(item)}' for key, item in value.items())
        return f'"{{" ws {_COMMA.join(pairs) or _NOTHING} ws "}}"'
    if isinstance(value, list):
        return f'"[" ws {_COMMA.join(map(_write_value, value)) or _NOTHING} ws "]"'
    return _quote(value)


def _quote(value: object) -> str:
    """Write a JSON text, number or word as a literal of a grammar."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON schema: {value} is no number in JSON")
    text = json.dumps(value, ensure_ascii=False)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
