"""Reads the inside of a <tool_call> block, as models write it rather than as they should.

Two forms: `<function=NAME>` with `<parameter=KEY>` values, and Hermes JSON objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""Tool name -> JSON schema of its parameters."""

_FUNCTION = re.compile(r"(?:^|\n|(?<=>))[ \t]*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"(?:^|\n|(?<=>))[ \t]*<parameter=([^>\n]+)>")
"""At the start of a line or after another tag: elsewhere it is part of a value."""
_LAST_LINE_END = re.compile(r"\n[ \t]*\Z")
_CLOSERS = ("</parameter>", "</function>", "</tool_call>")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def read_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Collect the parameter schemas of tools in the OpenAI form.

    Args:
        tools: {"type": "function", "function": {...}}, or the inner object alone.

    Returns:
        Tool name -> JSON schema; tools without either are left out.
    """
    schemas = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping):
            name, schema = function.get("name"), function.get("parameters")
            if isinstance(name, str) and isinstance(schema, Mapping):
                schemas[name] = schema
    return schemas


def parse_calls(raw: str, schemas: Schemas) -> list[tuple[str, dict[str, Any]]]:
    """Read the calls inside one <tool_call> block.

    Args:
        raw: The text between the tags.
        schemas: Declared types, by which the values of the first form become numbers, lists and so
            on; a value of a parameter without one stays a string.

    Returns:
        (name, arguments) of each call; empty if the text cannot be understood.
    """
    if raw.lstrip().startswith(("{", "[")):
        return _parse_json_calls(raw)
    calls = []
    for name, body in _cut_at(_FUNCTION, raw):
        arguments = _parse_parameters(body, schemas.get(name, {}))
        if not name or arguments is None:
            return []
        calls.append((name, arguments))
    return calls


def is_closed(raw: str) -> bool:
    """Whether the last thing written was complete, so that a missing </tool_call> matters little.

    Args:
        raw: The text after <tool_call>.

    Returns:
        True after a closing tag or a whole JSON value; False in the middle of a value.
    """
    if raw.rstrip().endswith(_CLOSERS):
        return True
    return raw.lstrip().startswith(("{", "[")) and bool(_parse_json_calls(raw))


def is_inside_value(raw: str) -> bool:
    """Whether a value is still open at the end of `raw`, so that a tag may be part of it."""
    if raw.lstrip().startswith(("{", "[")):
        return not _parse_json_calls(raw)
    return raw.rfind("<parameter=") > max(map(raw.rfind, _CLOSERS))


def _cut_at(opener: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, what follows up to the next opener) for each opener in `text`."""
    pieces = opener.split(text)
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield name.strip(" \t\"'"), body


def _parse_parameters(body: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    head = _PARAMETER.split(body, maxsplit=1)[0]
    inline = _cut_closers(head)
    if inline.strip():
        # Some models put the arguments there as one JSON object.
        values = _load_json(inline)
        return values if isinstance(values, dict) else None
    properties = schema.get("properties")
    specs = properties if isinstance(properties, Mapping) else {}
    return {
        key: _coerce_value(_cut_value(region), specs.get(key))
        for key, region in _cut_at(_PARAMETER, body)
    }


def _cut_value(region: str) -> str:
    """The value: without the closing tags after it, their indentation, a newline on either side."""
    return _LAST_LINE_END.sub("", _cut_closers(region).removeprefix("\n"))


def _cut_closers(region: str) -> str:
    """Cut the closing tags, however many, and the blanks among them off the end of `region`.

    Cutting from the end leaves a closing tag that is part of a value where it is.
    """
    cut = end = len(region)
    while True:
        while end and region[end - 1].isspace():
            end -= 1
        closer = next((tag for tag in _CLOSERS if region.endswith(tag, 0, end)), None)
        if closer is None:
            return region[:cut]
        cut = end = end - len(closer)


def _coerce_value(text: str, spec: object) -> Any:
    """Read a value as its declared type; a string if it has none or does not match it."""
    types = _declared_types(spec)
    if not types or "string" in types:
        return text
    value = _load_json(text.lower() if text.strip() in ("True", "False", "None") else text)
    for name in types:
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return int(value)
        wanted = _TYPES.get(name, ())
        if isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool)):
            return value
    return None if "null" in types and text.strip() in ("None", "null") else text


def _declared_types(spec: object) -> list[str]:
    """The names under `type`, one or a list, or under the `type` of each alternative."""
    if not isinstance(spec, Mapping):
        return []
    alternatives = [spec, *_listed(spec.get("anyOf")), *_listed(spec.get("oneOf"))]
    declared = [item.get("type") for item in alternatives if isinstance(item, Mapping)]
    names = [name for item in declared for name in _listed(item)]
    return [name for name in names if isinstance(name, str)]


def _listed(value: object) -> Sequence[object]:
    if isinstance(value, list | tuple):
        return value
    return [] if value is None else [value]


class _NotJSON:
    """What _load_json returns when there is nothing to return: None is a value."""


def _load_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _NotJSON()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parse_json_calls(raw: str) -> list[tuple[str, dict[str, Any]]]:
    text = _cut_closers(raw)
    value = _load_json(text)
    objects = value if isinstance(value, list) else [value]
    if isinstance(value, _NotJSON):
        objects = [_load_json(line) for line in text.splitlines() if line.strip()]
    calls = [_read_json_call(item) for item in objects]
    return [call for call in calls if call] if all(calls) else []


def _read_json_call(item: object) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(item, dict):
        return None
    name, arguments = item.get("name"), item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _load_json(arguments)
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return name, arguments
    return None
