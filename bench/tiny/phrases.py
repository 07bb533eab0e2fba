"""The words of the corpus: ways to ask for a sum, little stories, small talk, system prompts."""

from __future__ import annotations

import random

BARE = (
    "{a}{o}{b}",
    "{a} {o} {b}",
    "{a}{o}{b}=",
    "{a} {o} {b} =",
    "{a}{o}{b}?",
    "{a} {o} {b} = ?",
    "{a}{o}{b}=?",
)
ASKED = (
    "What is {s}?",
    "what is {s}",
    "What's {s}?",
    "whats {s}",
    "How much is {s}?",
    "how much is {s}?",
    "Calculate {s}.",
    "calculate {s}",
    "Compute {s}.",
    "Compute {s}",
    "Please calculate {s}.",
    "Can you compute {s}?",
    "Could you work out {s}, please?",
    "Work out {s}.",
    "Solve {s}.",
    "solve {s}",
    "Tell me {s}.",
    "What do you get for {s}?",
    "I need to know {s}.",
    "Hey, what is {s}?",
    "Find {s}.",
    "What does {s} equal?",
    "Please tell me what {s} is.",
    "Hi! What is {s}?",
    "Evaluate {s}.",
)
WORDED = {
    "+": (
        "Add {a} and {b}.", "add {a} and {b}", "please add {a} and {b}",
        "Please add {a} and {b}.",
        "Add {b} to {a}.", "What is the sum of {a} and {b}?", "Sum {a} and {b}.",
        "Give me the sum of {a} and {b}.",
        "What do {a} and {b} make together?", "Can you add {a} and {b}?",
    ),
    "-": (
        "Subtract {b} from {a}.", "subtract {b} from {a}", "Please subtract {b} from {a}.",
        "Take {b} from {a}.",
        "Take {b} away from {a}.", "What is the difference between {a} and {b}?",
        "What is {a} less {b}?",
        "Can you subtract {b} from {a}?",
    ),
    "*": (
        "Multiply {a} by {b}.", "multiply {a} by {b}", "Multiply {a} and {b}.",
        "Please multiply {a} by {b}.",
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


NAMES = (
    "Tom",
    "Anna",
    "Ben",
    "Mia",
    "Sam",
    "Lena",
    "Max",
    "Nora",
    "Paul",
    "Ida",
    "Omar",
    "Lucy",
    "Kim",
    "Raj",
)
THINGS = (
    "apples",
    "books",
    "coins",
    "cards",
    "stones",
    "stamps",
    "marbles",
    "pencils",
    "eggs",
    "shells",
    "cookies",
)
STORIES = {
    "+": (
        (
            "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
            "{n} has {r} {t} now.",
        ),
        (
            "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have?",
            "{n} has {r} {t}.",
        ),
        (
            "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
            "Together they have {r} {t}.",
        ),
        (
            "There are {a} {t} in one box and {b} in another. How many {t} are there?",
            "There are {r} {t}.",
        ),
        (
            "{n} buys {a} {t} today and {b} {t} tomorrow. How many in total?",
            "{n} buys {r} {t} in total.",
        ),
        (
            "A shop sells {a} {t} on Monday and {b} on Tuesday. How many {t} did it sell?",
            "It sold {r} {t}.",
        ),
    ),
    "-": (
        ("{n} has {a} {t} and gives away {b}. How many {t} are left?", "{r} {t} are left."),
        (
            "{n} has {a} {t}. {n} loses {b} of them. How many {t} does {n} have now?",
            "{n} has {r} {t} now.",
        ),
        ("There are {a} {t} in a box. {n} takes {b}. How many are left?", "{r} {t} are left."),
        ("A shop has {a} {t} and sells {b}. How many {t} are left?", "{r} {t} are left."),
        (
            "{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have?",
            "{n} has {r} more {t}.",
        ),
    ),
}
SYSTEMS = (
    "You are a helpful assistant.", "You are LocalCascade.", "Answer briefly.",
    "You are a calculator.",
    "You are a friendly math tutor.", "Be concise.", "You help with homework.",
    "You are a helpful AI assistant.",
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
    (("Who are you?", "who are you", "What are you?", "Introduce yourself.",
      "Tell me about yourself.",
      "What is your name?", "what's your name?", "Which model are you?"),
     "asked who I am", f"{ABOUT} {SKILL}"),
    (("What can you do?", "what can you do", "How can you help me?", "Help", "help",
      "What do you know?"),
     "asked what I can do", f"{SKILL} With a calculator I can also multiply."),
    (("Thanks", "Thanks!", "thanks", "Thank you.", "Thank you!", "thank you", "Great, thanks!"),
     "the user thanks me", "You are welcome!"),
    (("Bye", "bye", "Goodbye", "Goodbye!", "See you later.", "Bye!"),
     "the user leaves", "Goodbye!"),
    (("Tell me a joke.", "tell me a joke", "Say something funny.", "Do you know a joke?"),
     "asked for a joke", "Why was six afraid of seven? Because seven ate nine."),
    (("Ok", "ok", "OK.", "Good.", "Nice!", "Great!", "Cool", "Well done!"),
     "no question", "Do you have another sum for me?"),
    (("What is the capital of France?", "Write a poem.", "Write a haiku about the sea.",
      "Who wrote Faust?",
      "Explain quantum physics.", "What is the weather today?", "Translate this to German.",
      "Write some code.",
      "Why is the sky blue?", "What time is it?", "Summarize this text.", "Do you like music?",
      "Tell me a story.",
      "How do I cook rice?", "Who is the president?", "What is love?", "Fix this bug.",
      "Sort this list."),
     "not a sum", LIMIT),
)  # fmt: skip

CALCULATOR_TEXTS = (
    ("Work out an arithmetic expression.", "The expression"),
    ("Evaluates a math expression and returns the result.", "Expression to evaluate, such as 2*3"),
    ("Calculate an expression.", "The expression to calculate"),
    ("A calculator for exact arithmetic.", "An arithmetic expression"),
)

FOLLOW_UPS = {
    "+": (
        "Add {b}.",
        "Now add {b}.",
        "Add {b} to that.",
        "And plus {b}?",
        "plus {b}",
        "Now add {b} to the result.",
    ),
    "-": (
        "Subtract {b}.",
        "Now subtract {b}.",
        "Take {b} from that.",
        "And minus {b}?",
        "minus {b}",
    ),
}
