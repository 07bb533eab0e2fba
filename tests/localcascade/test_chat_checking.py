"""What is said about the steps of an answer: counts, signs, and the final answer's verdict."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localcascade.chat.checking import (
    MAX_TASKS,
    Findings,
    Task,
    check_task,
    describe_findings,
    draw_findings,
    find_tasks,
)
from localcascade.chat.conversation import Message
from localcascade.chat.lines import measure_line, read_text
from localcascade.chat.markdown import Look
from localcascade.chat.practice import load_problems
from localcascade.chat.tutor import ATTEMPT
from localcascade.maths.algebra import Algebra
from localcascade.maths.check import check_steps

TEXT = "12 + 7 = 19. Then $19 \\approx 20.5$, $\\frac12 + \\frac13 = \\frac25$ and $x = 2$."


@pytest.fixture(scope="module")
def algebra() -> Iterator[Algebra]:
    with Algebra() as algebra:
        yield algebra


def draw(findings: Findings, width: int = 70, **options: bool) -> str:
    ascii = options.pop("ascii", False)
    return read_text(draw_findings(findings, Look(width, ascii=ascii), **options))


def test_wrong_steps_are_named_and_the_others_counted(algebra: Algebra) -> None:
    findings = check_task(Task("1", TEXT), algebra)
    assert draw(findings) == (
        "✓ 1 step right · ✗ 2 wrong · ? 1 not checked\n  ✗ 19 ≈ 20.5\n  ✗ 1/2 + 1/3 = 2/5"
    )
    assert draw(findings, shows_all=True).splitlines()[1:] == [
        "  ✓ 12 + 7 = 19", "  ✗ 19 ≈ 20.5", "  ✗ 1/2 + 1/3 = 2/5", "  ? x = 2",
    ]  # fmt: skip


def test_without_unicode_words_stand_for_signs(algebra: Algebra) -> None:
    shown = draw(check_task(Task("1", TEXT), algebra), ascii=True)
    assert shown.isascii()
    assert shown.startswith("1 step right, 2 wrong, 1 not checked\n  wrong: 19 ~~ 20.5")


def test_counts_flow_onto_more_lines_where_it_is_narrow(algebra: Algebra) -> None:
    lines = draw_findings(check_task(Task("1", TEXT), algebra), Look(24))
    assert all(measure_line(line) <= 24 for line in lines)
    assert read_text(lines[:3]).splitlines() == ["✓ 1 step right", "✗ 2 wrong", "? 1 not checked"]


def test_verdicts_do_not_rely_on_colour(algebra: Algebra) -> None:
    by_verdict = {
        step.verdict: draw(Findings((step,)), shows_all=True)
        for step in check_task(Task("1", TEXT), algebra).steps
    }
    assert len(set(by_verdict.values())) == 3
    assert all(verdict in shown for verdict, shown in by_verdict.items())


def test_prose_has_nothing_to_check(algebra: Algebra) -> None:
    findings = check_task(Task("1", "There were 12 of them in 1999.", ("When?",)), algebra)
    assert (findings, draw(findings)) == (Findings(), "")


@pytest.mark.parametrize(
    ("text", "questions", "expected", "verdict"),
    [
        ("It is \\boxed{19}.", ("What is 12 + 7?",), "", "right"),
        ("It is 20.", ("What is 12 + 7?",), "", "wrong"),
        ("It is 19.", ("What is 5 + 5?", "What is 12 + 7?"), "", "right"),
        ("So \\boxed{3}.", ("How many are there?",), "", "not checked"),
        ("So \\boxed{3/2}.", ("How many are there?",), "1.5", "right"),
        ("**Answer:** 2", ("How many are there?",), "1.5", "wrong"),
    ],
)
def test_the_final_answer_is_judged(
    algebra: Algebra, text: str, questions: tuple[str, ...], expected: str, verdict: str
) -> None:
    findings = check_task(Task("1", text, questions, expected), algebra)
    assert findings.answer and findings.verdict == verdict
    assert draw(findings).endswith(verdict)


def test_a_hint_is_no_answer(algebra: Algebra) -> None:
    findings = check_task(Task("1", "What is half of 12?", ("q",), "804"), algebra)
    assert (findings.answer, draw(findings)) == ("", "")


def test_a_number_of_the_question_is_no_wrong_answer(algebra: Algebra) -> None:
    task = Task("1", "I have no calculator for 14 * 3.", ("What is 14 * 3?",))
    assert check_task(task, algebra) == Findings()
    named = Task("1", "The answer is 3.", ("What is 14 * 3?",))
    assert check_task(named, algebra).verdict == "wrong"


def test_equations_of_any_question_are_given(algebra: Algebra) -> None:
    claim = "$x^2 = 2x$"
    asked = ("Solve $x^2 - 2x = 0$.", "Show me the next step, please.")
    assert check_task(Task("1", claim), algebra).steps[0].verdict == "wrong"
    assert check_task(Task("1", claim, asked), algebra).steps[0].verdict == "not checked"


def test_json_has_every_step(algebra: Algebra) -> None:
    told = describe_findings(check_task(Task("1", f"{TEXT} \\boxed{{19}}", ("12 + 7",)), algebra))
    assert (told["right"], told["wrong"], told["not_checked"]) == (1, 2, 1)
    assert told["answer"] == {"text": "19", "verdict": "right"}
    first = told["steps"][0]
    assert first == {"left": "12 + 7", "right": "19", "stop": 11, "verdict": "right"}
    assert TEXT[: first["stop"]] == "12 + 7 = 19"


def test_tasks_are_the_newest_answers_and_attempts() -> None:
    problem = load_problems()[0]
    path = [
        Message("1", None, "user", problem.text),
        Message("2", "1", "user", f"{ATTEMPT}805"),
        Message("3", "2", "assistant", "Look again."),
        Message("4", "3", "user", "Why?"),
        Message("5", "4", "assistant", "", state="streaming"),
    ]
    answer, attempt = find_tasks(path)
    assert attempt == Task("2", "805", expected=problem.answer, is_attempt=True)
    asked = (problem.text, f"{ATTEMPT}805")
    assert answer == Task("3", "Look again.", asked, problem.answer)


def test_only_the_end_of_a_long_conversation_is_checked() -> None:
    path = [Message(str(i), None, "assistant", "1 + 1 = 2") for i in range(3 * MAX_TASKS)]
    tasks = find_tasks(path)
    assert len(tasks) == MAX_TASKS and tasks[0].id == path[-1].id


def test_steps_beyond_the_limit_of_time_are_not_checked(algebra: Algebra) -> None:
    steps = check_steps("1 + 1 = 2 and 1 + 1 = 3", algebra, limit_s=0.0)
    assert [step.verdict for step in steps] == ["not checked", "not checked"]


def test_nothing_is_compared_after_the_end() -> None:
    algebra = Algebra()
    text = "$(x + 1)^2 = x^2 + 2x + 1$"
    assert check_task(Task("1", text), algebra).steps[0].verdict == "right"
    algebra.close()
    assert check_task(Task("1", text), algebra).steps[0].verdict == "not checked"
    assert algebra._process is None
