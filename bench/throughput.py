"""What the engine costs beside llama.cpp's computing, and how fast it serves eight at once.

    python bench/throughput.py overhead [--tokens 2000] [--pairs 5]
    python bench/throughput.py aggregate [--tokens 64] [--pairs 5] [--threads N] [--real]
                                         [--model FILE]

`overhead`: microseconds a generated token above a bare loop of llama_decode with the same chain of
C samplers, on a model so small that little else is left: in this process, and through the worker,
where the client's own work overlaps with the computing. Goals: 150 and 300.

`aggregate`: eight requests at once against llama-server with eight slots, on the same libraries;
every prompt is new, for a cache would answer. On the bundled tiny model, or with --real on nine
layers of the 30 B model's exact shapes (bench/geometry.py, write_layers; the file takes minutes to
make), or on such a file that is here. Goal: 0.95 of its tokens a second. Alternating pairs; medians
go to bench/results/throughput_*.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests hold the small models

from geometry import write_layers  # noqa: E402
from llama_bench import write_tiny  # noqa: E402
from llama_server import serve, stream  # noqa: E402

from localcascade.engine import _llama  # noqa: E402
from localcascade.engine.client import Engine  # noqa: E402
from localcascade.engine.composer import Prompt  # noqa: E402
from localcascade.engine.model import Model  # noqa: E402
from localcascade.engine.sampling import plan_chain, resolve_sampling  # noqa: E402
from localcascade.engine.wire import CHAT_OUTPUTS, LoadOptions  # noqa: E402
from localcascade.prompt.events import ChatRequest, Delta, Done, Failed, Sampling  # noqa: E402
from tests.localcascade.local_engine import LocalEngine, load  # noqa: E402
from tests.localcascade.models import write_model  # noqa: E402

N_PARALLEL, N_CTX, N_WORDS = 8, 8192, 60
PROMPT = tuple(range(97, 123))
WORDS = ["red", "blue", "seven", "apple", "tree", "run", "think", "moon"]
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"


def time_bare(model: Model, n_tokens: int) -> float:
    """Seconds a token of the plainest loop."""
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=1)
    chain = _llama.create_sampler(plan_chain(resolve_sampling(sampling, {}), model.info.n_vocab))
    _llama.clear_memory(model.context)
    batch = _llama.Batch(len(PROMPT))
    row, position = batch.add(0, PROMPT, 0), len(PROMPT)
    batch.decode(model.context)
    token = _llama.sample(chain, model.context, row)
    begun_s = time.perf_counter()
    for _ in range(n_tokens):
        batch.clear()
        row = batch.add(0, (token,), position)
        batch.decode(model.context)
        token = _llama.sample(chain, model.context, row)
        position += 1
    elapsed_s = time.perf_counter() - begun_s
    _llama.free_sampler(chain)
    return elapsed_s / n_tokens


def time_in_process(model: Model, n_tokens: int) -> float:
    """Seconds a token of the scheduler, in this process."""
    engine = LocalEngine(model)
    request = ChatRequest((), sampling=Sampling(1.0, 0.95, seed=1, max_tokens=n_tokens))
    heard = engine.start(request, Prompt(request, PROMPT, opens_thinking=False))
    engine.scheduler.step()
    begun_s = time.perf_counter()
    engine.finish()
    return (time.perf_counter() - begun_s) / (len(heard.tokens) - 1)


def time_worker(engine: Engine, n_tokens: int) -> float:
    """Seconds a token through the worker process."""
    sampling = Sampling(1.0, 0.95, seed=1, max_tokens=n_tokens)
    request = ChatRequest(({"role": "user", "content": "hello"},), (), False, sampling)
    first_s = 0.0
    for event in engine.chat(request):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta) and not first_s:
            first_s = time.perf_counter()
        if isinstance(event, Done):
            return (time.perf_counter() - first_s) / (event.usage.completion_tokens - 1)
    raise SystemExit("no answer")


def measure_overhead(n_tokens: int, n_pairs: int) -> list[list[Any]]:
    """Run the three in turn; rows of medians in microseconds a token."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "m.gguf", hybrid=True, n_ctx_train=N_CTX)
        model = load(path, LoadOptions(N_CTX, n_threads=1, n_outputs=CHAT_OUTPUTS))
        options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_outputs": CHAT_OUTPUTS}
        with Engine(path, **options) as engine:
            engine.load()
            runs: dict[str, Callable[[], float]] = {
                "bare": lambda: time_bare(model, n_tokens),
                "in process": lambda: time_in_process(model, n_tokens),
                "worker": lambda: time_worker(engine, n_tokens),
            }
            times = [{name: run() * 1e6 for name, run in runs.items()} for _ in range(n_pairs)]
    rows = []
    for name in runs:
        above = statistics.median(one[name] - one["bare"] for one in times)
        typical = statistics.median(one[name] for one in times)
        print(f"{name:12} {typical:8.1f} us a token, {above:8.1f} above the bare loop")
        rows.append([MACHINE, n_tokens, n_pairs, name, f"{typical:.1f}", f"{above:.1f}"])
    return rows


def make_text(number: int) -> str:
    """Make a prompt that was never asked before."""
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS) for _ in range(N_WORDS))


async def ask_ours(engine: Engine, number: int, sampling: Sampling) -> int:
    """Ask the engine once; tokens generated."""
    request = ChatRequest(({"role": "user", "content": make_text(number)},), (), False, sampling)
    async for event in engine.achat(request):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            return event.usage.completion_tokens
    return 0


def run_ours(engine: Engine, run: int, n_tokens: int) -> float:
    """Ask the engine eight times at once; tokens a second."""
    endings = engine.tokenize("<|im_end|><|endoftext|>", parse_special=True)
    sampling = Sampling(1.0, 0.95, max_tokens=n_tokens, logit_bias=dict.fromkeys(endings, -1e9))

    async def ask_all() -> list[int]:
        asked = (ask_ours(engine, run * N_PARALLEL + i, sampling) for i in range(N_PARALLEL))
        return await asyncio.gather(*asked)

    begun_s = time.perf_counter()
    counts = asyncio.run(ask_all())
    return sum(counts) / (time.perf_counter() - begun_s)


def run_theirs(url: str, run: int, n_tokens: int) -> float:
    """Ask llama-server eight times at once; tokens a second."""
    counts: list[int] = []

    def ask(i: int) -> None:
        body = {
            "messages": [{"role": "user", "content": make_text(run * N_PARALLEL + i)}],
            "max_tokens": n_tokens, "temperature": 1.0, "top_p": 0.95, "ignore_eos": True,
            "samplers": ["top_p", "temperature"],
            "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip
        usages = [piece["usage"] for piece in stream(url, body) if piece.get("usage")]
        counts.append(usages[-1]["completion_tokens"])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(N_PARALLEL)]
    begun_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun_s)


def compare_aggregate(path: Path, n_tokens: int, n_pairs: int, n_threads: int) -> list[Any]:
    """Run both in turn on one file; a row of medians."""
    counts = ["-np", N_PARALLEL, "-c", N_CTX, "-t", n_threads, "-tb", n_threads, "-b", 512]
    flags = ["-ub", 512, "--kv-unified", "--jinja", "--no-webui"]
    options: dict[str, Any] = {"n_parallel": N_PARALLEL, "n_outputs": CHAT_OUTPUTS}
    with (
        serve(path, *map(str, counts + flags)) as url,
        Engine(path, n_ctx=N_CTX, n_threads=n_threads, **options) as engine,
    ):
        pairs = [
            (run_ours(engine, 2 * i, n_tokens), run_theirs(url, 2 * i + 1, n_tokens))
            for i in range(n_pairs + 1)
        ][1:]  # the first one warms up
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{path.stem:12} ours {ours:9.1f}  llama-server {theirs:9.1f} tokens/s  {ratio:.3f}")
    return [
        MACHINE, path.stem, n_threads, n_tokens, n_pairs,
        f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.4f}",
    ]  # fmt: skip


def make_model(folder: Path, *, is_real: bool) -> Path:
    """Write the model that is asked for."""
    if not is_real:
        return write_tiny(folder / "tiny.gguf")
    write_layers(folder / "real.gguf")
    return folder / "real.gguf"


def main() -> None:
    """Measure one of the two, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "aggregate"))
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.what == "overhead":
        head = "machine tokens pairs path us_a_token us_above_bare"
        rows, name = measure_overhead(options.tokens or 2000, options.pairs), "overhead"
    else:
        head = "machine model threads tokens pairs ours_tokens_s llama_server_tokens_s ratio"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = options.model or make_model(folder, is_real=options.real)
            counts = (options.tokens or 64, options.pairs, options.threads)
            rows, name = [compare_aggregate(path, *counts)], f"aggregate_{path.stem}"
    with (ROOT / "bench" / "results" / f"throughput_{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head.split(), *rows])


if __name__ == "__main__":
    main()
