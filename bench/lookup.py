"""What running ahead by prompt lookup brings, and that it changes nothing.

    python bench/lookup.py [--tokens 192] [--pairs 5] [--threads N] [--kv f16] [--real]

Greedy answers, with and without, in turn: `copying`, where the answer repeats what is in its
prompt, and `ordinary`, where it does not. On the bundled tiny model in q8_0, or with --real on
layers of the 30 B model's exact shapes (16 experts, of which 6 work on a token as of 128; random
weights in q4_0; the file takes minutes to make). Random weights say nothing that repeats, so in
that file the output matrix is the embeddings in another order: after each token comes the next one
of a round, which is short for copying and long for ordinary text. What is computed is as dear as
ever. Tokens a second, medians of pairs, drafts and whether all tokens were the same go to
bench/results/lookup_*.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests hold the engine without its process

from convert import write_checkpoint  # noqa: E402
from geometry import GEOMETRY, PROPORTIONS, VOCABULARY_TOKENS, fill_vocabulary  # noqa: E402

from localcascade.engine.composer import Prompt  # noqa: E402
from localcascade.engine.scheduler import Scheduler  # noqa: E402
from localcascade.engine.wire import CHAT_OUTPUTS, LoadOptions  # noqa: E402
from localcascade.prompt.events import ChatRequest, Sampling  # noqa: E402
from localcascade.store import bundled_checkpoint_folder  # noqa: E402
from quantize.convert import quantize_checkpoint  # noqa: E402
from tests.localcascade.local_engine import LocalEngine, load  # noqa: E402

MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"
MODES = ("off", "on", "auto")
SHORT, LONG = range(1000, 1048), range(2000, 130000)
"""Tokens of the two rounds."""
ONE = 0x3F80
"""1 as bf16."""
LOUDNESS = 9 << 7
"""What makes a bf16 number 512 times as large: embeddings then outweigh what the layers add."""


def write_rounds(path: Path) -> None:
    """Write layers of the real shapes that say what comes next in a round."""
    source = path.parent / "model"
    write_checkpoint(source, GEOMETRY | {
        "hybrid_override_pattern": PROPORTIONS, "n_routed_experts": 16,
    })  # fmt: skip
    fill_vocabulary(source)
    embeddings, output, norm = (
        map_matrix(source / "model.safetensors", name)
        for name in ("backbone.embeddings.weight", "lm_head.weight", "backbone.norm_f.weight")
    )
    after = np.arange(VOCABULARY_TOKENS)
    for tokens in (SHORT, LONG):
        after[tokens.start : tokens.stop] = np.roll(np.array(tokens), -1)
    output[after] = embeddings
    embeddings += LOUDNESS
    norm[:] = ONE
    for matrix in (embeddings, output, norm):
        matrix.flush()
    quantize_checkpoint(source, path, "q4_0")


def map_matrix(path: Path, name: str) -> np.memmap[Any, np.dtype[np.uint16]]:
    """Map one BF16 matrix of a safetensors file, to be changed where it is."""
    with path.open("rb") as file:
        (n_bytes,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(n_bytes))[name]
    start = 8 + n_bytes + entry["data_offsets"][0]
    return np.memmap(path, np.uint16, "r+", start, tuple(entry["shape"]))


def list_rounds(n_tokens: int) -> dict[str, list[Prompt]]:
    """The two tasks of the file that goes round."""
    dice = random.Random(1)
    starts = [dice.randrange(LONG.start, LONG.stop - 1000)]
    copying = [(*SHORT, *SHORT, *SHORT)]
    return {
        "copying": [make_prompt(tokens, n_tokens) for tokens in copying],
        "ordinary": [make_prompt(tuple(range(s, s + 150)), n_tokens) for s in starts],
    }


def make_prompt(tokens: tuple[int, ...], n_tokens: int) -> Prompt:
    """A prompt that no template wrote."""
    request = ChatRequest((), sampling=Sampling(temperature=0, max_tokens=n_tokens))
    return Prompt(request, tokens, opens_thinking=False)


def list_texts(engine: LocalEngine, n_tokens: int) -> dict[str, list[Prompt]]:
    """The two tasks of the tiny model: passages to go on with, and sums to think about."""
    dice = random.Random(1)
    vocabulary = engine.model.vocabulary
    copying, ordinary = [], []
    for _ in range(6):
        terms = [(dice.randrange(1000), dice.randrange(1000)) for _ in range(12)]
        passage = "\n".join(f"def add_{a}(x):\n    return x + {b}\n" for a, b in terms)
        tokens = vocabulary.tokenize(passage * 2, parse_special=False)
        copying.append(make_prompt(tuple(tokens), n_tokens))
        question = f"What is {terms[0][0]} + {terms[0][1]}?"
        request = ChatRequest(
            ({"role": "user", "content": question},), sampling=copying[0].request.sampling
        )
        ordinary.append(engine.composer.compose(request, lambda _stage: None))
    return {"copying": copying, "ordinary": ordinary}


def run(engine: LocalEngine, prompts: list[Prompt]) -> tuple[float, list[list[int]], list[int]]:
    """Answer all prompts; tokens a second, the tokens, and how many were drafted and accepted."""
    answers, used, elapsed_s = [], [0, 0], 0.0
    for prompt in prompts:
        engine.slots.forget()
        heard = engine.ask(prompt.request, replace(prompt))
        done = heard.find_done()
        answers.append(heard.tokens)
        elapsed_s += done.timings.generation_s
        used[0] += done.usage.drafted_tokens
        used[1] += done.usage.accepted_tokens
    return sum(map(len, answers)) / elapsed_s, answers, used


def compare(engines: dict[str, LocalEngine], task: str, prompts: list[Prompt],
            n_pairs: int, told: list[Any]) -> list[list[Any]]:  # fmt: skip
    """Run all modes in turn; rows of medians."""
    runs: dict[str, list[Any]] = {mode: [] for mode in engines}
    for i in range(n_pairs + 1):  # the first one warms up
        for mode in engines if i % 2 else reversed(engines):
            runs[mode].append(run(engines[mode], prompts))
    rows = []
    for mode in list(engines)[1:]:
        pairs = list(zip(runs["off"][1:], runs[mode][1:], strict=True))
        plain, ahead = (statistics.median(rate for rate, _, _ in side) for side in
                        (runs["off"][1:], runs[mode][1:]))  # fmt: skip
        ratio = statistics.median(b[0] / a[0] for a, b in pairs)
        is_equal = all(a[1] == b[1] for a, b in zip(runs["off"], runs[mode], strict=True))
        drafted, accepted = (sum(one[2][i] for one in runs[mode]) for i in (0, 1))
        noise = engines[mode].scheduler.margin.largest
        rows.append([*told, task, mode, f"{plain:.2f}", f"{ahead:.2f}", f"{ratio:.3f}",
                     drafted, accepted, f"{noise:.4f}", is_equal])  # fmt: skip
        print(*rows[-1], sep="  ", flush=True)
    return rows


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--model", type=Path, help="a file that --real wrote before")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        path = options.model or Path(temporary) / ("real.gguf" if options.real else "tiny.gguf")
        if options.real and not options.model:
            write_rounds(path)
        elif not options.model:
            folder = bundled_checkpoint_folder("tiny")
            assert folder
            quantize_checkpoint(folder, path, "q8_0")
        loading = LoadOptions(4096, options.threads, n_outputs=CHAT_OUTPUTS, cache_type=options.kv)
        model = load(path, loading)
        engines = {mode: LocalEngine(model) for mode in MODES}
        for mode, engine in engines.items():
            engine.scheduler = Scheduler(model, engine.slots, lookup=mode)
        tasks = (
            list_rounds(options.tokens)
            if options.real
            else list_texts(engines["off"], options.tokens)
        )
        told = [MACHINE, path.stem, options.threads, options.kv, options.tokens, options.pairs]
        is_eog = model.vocabulary.is_eog
        for task, prompts in tasks.items():
            # What goes on from a passage is not to end with it: a model of its size cannot copy.
            ends = (lambda _token: False) if task == "copying" else is_eog
            setattr(model.vocabulary, "is_eog", ends)  # noqa: B010
            rows += compare(engines, task, prompts, options.pairs, told)
    head = "machine model threads kv tokens pairs task mode plain_tokens_s lookup_tokens_s ratio"
    head += " drafted accepted largest_difference equal"
    kind = "real" if options.real else "tiny"
    with (ROOT / "bench" / "results" / f"lookup_{kind}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head.split(), *rows])


if __name__ == "__main__":
    main()
