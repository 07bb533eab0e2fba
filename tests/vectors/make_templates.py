"""Render conversations with transformers, for test_template.py to compare with.

Run from the repository's root, with the extra `oracle` installed:

    python tests/vectors/make_templates.py

Writes templates.json beside this file: a list of {template, bos, eos, messages, tools, thinking,
prompt}, prompt being what apply_chat_template returned. The clock is held at NOW.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
TINY = HERE.parents[1] / "localcascade" / "data" / "tiny" / "chat_template.jinja"
NOW = datetime(2026, 2, 3)
BOS, EOS = "<s>", "</s>"

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": " Works out an expression. \n",
        "parameters": {
            "type": "object",
            "properties": {
                "expression": {"type": "string", "description": "like 2*3 <b>"},
                "digits": {"type": ["integer", "null"], "enum": [1, 2, 3]},
            },
            "required": ["expression"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "strict": True, "parameters": {}, "think": "über"},
}


def user(content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call whose arguments are an object already."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [user("What is 2+2?")]},
    "white space": {
        "messages": [user("  a\n\n b \r\n\t"), {"role": "assistant", "content": " c \n"}]
    },
    "history": {
        "messages": [
            {"role": "system", "content": "Be brief.\n"},
            user("Hi"),
            {"role": "assistant", "content": "Hello!", "reasoning_content": "They greet.\n"},
            user("Bye 👋 — ∫x²dx"),
        ]
    },
    "instruct": {"messages": [user("Hi")], "thinking": False},
    "tools": {"messages": [user("6*7?")], "tools": [CALCULATOR, CLOCK]},
    "tool loop": {
        "messages": [
            user("6*7, and the time?"),
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "I need both.",
                "tool_calls": [
                    call("calculator", expression="6*7", digits=2, flags=[True, None, 1.5]),
                    call("clock"),
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            {"role": "tool", "content": "noon", "tool_call_id": "call_2"},
            {"role": "assistant", "content": "42, at noon.", "reasoning_content": "Done."},
            user("Thanks"),
        ],
        "tools": [CALCULATOR],
    },
    "parts": {
        "messages": [
            user([{"type": "text", "text": "look: "}, {"type": "text", "text": "<here>"}]),
        ]
    },
}
CASES = {
    "tiny": [*CONVERSATIONS],
    "chatml_tools": [*CONVERSATIONS],
    "sections": [*CONVERSATIONS],
    "alternating": ["one question", "white space", "history", "instruct"],
}


def read_template(name: str) -> str:
    """Source of a template by its name in CASES."""
    path = TINY if name == "tiny" else HERE / "templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def render(source: str, messages: list[Any], tools: list[Any] | None, thinking: bool) -> str:
    """What transformers makes of a conversation."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS
    )
    with mock.patch.object(chat_template_utils, "datetime", mock.Mock(now=lambda: NOW)):
        return tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )


def main() -> None:
    """Render every case and write the file."""
    vectors = []
    for template, names in CASES.items():
        for name in names:
            case = {"tools": None, "thinking": True, **CONVERSATIONS[name]}
            prompt = render(read_template(template), **case)
            vectors.append(
                {
                    "template": template,
                    "case": name,
                    "bos": BOS,
                    "eos": EOS,
                    **case,
                    "prompt": prompt,
                }
            )
    text = json.dumps(vectors, ensure_ascii=False, indent=1) + "\n"
    (HERE / "templates.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
