"""`localcascade solve`: several chains of thought vote on the answer to a problem."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localcascade.cli import console
from localcascade.cli.loading import Source, spread_options
from localcascade.cli.options import AsJson
from localcascade.cli.remote import FIRST_MODEL, open_remote_engine
from localcascade.cli.run import read_piped
from localcascade.cli.stream import Screen, open_engine
from localcascade.settings import load_settings
from localcascade.store import complete_model_name, find_model, mark_used

if TYPE_CHECKING:
    from localcascade.chat.solving import Problem, SamplingEngine, Solution, Standing
    from localcascade.chat.voting import IsSame
    from localcascade.engine.client import Engine
    from localcascade.maths.algebra import Algebra
    from localcascade.prompt.events import ChatRequest

CHAIN_TOKENS = 8192
"""Context for each chain that runs at once, where nothing else is said."""
ANSWER_TOKENS = 2048
"""What a chain needs beside its budget: the problem and the answer."""
SHOWN_CHARACTERS = 60
STATUS_PERIOD_S = 0.1
MAX_OTHERS = 6
MAX_PATH = 1024
FILE_ENDINGS = (".txt", ".md", ".jsonl")
"""A name that ends so is a file, and an error if there is none."""

_EXAMPLE = 'For example: localcascade solve "What is 12 * 30?" --model tiny'


@spread_options
def solve(
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|PROMPT",
            help="A problem, or a file of them: between lines of ---, or JSON lines (.jsonl). "
            "Without it, stdin is.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A name of the catalog, an installed name, or a GGUF file; without it, the "
            "settings'.",
            autocompletion=complete_model_name,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", "-k", min=1, max=256, metavar="K", help="Chains to vote.")
    ] = 8,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="T", help="Most tokens that each chain may think."),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Chains that run at once.")
    ] = 4,
    all_chains: Annotated[
        bool, typer.Option("--all", help="Run every chain, also when the majority stands.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="The model's own unless given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of the first chain; others count on.")
    ] = None,
    *,
    source: Source,
    as_json: AsJson = False,
) -> None:
    """Solve problems by the vote of several chains of thought.

    The chains share the prompt and the context, and run at once. Equal answers are counted as one
    however they are written: 1,000 and 1e3, 1/2 and 0.5, (B) and B; with SymPy installed, x(x+1)
    and x^2+x too. Chains that cannot change the outcome are stopped. The answer goes to stdout,
    one line a problem; how many agree, to stderr.

    \b
    localcascade solve "What is 347 + 586?" --model tiny --samples 5
    localcascade solve homework.txt -m nemotron-cascade-2 -k 16 --budget 8000
    localcascade solve exam.jsonl -m nemotron-cascade-2 --json > results.json
    """
    from localcascade.maths.algebra import Algebra

    problems = gather_problems(problem, read_piped())
    screen = Screen(show_answer=False, show_thinking=False)
    wanted = _Wanted(samples, budget, temperature, seed, stops_early=not all_chains)
    name = model or (FIRST_MODEL if source.remote else _find_default_model())
    told: list[dict[str, Any]] = []
    try:
        engine = (
            open_remote_engine(source.remote, source.remote_key, name)
            if source.remote is not None
            else _open_file(name, source, min(parallel, samples), budget, screen)
        )
        with engine, Algebra() as algebra:
            for number, each in enumerate(problems, 1):
                prefix = f"Problem {number} of {len(problems)}: " if len(problems) > 1 else ""
                told.append(_solve(engine, each, wanted, algebra, screen, prefix))
                if not as_json:
                    _print_solution(told[-1], screen)
    except KeyboardInterrupt:
        raise typer.Exit(console.ExitCode.INTERRUPTED) from None
    if as_json:
        console.print_json({"model": name, "problems": told})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How problems are to be solved."""

    samples: int
    budget: int | None
    temperature: float | None
    seed: int | None
    stops_early: bool

    def ask(self, problem: Problem) -> ChatRequest:
        """Ask for all chains of a problem."""
        from localcascade.chat.solving import make_question
        from localcascade.prompt.budget import ThinkingBudget
        from localcascade.prompt.events import ChatRequest, Sampling

        return ChatRequest(
            messages=({"role": "user", "content": make_question(problem.text)},),
            sampling=Sampling(temperature=self.temperature, seed=self.seed),
            n=self.samples,
            thinking_budget=ThinkingBudget(tokens=self.budget) if self.budget else None,
        )


def gather_problems(given: str | None, piped: str) -> list[Problem]:
    """Find out what is to be solved.

    Args:
        given: A problem, or the path of a file of them.
        piped: What came through stdin: context of a problem that is given, else problems.

    Raises:
        UsageError: There is no problem.
        CascadeError: A line of a file is not what it should be.
    """
    from localcascade.chat.solving import Problem, read_problems

    file = Path(given) if given and len(given) < MAX_PATH and "\n" not in given else None
    if file is not None and (file.is_file() or file.suffix in FILE_ENDINGS):
        problems = _read_file(file)
    elif given is None:
        problems = read_problems(piped, piped.lstrip().startswith("{"))
    else:
        text = "\n\n".join(part for part in (piped.strip("\n"), given) if part.strip())
        problems = [Problem(text)] if text else []
    if not problems:
        raise console.UsageError("there is no problem to solve", _EXAMPLE)
    return problems


def _read_file(file: Path) -> list[Problem]:
    from localcascade.chat.solving import read_problems
    from localcascade.errors import CascadeError

    try:
        text = file.read_text("utf-8-sig")
        return read_problems(text, file.suffix == ".jsonl")
    except UnicodeDecodeError as error:
        raise console.UsageError(f"{file}: not UTF-8 text at byte {error.start}") from error
    except CascadeError as error:
        raise console.UsageError(f"{file}: {error.message}", error.hint) from error


def _open_file(
    name: str, source: Source, n_parallel: int, budget: int | None, screen: Screen
) -> Engine:
    path = find_model(name)
    mark_used(path)
    n_chain = max(CHAIN_TOKENS, budget + ANSWER_TOKENS) if budget else CHAIN_TOKENS
    options = {"n_ctx": n_parallel * n_chain, "n_parallel": n_parallel, **source.engine_options}
    return open_engine(path, screen, **options)


def _find_default_model() -> str:
    name = load_settings().model
    if not name:
        raise console.UsageError("no model is named, here or in the settings", _EXAMPLE)
    return name


def _solve(
    engine: SamplingEngine,
    problem: Problem,
    wanted: _Wanted,
    algebra: Algebra,
    screen: Screen,
    prefix: str,
) -> dict[str, Any]:
    """Solve one problem, with the standing on the waiting line."""
    from localcascade.chat.solving import solve_problem
    from localcascade.maths.check import check_answer, compare_formulas

    told_s = 0.0

    def is_same(one: str, other: str) -> bool:
        return compare_formulas(one, other, algebra) is True

    def tell(standing: Standing) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > STATUS_PERIOD_S:
            told_s = time.monotonic()
            screen.show_status(prefix + describe_standing(standing))

    try:
        request = wanted.ask(problem)
        solution = solve_problem(engine, request, is_same, tell, stops_early=wanted.stops_early)
    finally:
        screen.show_status("")
    told = describe_solution(problem, solution, is_same)
    return told | {"checked": check_answer(problem.text, told["answer"] or "", algebra)}


def describe_standing(standing: Standing) -> str:
    """Say in a line how far the chains of a problem are."""
    vote = standing.vote
    line = f"{vote.n_chains}/{standing.n_samples} chains, {standing.n_pieces:,} tokens"
    if not vote.groups:
        return line
    shown = console.escape_controls(" ".join(vote.answer.split()))[:SHOWN_CHARACTERS]
    return f"{line}; {vote.n_votes} say {shown}"


def describe_solution(problem: Problem, solution: Solution, is_same: IsSame) -> dict[str, Any]:
    """Say what a problem's chains came to, as `--json` promises.

    Args:
        problem: The problem.
        solution: Its solution.
        is_same: Compares expressions.

    Returns:
        Keys that are a contract; more may be added.
    """
    from localcascade.chat.voting import is_expected

    vote = solution.vote
    told: dict[str, Any] = {
        "problem": problem.text,
        "answer": vote.answer or None,
        "votes": vote.n_votes,
        "chains_ended": vote.n_chains,
        "samples": solution.n_samples,
        "tied": vote.is_tied,
        "stopped_early": solution.has_stopped_early,
        "candidates": [{"answer": each.shown, "votes": each.n_votes} for each in vote.groups],
        "chains": [
            {
                "index": chain.index,
                "answer": chain.answer.shown if chain.answer else None,
                "finish_reason": chain.reason,
                "thinking_tokens": chain.thinking_tokens,
                "completion_tokens": chain.completion_tokens,
            }
            for chain in solution.chains
        ],
    }
    if problem.name:
        told["id"] = problem.name
    if problem.expected is not None:
        told["expected"] = problem.expected
        told["correct"] = is_expected(vote, problem.expected, is_same)
    return told


def _print_solution(told: dict[str, Any], screen: Screen) -> None:
    answer = " ".join((told["answer"] or "").split())
    print(console.escape_controls(answer) if sys.stdout.isatty() else answer, flush=True)
    screen.note(console.escape_controls(explain_vote(told)))


def explain_vote(told: dict[str, Any]) -> str:
    """Put the agreement of a solution, as `describe_solution` gives it, into a sentence."""
    if not told["candidates"]:
        return f"none of {told['chains_ended']} chains gave an answer"
    first, *others = told["candidates"]
    said = f"{first['votes']} of {told['chains_ended']} chains agree"
    if told["tied"]:
        said = f"a tie: {first['votes']} of {told['chains_ended']} chains each"
    if others:
        listed = [f"{' '.join(each['answer'].split())} ({each['votes']})" for each in others]
        said += "; others: " + ", ".join(listed[:MAX_OTHERS])
    if told["stopped_early"]:
        n_stopped = told["samples"] - told["chains_ended"]
        said += f"; {n_stopped} more could not change that and were stopped"
    if "correct" in told:
        verdict = "right" if told["correct"] else f"wrong, it is {told['expected']}"
        said += f"; {verdict}"
    elif told.get("checked", "not checked") != "not checked":
        said += f"; put into the problem, it is {told['checked']}"
    return said
