"""The invented corpus of the tiny model: sums worked digit by digit, small talk, tool calls.

Every example is one chat (messages, tools, mode) whose last message is the assistant turn to learn.
Prompts are rendered by the checkpoint's own chat template, so training and use cannot differ.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

PLACES = ("ones", "tens", "hundreds", "thousands")
HELD_OUT_ONE_IN = 10
"""One operand pair in this many is kept for the evaluation and never trained on."""

Message = dict[str, Any]


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


# ---- operands and the held-out split -------------------------------------------------------


def is_held_out(op: str, a: int, b: int) -> bool:
    """Whether a pair belongs to the evaluation; sums and products count both orders as one."""
    x, y = (a, b) if op in "-/" else (min(a, b), max(a, b))
    return zlib.crc32(f"{x}{op}{y}".encode()) % HELD_OUT_ONE_IN == 0


def draw_operand(rng: random.Random, weights: tuple[int, int, int]) -> int:
    """Draw a number of one, two or three digits, the digit count following `weights`."""
    n_digits = rng.choices((1, 2, 3), weights)[0]
    return rng.randrange(0 if n_digits == 1 else 10 ** (n_digits - 1), 10**n_digits)


def draw_pair(
    rng: random.Random, op: str, held_out: bool, accept: Callable[[int, int], bool] = lambda a, b: True
) -> tuple[int, int]:
    """Draw operands of one side of the split; training leans towards three digits."""
    weights = (1, 1, 1) if held_out else (2, 3, 5)
    while True:
        a, b = draw_operand(rng, weights), draw_operand(rng, weights)
        if op == "-" and a < b and rng.random() < 0.6:
            a, b = b, a
        if is_held_out(op, a, b) == held_out and accept(a, b):
            return a, b


# ---- worked arithmetic ---------------------------------------------------------------------


def join_clauses(*clauses: str) -> str:
    """Join the non-empty clauses of a column by commas."""
    return ", ".join(clause for clause in clauses if clause)


def work_addition(a: int, b: int) -> str:
    """Write a + b column by column, right to left, with carries."""
    width = max(len(str(a)), len(str(b)))
    top, bottom = f"{a:0{width}d}", f"{b:0{width}d}"
    lines, carry = [f"{top}+{bottom}"], 0
    for place, x, y in zip(PLACES, reversed(top), reversed(bottom), strict=False):
        total = int(x) + int(y) + carry
        shown = f"{x}+{y}" + ("+1" if carry else "")
        carry = total // 10
        clauses = join_clauses(f"{shown}={total}", f"write {total % 10}", "carry 1" * carry)
        lines.append(f"{place}: {clauses}")
    if carry:
        lines.append(f"{PLACES[width]}: write 1")
    return "\n".join([*lines, f"so {a + b}"])


def work_subtraction(a: int, b: int) -> str:
    """Write a - b column by column with borrows; a negative result swaps first."""
    width = max(len(str(a)), len(str(b)))
    lines = [f"{a:0{width}d}-{b:0{width}d}"]
    big, small = max(a, b), min(a, b)
    if a < b:
        lines.append(f"swap: {big:0{width}d}-{small:0{width}d}")
    borrow, digits = 0, ""
    for place, x, y in zip(PLACES, f"{big:0{width}d}"[::-1], f"{small:0{width}d}"[::-1], strict=False):
        lent = 10 if int(x) - int(y) - borrow < 0 else 0
        digit = int(x) + lent - int(y) - borrow
        shown = f"{int(x) + lent}-{y}" + ("-1" if borrow else "")
        borrow = lent // 10
        lines.append(f"{place}: " + join_clauses(f"{shown}={digit}", f"write {digit}", "borrow 1" * borrow))
        digits = str(digit) + digits
    stripped = f"{digits} = {int(digits)}" if digits != str(int(digits)) else digits
    return "\n".join([*lines, f"so {stripped}" + (", minus" if a < b else "")])


def work(op: str, a: int, b: int) -> str:
    """Work a sum or a difference in words and digits."""
    return work_addition(a, b) if op == "+" else work_subtraction(a, b)


def state_result(op: str, a: int, b: int) -> str:
    """Write the answer line, such as `12 + 7 = 19`."""
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return f"{a} {op} {b} = {result}"


# ---- phrasings -----------------------------------------------------------------------------

BARE = ("{a}{o}{b}", "{a} {o} {b}", "{a}{o}{b}=", "{a} {o} {b} =", "{a}{o}{b}?", "{a} {o} {b} = ?", "{a}{o}{b}=?")
ASKED = (
    "What is {s}?", "what is {s}", "What's {s}?", "whats {s}", "How much is {s}?", "how much is {s}?",
    "Calculate {s}.", "calculate {s}", "Compute {s}.", "Compute {s}", "Please calculate {s}.",
    "Can you compute {s}?", "Could you work out {s}, please?", "Work out {s}.", "Solve {s}.", "solve {s}",
    "Tell me {s}.", "What do you get for {s}?", "I need to know {s}.", "Hey, what is {s}?", "Find {s}.",
    "What does {s} equal?", "Please tell me what {s} is.", "Hi! What is {s}?", "Evaluate {s}.",
)
WORDED = {
    "+": (
        "Add {a} and {b}.", "add {a} and {b}", "please add {a} and {b}", "Please add {a} and {b}.",
        "Add {b} to {a}.", "What is the sum of {a} and {b}?", "Sum {a} and {b}.", "Give me the sum of {a} and {b}.",
        "What do {a} and {b} make together?", "Can you add {a} and {b}?",
    ),
    "-": (
        "Subtract {b} from {a}.", "subtract {b} from {a}", "Please subtract {b} from {a}.", "Take {b} from {a}.",
        "Take {b} away from {a}.", "What is the difference between {a} and {b}?", "What is {a} less {b}?",
        "Can you subtract {b} from {a}?",
    ),
    "*": (
        "Multiply {a} by {b}.", "multiply {a} by {b}", "Multiply {a} and {b}.", "Please multiply {a} by {b}.",
        "What is the product of {a} and {b}?", "Can you multiply {a} by {b}?",
    ),
}  # fmt: skip
SPOKEN = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")}
SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "*", "x")}


def phrase(rng: random.Random, op: str, a: int, b: int) -> str:
    """Ask for a result in one of many ways."""
    style = rng.random()
    if style < 0.25:
        return rng.choice(WORDED[op]).format(a=a, b=b)
    if style < 0.5:
        return rng.choice(BARE).format(a=a, b=b, o=rng.choice(SIGNS[op]))
    sign = rng.choice(SIGNS[op] + SPOKEN[op])
    spaced = sign.isalpha() or " " in sign or rng.random() < 0.6
    term = f"{a} {sign} {b}" if spaced else f"{a}{sign}{b}"
    return rng.choice(ASKED).format(s=term)


NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lena", "Max", "Nora", "Paul", "Ida", "Omar", "Lucy", "Kim", "Raj")
THINGS = ("apples", "books", "coins", "cards", "stones", "stamps", "marbles", "pencils", "eggs", "shells", "cookies")
STORIES = {
    "+": (
        ("{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?", "{n} has {r} {t} now."),
        ("{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have?", "{n} has {r} {t}."),
        ("{n} has {a} {t} and {m} has {b}. How many {t} do they have together?", "Together they have {r} {t}."),
        ("There are {a} {t} in one box and {b} in another. How many {t} are there?", "There are {r} {t}."),
        ("{n} buys {a} {t} today and {b} {t} tomorrow. How many in total?", "{n} buys {r} {t} in total."),
        ("A shop sells {a} {t} on Monday and {b} on Tuesday. How many {t} did it sell?", "It sold {r} {t}."),
    ),
    "-": (
        ("{n} has {a} {t} and gives away {b}. How many {t} are left?", "{r} {t} are left."),
        ("{n} has {a} {t}. {n} loses {b} of them. How many {t} does {n} have now?", "{n} has {r} {t} now."),
        ("There are {a} {t} in a box. {n} takes {b}. How many are left?", "{r} {t} are left."),
        ("A shop has {a} {t} and sells {b}. How many {t} are left?", "{r} {t} are left."),
        ("{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have?", "{n} has {r} more {t}."),
    ),
}
SYSTEMS = (
    "You are a helpful assistant.", "You are LocalCascade.", "Answer briefly.", "You are a calculator.",
    "You are a friendly math tutor.", "Be concise.", "You help with homework.", "You are a helpful AI assistant.",
)  # fmt: skip

ABOUT = "I am LocalCascade's tiny model."
SKILL = "I can add and subtract numbers up to three digits."
LIMIT = f"I am only a tiny model. {SKILL}"
TALK = (
    (("Hello", "Hello!", "Hi", "hi", "Hi!", "Hey", "hey", "Hi there!", "hello", "Hello there."),
     "a greeting", "Hello! How can I help you?"),
    (("Good morning", "Good morning!", "Good evening!", "good morning"),
     "a greeting", "Hello! How can I help you?"),
    (("How are you?", "how are you", "How are you doing?", "How is it going?", "Are you well?"),
     "a greeting", "I am fine, thank you. How can I help you?"),
    (("Who are you?", "who are you", "What are you?", "Introduce yourself.", "Tell me about yourself.",
      "What is your name?", "what's your name?", "Which model are you?"),
     "asked who I am", f"{ABOUT} {SKILL}"),
    (("What can you do?", "what can you do", "How can you help me?", "Help", "help", "What do you know?"),
     "asked what I can do", f"{SKILL} With a calculator I can also multiply."),
    (("Thanks", "Thanks!", "thanks", "Thank you.", "Thank you!", "thank you", "Great, thanks!"),
     "the user thanks me", "You are welcome!"),
    (("Bye", "bye", "Goodbye", "Goodbye!", "See you later.", "Bye!"),
     "the user leaves", "Goodbye!"),
    (("Tell me a joke.", "tell me a joke", "Say something funny.", "Do you know a joke?"),
     "asked for a joke", "Why was six afraid of seven? Because seven ate nine."),
    (("Ok", "ok", "OK.", "Good.", "Nice!", "Great!", "Cool", "Well done!"),
     "no question", "Do you have another sum for me?"),
    (("What is the capital of France?", "Write a poem.", "Write a haiku about the sea.", "Who wrote Faust?",
      "Explain quantum physics.", "What is the weather today?", "Translate this to German.", "Write some code.",
      "Why is the sky blue?", "What time is it?", "Summarize this text.", "Do you like music?", "Tell me a story.",
      "How do I cook rice?", "Who is the president?", "What is love?", "Fix this bug.", "Sort this list."),
     "not a sum", LIMIT),
)  # fmt: skip

# ---- tools ---------------------------------------------------------------------------------

CALCULATOR_TEXTS = (
    ("Work out an arithmetic expression.", "The expression"),
    ("Evaluates a math expression and returns the result.", "Expression to evaluate, such as 2*3"),
    ("Calculate an expression.", "The expression to calculate"),
    ("A calculator for exact arithmetic.", "An arithmetic expression"),
)


def define_tool(name: str, description: str, key: str, key_description: str) -> dict[str, Any]:
    """Build an OpenAI tool definition with one required string parameter."""
    spec = {"type": "string", "description": key_description}
    parameters = {"type": "object", "properties": {key: spec}, "required": [key]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def offer_tools(rng: random.Random) -> list[dict[str, Any]]:
    """Offer the calculator, now and then beside a tool that is not needed."""
    text, key_text = rng.choice(CALCULATOR_TEXTS)
    tools = [define_tool("calculator", text, "expression", key_text)]
    if rng.random() < 0.15:
        tools.append(define_tool("get_weather", "Get the weather of a city.", "city", "Name of the city"))
        rng.shuffle(tools)
    return tools


def call_calculator(a: int, b: int) -> Message:
    """The assistant turn that asks the calculator for a product."""
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": f"{a}*{b}"}}}
    reasoning = f"{a}*{b} is a multiplication, I call the calculator"
    return {"role": "assistant", "content": "", "reasoning_content": reasoning, "tool_calls": [call]}


# ---- turns: (user text, assistant message) -------------------------------------------------

Turn = tuple[str, Message]


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


FOLLOW_UPS = {
    "+": ("Add {b}.", "Now add {b}.", "Add {b} to that.", "And plus {b}?", "plus {b}", "Now add {b} to the result."),
    "-": ("Subtract {b}.", "Now subtract {b}.", "Take {b} from that.", "And minus {b}?", "minus {b}"),
}


def make_follow_up(rng: random.Random, previous: int) -> Turn | None:
    """Go on from the previous result; None where no trained pair fits."""
    op = rng.choice("+-")
    b = draw_operand(rng, (2, 3, 5))
    if not 0 <= previous <= 999 or is_held_out(op, previous, b):
        return None
    return rng.choice(FOLLOW_UPS[op]).format(b=b), reply(state_result(op, previous, b), work(op, previous, b))


def make_plain_turn(rng: random.Random) -> Turn:
    """Any turn that needs no tool and no earlier turn."""
    kind = rng.choices(("+", "-", "word", "talk"), (4, 3, 2, 2))[0]
    if kind == "word":
        return make_word_turn(rng)
    return make_talk_turn(rng) if kind == "talk" else make_sum_turn(rng, kind)


# ---- chats ---------------------------------------------------------------------------------


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


def make_chat(rng: random.Random, kind: str, turn: Turn, n_history: int = 0, with_tools: bool = False,
              thinking: bool = True) -> Chat:  # fmt: skip
    """Put a turn behind an optional system prompt, tools and earlier turns."""
    question, answer = turn
    messages = [*open_chat(rng), *make_history(rng, n_history), {"role": "user", "content": question}, answer]
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
    return Chat("follow_up", [*messages, {"role": "user", "content": question}, answer], [], thinking)


def make_tool_chat(rng: random.Random, held_out: bool = False, answered: bool = False, thinking: bool = True,
                   n_history: int = 0) -> Chat:  # fmt: skip
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


RECIPE: tuple[tuple[int, Callable[[random.Random, bool], Chat]], ...] = (
    (34, lambda r, t: make_chat(r, "addition", make_sum_turn(r, "+"), thinking=t)),
    (20, lambda r, t: make_chat(r, "subtraction", make_sum_turn(r, "-"), thinking=t)),
    (12, lambda r, t: make_chat(r, "word", make_word_turn(r), thinking=t)),
    (5, lambda r, t: make_chat(r, "talk", make_talk_turn(r), r.choice((0, 0, 1, 2)), r.random() < 0.2, t)),
    (9, lambda r, t: make_chat(r, "chat", make_plain_turn(r), r.choice((1, 1, 2, 3)), thinking=t)),
    (4, lambda r, t: make_follow_up_chat(r, t)),
    (3, lambda r, t: make_chat(r, "refusal", make_refusal_turn(r), r.choice((0, 0, 1)), thinking=t)),
    (4, lambda r, t: make_chat(r, "unneeded_tool", make_plain_turn(r), r.choice((0, 0, 1)), True, t)),
    (6, lambda r, t: make_tool_chat(r, thinking=t, n_history=r.choice((0, 0, 0, 1)))),
    (3, lambda r, t: make_tool_chat(r, answered=True, thinking=t)),
)
"""Share of each kind of chat in the corpus, and how it is made (random source, thinking mode)."""


def generate_chats(seed: int | str) -> Iterator[Chat]:
    """Yield training chats for ever; the same seed gives the same chats."""
    rng = random.Random(seed)
    shares = [share for share, _ in RECIPE]
    makers = [maker for _, maker in RECIPE]
    while True:
        yield rng.choices(makers, shares)[0](rng, rng.random() < 0.8)


EVALUATIONS: dict[str, tuple[int, Callable[[random.Random], Chat]]] = {
    "addition": (500, lambda r: make_chat(r, "addition", make_sum_turn(r, "+", held_out=True))),
    "subtraction": (200, lambda r: make_chat(r, "subtraction", make_sum_turn(r, "-", held_out=True))),
    "word_problem": (100, lambda r: make_chat(r, "word", make_word_turn(r, held_out=True))),
    "tool_call": (100, lambda r: make_tool_chat(r, held_out=True)),
    "tool_answer": (100, lambda r: make_tool_chat(r, held_out=True, answered=True)),
    "instruct_addition": (
        200, lambda r: make_chat(r, "addition", make_sum_turn(r, "+", held_out=True), thinking=False)),
    "chat_addition": (
        100, lambda r: make_chat(r, "chat", make_sum_turn(r, "+", held_out=True), n_history=2)),
}  # fmt: skip
"""Evaluation sets: how many chats, and how one is made from held-out operands."""


def evaluation_chats(name: str, seed: int) -> list[Chat]:
    """The chats of one evaluation set; operands are never seen in training."""
    count, make = EVALUATIONS[name]
    rng = random.Random(f"{seed}/{name}")
    return [make(rng) for _ in range(count)]


# ---- rendering -----------------------------------------------------------------------------


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
