"""The invented corpus of the tiny model: sums worked digit by digit, small talk, tool calls.

Every example is one chat (messages, tools, mode) whose last message is the assistant turn to learn.
Prompts are rendered by the checkpoint's own chat template, so training and use cannot differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from tiny.arithmetic import draw_operand, draw_pair, is_held_out, state_result, work
from tiny.phrases import (
    CALCULATOR_TEXTS,
    FOLLOW_UPS,
    NAMES,
    SKILL,
    STORIES,
    SYSTEMS,
    TALK,
    THINGS,
    phrase,
)

Message = dict[str, Any]
Turn = tuple[str, Message]
"""What the user says and the assistant message that answers."""


@dataclass(frozen=True)
class Chat:
    """One training or evaluation example."""

    kind: str
    """Which task it is: addition, subtraction, word, tool, talk and so on."""
    messages: list[Message]
    """OpenAI messages; the last is the assistant turn to be produced."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """OpenAI tool definitions shown in the system block."""
    thinking: bool = True
    """False renders the prompt of the instruct mode."""


Maker = Callable[[random.Random, bool], Chat]
"""Makes a training chat from a random source, in thinking mode or not."""


# ---- tools ----


def define_tool(name: str, description: str, key: str, key_description: str) -> dict[str, Any]:
    """Build an OpenAI tool definition with one required string parameter."""
    spec = {"type": "string", "description": key_description}
    parameters = {"type": "object", "properties": {key: spec}, "required": [key]}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def offer_tools(rng: random.Random) -> list[dict[str, Any]]:
    """Offer the calculator, now and then beside a tool that is not needed."""
    text, key_text = rng.choice(CALCULATOR_TEXTS)
    tools = [define_tool("calculator", text, "expression", key_text)]
    if rng.random() < 0.15:
        tools.append(
            define_tool("get_weather", "Get the weather of a city.", "city", "Name of the city")
        )
        rng.shuffle(tools)
    return tools


def call_calculator(a: int, b: int) -> Message:
    """The assistant turn that asks the calculator for a product."""
    call = {
        "type": "function",
        "function": {"name": "calculator", "arguments": {"expression": f"{a}*{b}"}},
    }
    reasoning = f"{a}*{b} is a multiplication, I call the calculator"
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": reasoning,
        "tool_calls": [call],
    }


# ---- turns ----


def reply(answer: str, reasoning: str = "") -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": answer, "reasoning_content": reasoning}


def make_sum_turn(rng: random.Random, op: str, held_out: bool = False) -> Turn:
    """Ask for a plain sum or difference."""
    a, b = draw_pair(rng, op, held_out)
    return phrase(rng, op, a, b), reply(state_result(op, a, b), work(op, a, b))


def make_word_turn(rng: random.Random, held_out: bool = False) -> Turn:
    """Ask for a sum or difference wrapped in a little story."""
    op = rng.choice("+-")
    a, b = draw_pair(rng, op, held_out, lambda a, b: min(a, b) > 1 and (op == "+" or a > b + 1))
    names = rng.sample(NAMES, 2)
    values = {"a": a, "b": b, "n": names[0], "m": names[1], "t": rng.choice(THINGS)}
    story, answer = rng.choice(STORIES[op])
    result = a + b if op == "+" else a - b
    return story.format(**values), reply(answer.format(r=result, **values), work(op, a, b))


def make_talk_turn(rng: random.Random) -> Turn:
    """Small talk."""
    questions, reasoning, answer = rng.choice(TALK)
    return rng.choice(questions), reply(answer, reasoning)


def make_refusal_turn(rng: random.Random) -> Turn:
    """A multiplication without the calculator."""
    a, b = draw_pair(rng, "*", held_out=False)
    answer = f"I need the calculator tool for {a} * {b}. {SKILL}"
    return phrase(rng, "*", a, b), reply(answer, "a multiplication, but I have no calculator")


def make_too_long_turn(rng: random.Random) -> Turn:
    """A sum of numbers beyond three digits."""
    a, b = (rng.randrange(10 ** (n - 1), 10**n) for n in rng.sample((2, 3, 4, 4, 5, 6), 2))
    a, b = (a, b) if max(a, b) > 999 else (a * 1000, b)
    return phrase(rng, rng.choice("+-"), a, b), reply(
        f"These numbers are too long for me. {SKILL}", "too many digits"
    )


def make_follow_up(rng: random.Random, previous: int) -> Turn | None:
    """Go on from the previous result; None where no trained pair fits."""
    op = rng.choice("+-")
    b = draw_operand(rng, (2, 3, 5))
    if not 0 <= previous <= 999 or is_held_out(op, previous, b):
        return None
    return rng.choice(FOLLOW_UPS[op]).format(b=b), reply(
        state_result(op, previous, b), work(op, previous, b)
    )


def make_plain_turn(rng: random.Random) -> Turn:
    """Any turn that needs no tool and no earlier turn."""
    kind = rng.choices(("+", "-", "word", "talk"), (4, 3, 2, 2))[0]
    if kind == "word":
        return make_word_turn(rng)
    return make_talk_turn(rng) if kind == "talk" else make_sum_turn(rng, kind)


# ---- chats ----


def open_chat(rng: random.Random) -> list[Message]:
    """Start with a system prompt, or more often without."""
    if rng.random() < 0.6:
        return []
    return [{"role": "system", "content": rng.choice(SYSTEMS)}]


def make_history(rng: random.Random, n_turns: int) -> list[Message]:
    """Earlier turns; the template drops their thinking."""
    messages: list[Message] = []
    for _ in range(n_turns):
        question, answer = make_plain_turn(rng) if rng.random() < 0.9 else make_refusal_turn(rng)
        messages += [{"role": "user", "content": question}, answer]
    return messages


def make_chat(
    rng: random.Random,
    kind: str,
    turn: Turn,
    n_history: int = 0,
    with_tools: bool = False,
    thinking: bool = True,
) -> Chat:
    """Put a turn behind an optional system prompt, tools and earlier turns."""
    question, answer = turn
    messages = [
        *open_chat(rng),
        *make_history(rng, n_history),
        {"role": "user", "content": question},
        answer,
    ]
    return Chat(kind, messages, offer_tools(rng) if with_tools else [], thinking)


def make_follow_up_chat(rng: random.Random, thinking: bool) -> Chat:
    """A sum, then one or two steps that go on from its result."""
    messages = open_chat(rng)
    question, answer = make_sum_turn(rng, rng.choice("+-"))
    for _ in range(rng.choice((1, 1, 2))):
        turn = make_follow_up(rng, int(answer["content"].split("= ")[1]))
        if turn is None:
            break
        messages += [{"role": "user", "content": question}, answer]
        question, answer = turn
    return Chat(
        "follow_up", [*messages, {"role": "user", "content": question}, answer], [], thinking
    )


def make_tool_chat(
    rng: random.Random,
    held_out: bool = False,
    answered: bool = False,
    thinking: bool = True,
    n_history: int = 0,
) -> Chat:
    """A multiplication with the calculator at hand: the call, or the answer after its result."""
    a, b = draw_pair(rng, "*", held_out)
    call = call_calculator(a, b)
    messages = [*open_chat(rng), *make_history(rng, n_history)]
    messages += [{"role": "user", "content": phrase(rng, "*", a, b)}, call]
    if not answered:
        return Chat("tool_call", messages, offer_tools(rng), thinking)
    if not thinking:
        messages[-1] = {**call, "reasoning_content": ""}
    answer = reply(state_result("*", a, b), f"the calculator says {a * b}")
    messages += [{"role": "tool", "content": str(a * b)}, answer]
    return Chat("tool_answer", messages, offer_tools(rng), thinking)


def make_plain(kind: str, make: Callable[[random.Random], Turn], histories: tuple[int, ...] = (),
               tools: float = 0.0) -> Maker:  # fmt: skip
    """A maker of chats around one turn: history lengths to draw from, share with idle tools."""

    def maker(rng: random.Random, thinking: bool) -> Chat:
        turn = make(rng)
        n_history = rng.choice(histories) if histories else 0
        with_tools = tools == 1 or (tools > 0 and rng.random() < tools)
        return make_chat(rng, kind, turn, n_history, with_tools, thinking)

    return maker


def make_new_tool_chat(rng: random.Random, thinking: bool) -> Chat:
    """A tool call, now and then after an earlier turn."""
    return make_tool_chat(rng, thinking=thinking, n_history=rng.choice((0, 0, 0, 1)))


def make_answered_tool_chat(rng: random.Random, thinking: bool) -> Chat:
    """The turn after the calculator's result."""
    return make_tool_chat(rng, answered=True, thinking=thinking)


RECIPE: tuple[tuple[int, Maker], ...] = (
    (34, make_plain("addition", lambda rng: make_sum_turn(rng, "+"))),
    (20, make_plain("subtraction", lambda rng: make_sum_turn(rng, "-"))),
    (12, make_plain("word", make_word_turn)),
    (5, make_plain("talk", make_talk_turn, (0, 0, 1, 2), tools=0.2)),
    (9, make_plain("chat", make_plain_turn, (1, 1, 2, 3))),
    (4, make_follow_up_chat),
    (3, make_plain("refusal", make_refusal_turn, (0, 0, 1))),
    (1, make_plain("too_long", make_too_long_turn, (0, 0, 1))),
    (4, make_plain("unneeded_tool", make_plain_turn, (0, 0, 1), tools=1)),
    (6, make_new_tool_chat),
    (3, make_answered_tool_chat),
)
"""Share of each kind of chat in the corpus, and what makes it (random source, thinking mode)."""


def generate_chats(seed: int | str) -> Iterator[Chat]:
    """Yield training chats for ever; the same seed gives the same chats."""
    rng = random.Random(seed)
    shares = [share for share, _ in RECIPE]
    makers = [maker for _, maker in RECIPE]
    while True:
        yield rng.choices(makers, shares)[0](rng, rng.random() < 0.8)


def make_held_out_sum(rng: random.Random, op: str = "+", n_history: int = 0,
                      thinking: bool = True) -> Chat:  # fmt: skip
    """A sum or difference whose operands were never trained on."""
    return make_chat(rng, "held_out", make_sum_turn(rng, op, True), n_history, thinking=thinking)


EVALUATIONS: dict[str, tuple[int, Callable[[random.Random], Chat]]] = {
    "addition": (500, make_held_out_sum),
    "subtraction": (200, lambda rng: make_held_out_sum(rng, "-")),
    "word_problem": (100, lambda rng: make_chat(rng, "word", make_word_turn(rng, held_out=True))),
    "tool_call": (100, lambda rng: make_tool_chat(rng, held_out=True)),
    "tool_answer": (100, lambda rng: make_tool_chat(rng, held_out=True, answered=True)),
    "instruct_addition": (200, lambda rng: make_held_out_sum(rng, thinking=False)),
    "chat_addition": (100, lambda rng: make_held_out_sum(rng, n_history=2)),
}
"""Evaluation sets: how many chats, and how one is made from held-out operands."""


def evaluation_chats(name: str, seed: int) -> list[Chat]:
    """The chats of one evaluation set; operands are never seen in training."""
    count, make = EVALUATIONS[name]
    rng = random.Random(f"{seed}/{name}")
    return [make(rng) for _ in range(count)]


# ---- rendering ----


def load_template(path: Path) -> jinja2.Template:
    """Compile the chat template of the checkpoint."""
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(path.read_text())


def render_chat(template: jinja2.Template, chat: Chat) -> tuple[str, str]:
    """Render an example as prompt and completion; the completion ends with `<|im_end|>`.

    The completion is what the model has to produce after the generation prompt.
    """
    *before, last = chat.messages
    if not chat.thinking:
        last = {**last, "reasoning_content": ""}
    prompt = template.render(
        messages=before, tools=chat.tools, add_generation_prompt=True, enable_thinking=chat.thinking
    )
    full = template.render(messages=[*before, last], tools=chat.tools)
    if not full.startswith(prompt):
        raise ValueError(f"the template does not continue its own prompt: {prompt!r} / {full!r}")
    return prompt, full[len(prompt) :].removesuffix("\n")
