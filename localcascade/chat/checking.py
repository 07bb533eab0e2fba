"""What was found about the steps of an answer: how many are right, which are wrong, and the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Message
from localcascade.chat.lines import Line, Span, measure_line, prefix_lines
from localcascade.chat.markdown import Look, draw_markdown
from localcascade.chat.practice import find_problem
from localcascade.chat.tutor import read_attempt

if TYPE_CHECKING:
    from localcascade.maths.algebra import Algebra
    from localcascade.maths.check import Step, Verdict

MAX_TASKS = 20
"""Messages at the end of a conversation that are checked; who reads further up has seen them."""
_SIGNS: dict[Verdict, Span] = {
    "right": Span("✓", "added"),
    "wrong": Span("✗", "error"),
    "not checked": Span("?", "dim"),
}
HOW_TO_INSTALL = (
    "SymPy is not installed: only plain arithmetic is checked. "
    "For all steps: pip install 'localcascade[maths]'"
)
_NEAR = r"\approx"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LATEX = re.compile(r"[\\{_]|\^(?!\d\d)")


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of an answer's steps."""

    steps: tuple[Step, ...] = ()
    answer: str = ""
    """The final answer, where one is named."""
    verdict: Verdict = "not checked"
    """On the final answer."""

    def select(self, verdict: Verdict) -> list[Step]:
        """The steps of one verdict."""
        return [step for step in self.steps if step.verdict == verdict]


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be checked."""

    id: str
    """Of the message."""
    text: str
    """An answer in Markdown."""
    questions: tuple[str, ...] = ()
    """All that was asked before it, the last question last."""
    expected: str = ""
    """The right answer, where it is known."""
    is_attempt: bool = False
    """Whether the text is a student's answer and nothing else."""


def find_tasks(path: Sequence[Message]) -> list[Task]:
    """List what can be checked on a path: finished answers, and a student's attempts.

    Returns:
        The newest first, for that one is in sight; at most MAX_TASKS.
    """
    tasks = (_find_task(path[: at + 1]) for at in reversed(range(len(path))))
    return list(islice((task for task in tasks if task is not None), MAX_TASKS))


def _find_task(path: Sequence[Message]) -> Task | None:
    message, *above = path[-1], *path[:-1]
    problem = find_problem(above)
    expected = problem.answer if problem is not None else ""
    attempt = read_attempt(message.text) if message.role == "user" else None
    if attempt is not None and expected:
        return Task(message.id, attempt, expected=expected, is_attempt=True)
    if message.role != "assistant" or message.state == "streaming" or not message.text:
        return None
    questions = tuple(m.text for m in above if m.role == "user")
    return Task(message.id, message.text, questions, expected)


def check_task(task: Task, algebra: Algebra) -> Findings:
    """Check an answer. Takes as long as the comparisons do: seconds, at most half a minute.

    Args:
        task: The answer, and what was asked.
        algebra: What compares.
    """
    from localcascade.chat.answers import extract_answer, names_answer
    from localcascade.maths.check import check_answer, check_steps

    if task.is_attempt:
        return Findings((), task.text, compare_answers(task.text, task.expected, algebra))
    steps = tuple(check_steps(task.text, algebra, "\n\n".join(task.questions)))
    answer, is_named = extract_answer(task.text), names_answer(task.text)
    verdict: Verdict = "not checked"
    if task.expected:  # a hint may end with any number: only what is called the answer is one
        verdict = compare_answers(answer, task.expected, algebra) if is_named else verdict
    elif answer and task.questions:
        question = task.questions[-1].strip()
        verdict = check_answer(question, answer, algebra)
        if verdict == "wrong" and not is_named and answer in _NUMBER.findall(question):
            verdict = "not checked"  # who cannot answer may end with a number of the question
    is_answer = is_named or verdict != "not checked"
    return Findings(steps, answer if is_answer else "", verdict)


def compare_answers(given: str, expected: str, algebra: Algebra) -> Verdict:
    """Say whether an answer is the expected one, however it is written.

    Args:
        given: The answer.
        expected: The right one; a constant of integration may be left out.
        algebra: What compares expressions.

    Returns:
        "Wrong" only where the two are known to differ.
    """
    from localcascade.chat.answers import is_same_answer

    given, expected = given.strip(), expected.strip()
    if expected.endswith("+ C"):
        given, expected = (re.sub(r"\s*\+\s*[cCkK]\$?$", "", text) for text in (given, expected))
    is_same = is_same_answer(given, expected, lambda one, other: _compare(one, other, algebra))
    return "not checked" if is_same is None else "right" if is_same else "wrong"


def _compare(one: str, other: str, algebra: Algebra) -> bool | None:
    from localcascade.maths.check import compare_formulas

    return compare_formulas(one, other, algebra)


def draw_findings(findings: Findings, look: Look, *, shows_all: bool = False) -> list[Line]:
    """Draw what was found: a line with the counts, and a line for each wrong step.

    Args:
        findings: What was found.
        look: How formulas are set.
        shows_all: Draw a line for each step, whatever its verdict.

    Returns:
        Nothing where there was nothing to check. Signs and words say the verdict, colours too.
    """
    parts = _write_counts(findings, look.ascii)
    if not parts:
        return []
    steps = findings.steps if shows_all else findings.select("wrong")
    drawn = (line for step in steps for line in _draw_step(step, look))
    return [*_flow_parts(parts, look), *drawn]


def _write_counts(findings: Findings, is_ascii: bool) -> list[Line]:
    counts: list[tuple[Verdict, int]] = [
        (verdict, len(findings.select(verdict))) for verdict in _SIGNS
    ]
    parts: list[Line] = []
    for verdict, n in (pair for pair in counts if pair[1]):
        noun = "" if parts else "step " if n == 1 else "steps "
        parts.append((*_sign(verdict, is_ascii), Span(f"{n} {noun}{verdict}", "dim")))
    if findings.answer:
        sign = _sign(findings.verdict, is_ascii)
        parts.append((Span("answer ", "dim"), *sign, Span(findings.verdict, "dim")))
    return parts


def _flow_parts(parts: Sequence[Line], look: Look) -> list[Line]:
    """Put parts beside each other, as many as a line holds."""
    gap = Span(", " if look.ascii else " · ", "dim")
    lines: list[Line] = [parts[0]]
    for part in parts[1:]:
        longer = (*lines[-1], gap, *part)
        fits = measure_line(longer) <= look.width
        lines[-1:] = [longer] if fits else [lines[-1], part]
    return lines


def _sign(verdict: Verdict, is_ascii: bool) -> list[Span]:
    return [] if is_ascii else [_SIGNS[verdict], Span(" ")]


def _draw_step(step: Step, look: Look) -> list[Line]:
    """A step behind its sign; LaTeX is laid out, plain arithmetic stays as it is."""
    text = make_safe(f"{step.left} {_NEAR if step.is_near else '='} {step.right}")
    room = Look(max(look.width - 4, 8), look.shows_source, look.ascii)
    lines: Sequence[Line] = [(Span(" ".join(text.split()), "maths"),)]
    if _LATEX.search(text) and not look.shows_source:
        lines = draw_markdown(f"${text}$", room)
    sign = _SIGNS[step.verdict]
    head = f"  {step.verdict}: " if look.ascii else f"  {sign.text} "
    return prefix_lines(lines, Span(head, sign.style), Span(" " * len(head)))


def describe_findings(findings: Findings) -> dict[str, Any]:
    """Say what was found, as `--json` promises; keys are a contract, more may be added."""
    named = {"text": findings.answer, "verdict": findings.verdict} if findings.answer else None
    return {
        "right": len(findings.select("right")),
        "wrong": len(findings.select("wrong")),
        "not_checked": len(findings.select("not checked")),
        "steps": [
            {"left": step.left, "right": step.right, "stop": step.stop, "verdict": step.verdict}
            for step in findings.steps
        ],
        "answer": named,
    }
