"""`localcascade demo`: the whole path, from a checkpoint to an answer, on the bundled model."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

import typer

from localcascade.cli import console
from localcascade.cli.stream import Outcome, Screen, open_engine, play_turn
from localcascade.cli.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "tiny"
TYPE = "q8_0"
FIRST, SECOND = 347, 586
QUESTION = f"What is {FIRST} + {SECOND}?"
MAX_TOKENS = 512

NEXT = f"""
Try next:
  localcascade run {MODEL} "What is 805 - 267?"    another question
  localcascade run {MODEL} "Hello!" --no-think     an answer without thinking
  localcascade inspect {MODEL}                     what the file is made of
  localcascade models                           the large models"""


def demo() -> None:
    """Quantize the bundled model, load it and ask it a question.

    Takes seconds and no network. The model is small, but of the very architecture of
    Nemotron-Cascade-2 and trained to add and subtract; the same code does the large one. The
    answer goes to stdout, the explanations and the model's thinking to stderr.
    """
    from localcascade.store import bundled_model_path

    started_s = time.monotonic()
    output = bundled_model_path(MODEL)
    try:
        _quantize(output)
        outcome = _ask(output)
    except KeyboardInterrupt:
        raise typer.Exit(console.ExitCode.INTERRUPTED) from None
    _tell(f"\n4. {_judge(outcome)}")
    _tell(f"   From weights to answer in {format_duration(time.monotonic() - started_s)}.")
    _tell(NEXT)


def _quantize(output: Path) -> None:
    from localcascade.store import find_checkpoint
    from quantize.convert import quantize_checkpoint
    from quantize.gguf import open_gguf
    from quantize.report import summarize_gguf

    source = find_checkpoint(MODEL)
    source_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    _tell(f"1. A Hugging Face checkpoint of {format_bytes(source_bytes)} ships with LocalCascade:")
    _tell(f"   {source}")
    output.parent.mkdir(parents=True, exist_ok=True)
    result = quantize_checkpoint(source, output, TYPE, name=MODEL)
    with open_gguf(output) as file:
        total = summarize_gguf(file).total
    _tell(
        f"2. Quantized to {TYPE} in {format_duration(result.elapsed_s)}: "
        f"{format_count(total.n_params)} weights at {total.bits_per_weight:.2f} bits each, "
        f"{format_bytes(result.file_bytes)}."
    )
    _tell(f"   {output}")


def _ask(path: Path) -> Outcome:
    from localcascade.prompt.events import ChatRequest, Sampling

    request = ChatRequest(
        messages=({"role": "user", "content": QUESTION},),
        sampling=Sampling(temperature=0, max_tokens=MAX_TOKENS),
    )
    screen = Screen()
    with open_engine(path, screen) as engine:
        info = engine.load()
        load = format_duration(info.load_s)
        _tell(f"3. Loaded by llama.cpp in {load} on {', '.join(info.devices)}, and asked:")
        _tell(f"   {QUESTION}\n")
        return play_turn(engine, request, screen)


def _judge(outcome: Outcome) -> str:
    """Say how fast the answer came, and whether it is right."""
    n_tokens = outcome.done.usage.completion_tokens
    speed = f"{n_tokens} tokens, {outcome.done.timings.tokens_per_s:.0f} a second"
    numbers = re.findall(r"\d+", outcome.answer)
    right = bool(numbers) and int(numbers[-1]) == FIRST + SECOND
    verdict = "right" if right else f"wrong: it should be {FIRST + SECOND}"
    return f"{speed}. The answer is {verdict}."


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
