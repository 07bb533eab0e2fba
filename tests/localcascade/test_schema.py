"""JSON schemas as grammars: what fits passes llama.cpp's own grammar, and nothing else does."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_cpp import llama_cpp as lib

from localcascade.prompt.schema import write_grammar
from tests.llama import load_model
from tests.localcascade.models import IM_END, write_model

CASES: list[tuple[dict[str, Any], list[object], list[object]]] = [
    ({}, [1, "x", None, {"a": [1]}], []),
    ({"type": "integer"}, [0, -7, 12], [1.5, "1", None]),
    ({"type": "number"}, [0.5, -1e20, 3], ["3"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", 'a"\\', "äö"], ["a", "abcd", 3]),
    ({"type": ["boolean", "null"]}, [True, False, None], [0, "null"]),
    ({"const": {"a": [1, None]}}, [{"a": [1, None]}], [{"a": [1]}]),
    ({"enum": ["x\n", 2]}, ["x\n", 2], ["x", 3]),
    ({"type": "array"}, [[], [1, "a", [None]]], [{}]),
    ({"items": {"type": "integer"}, "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1], [1, "2"]]),
    ({"items": {"type": "integer"}, "maxItems": 2}, [[], [1], [1, 2]], [[1, 2, 3]]),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    (
        {"prefixItems": [{"type": "integer"}, {"type": "string"}]},
        [[1, "a"]],
        [[1], ["a", 1], [1, "a", 2]],
    ),
    (
        {"prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 2},
        [[1, None], [1, None, None]],
        [[1], [1, 2]],
    ),
    ({"type": "object"}, [{}, {"a": {"b": 1}}], [[]]),
    (
        {"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
        [{"b": None}, {"a": 1, "b": None}],
        [{}, {"a": 1}, {"b": None, "c": 1}, {"b": None, "a": 1}],
    ),
    (
        {"properties": {n: {"type": "integer"} for n in "abc"}},
        [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}],
        [{"c": 1, "a": 1}, {"d": 1}],
    ),
    (
        {"properties": {"a": {}}, "required": ["a"], "additionalProperties": {"type": "null"}},
        [{"a": 1}, {"a": 1, "x": None}, {"a": 1, "x": None, "y": None}],
        [{"x": None}, {"a": 1, "x": 2}],
    ),
    ({"additionalProperties": {"type": "null"}}, [{}, {"x": None}], [{"x": 1}]),
    ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, [None, 3], ["x"]),
    (
        {
            "$ref": "#/$defs/tree",
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                    "required": ["of"],
                }
            },
        },
        [{"of": []}, {"of": [{"of": []}, {"of": [{"of": []}]}]}],
        [{"of": [1]}, {}],
    ),
]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_model(tmp_path_factory.mktemp("schema") / "m.gguf")
    with load_model(path, vocab_only=True) as model:
        yield lib.llama_model_get_vocab(model)


def fits(vocab: Any, grammar: str, text: str) -> bool:
    """Whether llama.cpp's grammar lets a text through, byte by byte, to its end."""
    sampler = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    assert sampler, grammar
    for token in (*text.encode(), IM_END):
        candidate = (lib.llama_token_data * 1)(lib.llama_token_data(token, 0.0, 0.0))
        array = lib.llama_token_data_array(candidate, 1, -1, False)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        if candidate[0].logit < -1e30:
            lib.llama_sampler_free(sampler)
            return False
        if token != IM_END:
            lib.llama_sampler_accept(sampler, token)
    lib.llama_sampler_free(sampler)
    return True


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: None)
@pytest.mark.parametrize("indent", [None, 2])
def test_what_fits_passes_and_nothing_else(
    vocab: Any, schema: dict[str, Any], good: list[object], bad: list[object], indent: int | None
) -> None:
    grammar = write_grammar(schema)
    for value in good:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        assert fits(vocab, grammar, text), (text, grammar)
        assert not fits(vocab, grammar, text + "x")
    for value in bad:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        assert not fits(vocab, grammar, text), (text, grammar)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "string", "pattern": "a+"}, "#: 'pattern'"),
        ({"properties": {"a": {"minimum": 3}}}, "#/properties/a: 'minimum'"),
        ({"$ref": "#/$defs/nowhere"}, "leads nowhere"),
        ({"$ref": "https://example.org/s"}, "out of the schema"),
        ({"required": ["x"]}, "'x' is required"),
        ({"type": "thing"}, "'thing' is no type"),
        ({"items": False}, "#/items: nothing fits"),
        ({"anyOf": []}, "a choice of nothing"),
        ({"items": {"minLength": 5, "maxLength": 3}}, "#/items: minLength is 5, which is more"),
        ({"minLength": -1}, "minLength is -1, but a grammar counts from 0 to 2000"),
        ({"maxLength": 5000}, "maxLength is 5000, but"),
        ({"maxLength": "1} root {2"}, "maxLength is '1} root {2', but"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems is 3, which is more"),
        ({"maxItems": True}, "maxItems is True, but"),
        ({"prefixItems": [{}, {}], "maxItems": 1}, "maxItems is less than prefixItems"),
        ({"const": float("nan")}, "nan is no number in JSON"),
        ({"enum": ["\ud800"]}, "as a grammar: byte [0-9]+ is half a character"),
    ],
)
def test_what_a_grammar_cannot_hold_is_refused(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match="JSON schema.*" + problem):
        write_grammar(schema)


def test_a_schema_without_a_bottom_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="too deeply"):
        write_grammar(deep)
