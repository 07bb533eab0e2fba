"""Write the generated half of the calibration text: maths.txt and chats.jsonl.

    python bench/calibration_text.py [--folder localcascade/data/calibration]

The same seed writes the same bytes. Every sum, root and derivative is computed, so that what the
text says is right. The other half lies beside it and is not generated: prose.txt was written by
hand, code.txt is source of this repository and snippets in other languages.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "localcascade" / "data" / "calibration"
N_PROBLEMS = 110
N_CHATS = 72

NAMES = (
    "Amina", "Björn", "Chiara", "Dmitri", "Esther", "Farid", "Grace", "Hiro", "Ines", "Jakub",
    "Kofi", "Lena", "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tariq",
)  # fmt: skip
GOODS = (
    "notebooks", "light bulbs", "bicycle tyres", "oranges", "theatre tickets", "ceramic tiles",
    "seedlings", "batteries", "envelopes", "paint rollers", "jars of honey", "guitar strings",
)  # fmt: skip
CITIES = ("Lisbon", "Tromsø", "Nairobi", "Osaka", "Kraków", "Montevideo", "Leipzig", "Quito")

Problem = tuple[str, str, str]
"""Question, working, answer."""


# ---- mathematics -------------------------------------------------------------------------------


def pose_quadratic(rng: random.Random) -> Problem:
    """A quadratic equation with integer roots."""
    a, p, q = rng.randint(1, 4), rng.randint(-9, 9), rng.randint(-9, 9)
    b, c = -a * (p + q), a * p * q
    discriminant = b * b - 4 * a * c
    low, high = sorted((p, q))
    work = (
        f"Here $a = {a}$, $b = {b}$, $c = {c}$. The discriminant is\n"
        f"$$b^2 - 4ac = ({b})^2 - 4 \\cdot {a} \\cdot ({c}) = {discriminant},$$\n"
        f"and its square root is {math.isqrt(discriminant)}. So\n"
        f"$$x = \\frac{{{-b} \\pm {math.isqrt(discriminant)}}}{{{2 * a}}}.$$\n"
        f"Check by Vieta: the sum of the roots is {low + high} = -b/a, "
        f"their product {low * high} = c/a."
    )
    roots = f"x = {low}" if low == high else f"x = {low} or x = {high}"
    return f"Solve ${a}x^2 {b:+d}x {c:+d} = 0$ over the real numbers.", work, roots


def pose_fractions(rng: random.Random) -> Problem:
    """A sum of fractions."""
    parts = [Fraction(rng.randint(1, 11), rng.randint(2, 12)) for _ in range(3)]
    common = math.lcm(*(part.denominator for part in parts))
    total = sum(parts, Fraction(0))
    terms = " + ".join(f"\\frac{{{p.numerator}}}{{{p.denominator}}}" for p in parts)
    wide = [p.numerator * (common // p.denominator) for p in parts]
    work = (
        f"The least common multiple of the denominators is {common}.\n"
        f"$${terms} = \\frac{{{' + '.join(map(str, wide))}}}{{{common}}} "
        f"= \\frac{{{sum(wide)}}}{{{common}}}.$$\n"
        f"The greatest common divisor of {sum(wide)} and {common} is "
        f"{math.gcd(sum(wide), common)}, so the fraction in lowest terms is {total}."
    )
    return f"Write ${terms}$ as one fraction in lowest terms.", work, str(total)


def pose_derivative(rng: random.Random) -> Problem:
    """The slope of a polynomial at a point."""
    degrees = sorted(rng.sample(range(1, 7), 3), reverse=True)
    terms = [(rng.choice([-5, -3, -2, 2, 3, 4, 7]), n) for n in degrees]
    x = rng.randint(-3, 3)
    slope = sum(c * n * x ** (n - 1) for c, n in terms)
    f = " ".join(f"{c:+d}x^{{{n}}}" for c, n in terms).lstrip("+")
    g = " ".join(f"{c * n:+d}x^{{{n - 1}}}" for c, n in terms).lstrip("+")
    values = " ".join(f"{c * n * x ** (n - 1):+d}" for c, n in terms)
    work = (
        f"By the power rule, $f'(x) = {g}$. At $x = {x}$ its terms are {values}, "
        f"which add up to {slope}."
    )
    return f"Let $f(x) = {f}$. What is the slope of its graph at $x = {x}$?", work, str(slope)


def pose_modular(rng: random.Random) -> Problem:
    """A power modulo a prime, by repeated squaring."""
    prime = rng.choice([17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 97, 101])
    base, exponent = rng.randint(2, prime - 1), rng.randint(20, 200)
    steps, power, result = [], base % prime, 1
    for place, bit in enumerate(reversed(f"{exponent:b}")):
        if bit == "1":
            result = result * power % prime
        steps.append(f"{base}^{{{1 << place}}} \\equiv {power}")
        power = power * power % prime
    work = (
        f"In binary the exponent is {exponent:b}. Squaring again and again, modulo {prime}:\n"
        f"$${', '.join(steps)}.$$\nMultiplying the powers whose bit is set gives {result}. "
        f"(By Fermat, $a^{{{prime - 1}}} \\equiv 1$, so an exponent of {exponent % (prime - 1)} "
        "gives the same.)"
    )
    return (
        f"Find the remainder of ${base}^{{{exponent}}}$ on division by {prime}.",
        work,
        str(result),
    )


def pose_counting(rng: random.Random) -> Problem:
    """A committee with conditions, counted two ways."""
    women, men, size = rng.randint(4, 8), rng.randint(4, 8), rng.randint(3, 5)
    total = math.comb(women + men, size)
    without = math.comb(men, size)
    terms = [f"\\binom{{{women}}}{{{k}}}\\binom{{{men}}}{{{size - k}}}" for k in range(1, size + 1)]
    work = (
        f"Without the condition there are $\\binom{{{women + men}}}{{{size}}} = {total}$ choices. "
        f"Those that hold no woman number $\\binom{{{men}}}{{{size}}} = {without}$. The difference "
        f"is {total - without}. Counting by the number of women instead,\n"
        f"$${' + '.join(terms)} = {total - without},$$\nwhich agrees."
    )
    question = (
        f"From {women} women and {men} men a committee of {size} is chosen. "
        "How many choices hold at least one woman?"
    )
    return question, work, str(total - without)


def pose_shopping(rng: random.Random) -> Problem:
    """A word problem with a discount."""
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    count, cents, off = rng.randint(6, 40), rng.randint(25, 950), rng.choice([5, 10, 15, 20, 25])
    full = count * cents
    paid = Fraction(full * (100 - off), 100)
    work = (
        f"{count} {goods} at {cents} cents cost {count} × {cents} = {full} cents. "
        f"A discount of {off} % takes off {float(full * off / 100):g} cents, "
        f"which leaves {float(paid):g} cents."
    )
    question = (
        f"{name} buys {count} {goods} at {cents / 100:.2f} euros each and gets {off} % off the "
        "total. What is there to pay?"
    )
    return question, work, f"{float(paid) / 100:.4f}".rstrip("0").rstrip(".") + " euros"


def pose_system(rng: random.Random) -> Problem:
    """Two linear equations."""
    x, y = rng.randint(-9, 9), rng.randint(-9, 9)
    a, b, c, d = 0, 0, 0, 0
    while a * d == b * c:
        a, b, c, d = (rng.choice([-5, -4, -3, -2, 2, 3, 4, 5]) for _ in range(4))
    e, f = a * x + b * y, c * x + d * y
    determinant = a * d - b * c
    work = (
        f"The determinant is ${a} \\cdot {d} - ({b}) \\cdot ({c}) = {determinant}$, not zero, so "
        "there is exactly one solution. By Cramer's rule\n"
        f"$$x = \\frac{{{e} \\cdot {d} - ({b}) \\cdot ({f})}}{{{determinant}}} = {x}, \\qquad "
        f"y = \\frac{{{a} \\cdot {f} - {e} \\cdot ({c})}}{{{determinant}}} = {y}.$$\n"
        f"Check: ${a} \\cdot ({x}) {b:+d} \\cdot ({y}) = {e}$."
    )
    question = (
        f"Solve\n$$\\begin{{cases}} {a}x {b:+d}y = {e} \\\\ {c}x {d:+d}y = {f} \\end{{cases}}$$"
    )
    return question, work, f"x = {x}, y = {y}"


def pose_probability(rng: random.Random) -> Problem:
    """Two draws without putting back."""
    red, blue = rng.randint(3, 9), rng.randint(3, 9)
    n = red + blue
    same = Fraction(red * (red - 1) + blue * (blue - 1), n * (n - 1))
    work = (
        f"Both red: $\\frac{{{red}}}{{{n}}} \\cdot \\frac{{{red - 1}}}{{{n - 1}}}$. "
        f"Both blue: $\\frac{{{blue}}}{{{n}}} \\cdot \\frac{{{blue - 1}}}{{{n - 1}}}$. The two "
        f"exclude each other, so the probabilities add up to {same}, about {float(same):.4f}."
    )
    question = (
        f"An urn holds {red} red and {blue} blue balls. Two are drawn without putting the first "
        "back. What is the probability that they have the same colour?"
    )
    return question, work, str(same)


def pose_triangle(rng: random.Random) -> Problem:
    """A triangle by Heron's formula."""
    a, b = rng.randint(5, 20), rng.randint(5, 20)
    c = rng.randint(abs(a - b) + 1, a + b - 1)
    squared = Fraction((a + b + c) * (-a + b + c) * (a - b + c) * (a + b - c), 16)
    area = math.sqrt(squared)
    work = (
        f"Half the perimeter is $s = {(a + b + c) / 2:g}$. By Heron's formula the square of the "
        f"area is $s(s-a)(s-b)(s-c) = {float(squared):g}$, so the area is {area:.3f}. The longest "
        f"side is {max(a, b, c)}; the height on it is {2 * area / max(a, b, c):.3f}."
    )
    return f"A triangle has sides {a}, {b} and {c}. Find its area.", work, f"{area:.3f}"


def pose_induction(rng: random.Random) -> Problem:
    """A sum proved by induction."""
    k, n = rng.randint(2, 9), rng.randint(10, 60)
    total = k * n * (n + 1) // 2
    work = (
        f"Claim: $\\sum_{{i=1}}^{{n}} {k}i = \\frac{{{k}n(n+1)}}{{2}}$. For $n = 1$ both sides are "
        f"{k}. If it holds for $n$, then adding ${k}(n+1)$ gives\n"
        f"$$\\frac{{{k}n(n+1)}}{{2}} + {k}(n+1) = \\frac{{{k}(n+1)(n+2)}}{{2}},$$\n"
        f"which is the claim for $n + 1$. For $n = {n}$ the sum is "
        f"${k} \\cdot {n} \\cdot {n + 1} / 2 = {total}$. ∎"
    )
    return (
        f"Prove a formula for {k} + {2 * k} + … + {k}n, and give the sum for n = {n}.",
        work,
        str(total),
    )


PROBLEMS: tuple[Callable[[random.Random], Problem], ...] = (
    pose_quadratic, pose_fractions, pose_derivative, pose_modular, pose_counting, pose_shopping,
    pose_system, pose_probability, pose_triangle, pose_induction,
)  # fmt: skip


def write_maths(rng: random.Random, n_problems: int) -> str:
    """Write problems with their solutions, one behind the other."""
    parts = []
    for i in range(n_problems):
        question, work, answer = PROBLEMS[i % len(PROBLEMS)](rng)
        parts.append(
            f"**Problem {i + 1}.** {question}\n\n*Solution.* {work}\n\n**Answer:** {answer}\n"
        )
    return "\n".join(parts)


# ---- chats -------------------------------------------------------------------------------------

OPENINGS = (
    "Let me see what is asked. ",
    "First I restate the problem. ",
    "Okay, step by step. ",
    "I should be careful here. ",
    "This looks familiar, but let me not guess. ",
    "We need to find it exactly. ",
)
DOUBTS = (
    "Wait, did I get the sign right? Going through it again: yes.",
    "Hmm, that seems plausible, but let me check it another way.",
    "Let me double-check the arithmetic before I answer.",
    "Could there be a second case that I have missed? I do not think so.",
    "Actually, is it allowed to divide here? The number is not zero, so it is.",
)


def reason_about(rng: random.Random) -> dict[str, Any]:
    """A problem thought through before it is answered."""
    question, work, answer = rng.choice(PROBLEMS)(rng)
    thinking = f"{rng.choice(OPENINGS)}{work}\n\n{rng.choice(DOUBTS)} So the answer is {answer}."
    return {
        "messages": [
            {"role": "system", "content": "You are a patient tutor. Show your steps."},
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "reasoning_content": thinking,
                "content": f"{work}\n\n**Answer:** {answer}",
            },
        ]
    }


def _describe_tool(name: str, about: str, **parameters: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind, "description": text}
                    for key, (kind, text) in parameters.items()
                },
                "required": list(parameters),
            },
        },
    }


CALCULATOR = _describe_tool(
    "calculator", "Evaluate an arithmetic expression.", expression=("string", "For example 2*(3+4)")
)
WEATHER = _describe_tool(
    "get_weather", "Current weather of a city.",
    city=("string", "Name of the city"), unit=("string", "celsius or fahrenheit"),
)  # fmt: skip
READ_FILE = _describe_tool(
    "read_file", "Read some lines of a text file.",
    path=("string", "Relative path"), first_line=("integer", "From 1"),
)  # fmt: skip
RUN_SQL = _describe_tool("run_sql", "Run a read-only query.", query=("string", "SQL"))
TOOLS = [CALCULATOR, WEATHER, READ_FILE, RUN_SQL]


def _call_tool(
    rng: random.Random, question: str, plan: str, name: str, arguments: dict[str, Any],
    result: str, thought: str, answer: str,
) -> dict[str, Any]:  # fmt: skip
    number = f"call_{rng.randrange(16**8):08x}"
    call = {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "tools": rng.sample(TOOLS, len(TOOLS)),
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "reasoning_content": plan, "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": number, "content": result},
            {"role": "assistant", "reasoning_content": thought, "content": answer},
        ],
    }


def call_calculator(rng: random.Random) -> dict[str, Any]:
    """A product that is better computed than guessed."""
    a, b, c = rng.randint(120, 9800), rng.randint(12, 970), rng.randint(2, 99)
    result = a * b - c
    return _call_tool(
        rng,
        f"What is {a} times {b}, less {c}?",
        "Large numbers: I will use the calculator rather than multiply in my head.",
        "calculator",
        {"expression": f"{a} * {b} - {c}"},
        str(result),
        f"The tool says {result}. Modulo 10 that must be {a % 10} * {b % 10} - {c % 10}, which is "
        f"{result % 10}: it is.",
        f"{a} × {b} − {c} = **{result}**",
    )


def call_weather(rng: random.Random) -> dict[str, Any]:
    """The weather somewhere."""
    city, degrees, wind = rng.choice(CITIES), rng.randint(-8, 35), rng.randint(0, 60)
    sky = rng.choice(["clear", "overcast", "light rain", "fog", "snow showers"])
    report = {"city": city, "temperature": degrees, "sky": sky, "wind_kmh": wind}
    advice = "take a coat" if degrees < 12 else "no coat is needed"
    return _call_tool(
        rng,
        f"I land in {city} in an hour. Do I need a coat?",
        f"I need the current weather in {city}; there is a tool for it.",
        "get_weather",
        {"city": city, "unit": "celsius"},
        json.dumps(report, ensure_ascii=False),
        f"{degrees} degrees, {sky}, wind {wind} km/h. So: {advice}.",
        f"In {city} it is {degrees} °C with {sky}; {advice}.",
    )


def call_file(rng: random.Random) -> dict[str, Any]:
    """A look into a file with a fault in it."""
    line, limit = rng.randint(10, 80), rng.randint(3, 9)
    path = rng.choice(["src/queue.py", "lib/retry.py", "app/batch.py", "tools/split.py"])
    source = (
        f"{line}  def take(items, limit={limit}):\n{line + 1}      taken = []\n"
        f"{line + 2}      for i in range(limit + 1):\n{line + 3}          taken.append(items[i])\n"
        f"{line + 4}      return taken"
    )
    return _call_tool(
        rng,
        f"`take` in {path} returns one item too many. Please find out why.",
        f"I have to read the function first; it should be around line {line}.",
        "read_file",
        {"path": path, "first_line": line},
        source,
        f"`range(limit + 1)` has {limit + 1} values for a limit of {limit}. It also fails with an "
        "IndexError if there are fewer items. A slice does both right.",
        f"Line {line + 2} counts from 0 to `limit` inclusive, which is {limit + 1} items. A slice "
        f"is simpler and cannot run past the end:\n\n```python\ndef take(items, limit={limit}):\n"
        "    return list(items[:limit])\n```",
    )


def call_database(rng: random.Random) -> dict[str, Any]:
    """A question to a database."""
    year = rng.randint(2015, 2025)
    rows = sorted(
        ((name, rng.randint(100, 9000)) for name in rng.sample(NAMES, 3)), key=lambda row: -row[1]
    )
    table = "\n".join(["customer | total", *(f"{name} | {total}" for name, total in rows)])
    query = (
        "SELECT customer, SUM(amount) AS total FROM orders "
        f"WHERE strftime('%Y', placed_at) = '{year}' "
        "GROUP BY customer ORDER BY total DESC LIMIT 3;"
    )
    return _call_tool(
        rng,
        f"Who were our three best customers in {year}?",
        "Orders have a customer, an amount and a date. I group by customer and sort by the sum.",
        "run_sql",
        {"query": query},
        table,
        f"The order is already descending. Together they make {sum(t for _, t in rows)}.",
        "\n".join(f"{i}. {name}: {total:,}" for i, (name, total) in enumerate(rows, 1)),
    )


SCENES: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    reason_about, call_calculator, reason_about, call_weather, reason_about, call_file,
    reason_about, call_database,
)  # fmt: skip


def write_chats(rng: random.Random, n_chats: int) -> str:
    """Write chats as JSON, one a line."""
    chats = (SCENES[i % len(SCENES)](rng) for i in range(n_chats))
    return "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)


def write_texts(folder: Path) -> None:
    """Write both files."""
    (folder / "maths.txt").write_text(write_maths(random.Random(1), N_PROBLEMS), encoding="utf-8")
    (folder / "chats.jsonl").write_text(write_chats(random.Random(2), N_CHATS), encoding="utf-8")


def main() -> None:
    """Write, and say how much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().folder
    write_texts(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.name:<12} {path.stat().st_size:>7,} bytes")


if __name__ == "__main__":
    main()
