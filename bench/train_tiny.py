"""Train and evaluate `tiny`, the small Nemotron-H that ships with LocalCascade.

    python bench/train_tiny.py corpus --show 5     # look at the invented corpus
    python bench/train_tiny.py train               # about 50 minutes on two cores
    python bench/train_tiny.py evaluate            # the checkpoint, with transformers

Training can be stopped and started again: the state is saved every three minutes. Nothing is
downloaded. The chat template in the checkpoint folder is written by hand and is an input.
Needs the `oracle` extra (torch, transformers, tokenizers).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tiny import checkpoint, corpus, evaluation, training

FOLDER = Path(__file__).parents[1] / "localcascade" / "data" / "tiny"
RESULTS = Path(__file__).parent / "results" / "train_tiny.json"
WATCHED = {
    "addition": 60,
    "subtraction": 40,
    "word_problem": 40,
    "tool_call": 20,
    "instruct_addition": 40,
}
"""Evaluation sets scored during training, and how many of their chats."""


def show_corpus(args: argparse.Namespace) -> None:
    """Print some training examples, the completion after an arrow."""
    template = corpus.load_template(args.folder / "chat_template.jinja")
    for chat in itertools.islice(corpus.generate_chats(args.seed), args.show):
        prompt, completion = corpus.render_chat(template, chat)
        print(f"---- {chat.kind}\n{prompt}=>{completion}")


def name_cpu() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def record(path: Path, section: str, content: dict[str, Any]) -> None:
    """Replace one section of the results file."""
    results = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**results, section: content}, indent=1) + "\n")


class Watch:
    """Prints the loss now and then and scores held-out chats, for the curve of the run."""

    def __init__(
        self, encoder: training.Encoder, loss_every: int = 25, score_every: int = 250
    ) -> None:
        self.encoder, self.loss_every, self.score_every = encoder, loss_every, score_every
        # Another seed than the final evaluation's: choosing by these scores must not leak into it.
        self.chats = {
            name: corpus.evaluation_chats(name, seed=0)[:n] for name, n in WATCHED.items()
        }
        self.losses: list[float] = []

    def __call__(self, run: training.Run, loss: float) -> None:
        """Take note of one step."""
        self.losses.append(loss)
        if run.step % self.loss_every == 0:
            self.print_loss(run)
        if run.step % self.score_every == 0:
            run.curve.append(self.score(run))
            print(run.curve[-1], flush=True)

    def average(self, n_steps: int) -> float:
        """Mean loss of the last steps."""
        recent = self.losses[-n_steps:]
        return sum(recent) / len(recent)

    def print_loss(self, run: training.Run) -> None:
        """Loss, and the least and most loaded expert of each layer in the last batch."""
        loads = [(int(m.load.min()), int(m.load.max())) for m in run.model.mixtures()]
        spent = f"{run.seconds:.0f} s {run.n_tokens} tokens"
        loss = self.average(self.loss_every)
        print(f"step {run.step} {spent} loss {loss:.4f} load {loads}", flush=True)

    def score(self, run: training.Run) -> dict[str, float]:
        """One point of the curve."""
        scores = {
            name: training.score_exact(run.model, chats, self.encoder)
            for name, chats in self.chats.items()
        }
        counters = {"step": run.step, "seconds": round(run.seconds)}
        return {**counters, "loss": round(self.average(self.score_every), 4), **scores}


def train_checkpoint(args: argparse.Namespace) -> None:
    """Train the tokenizer and the model, then write both."""
    plan = replace(training.Plan(), seed=args.seed, n_steps=args.steps, threads=args.threads)
    training.keep_heap()
    checkpoint.write_tokenizer(
        checkpoint.train_tokenizer(args.folder / "chat_template.jinja", plan.seed), args.folder
    )
    encoder = training.load_encoder(args.folder)
    run = training.start_run(plan, args.state)
    training.train(run, encoder, args.state, Watch(encoder))
    checkpoint.write_weights(run.model.state_dict(), args.folder)
    figures = {
        "plan": asdict(plan),
        "tokens": run.n_tokens,
        "seconds": round(run.seconds),
        "cpu": name_cpu(),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "checkpoint_bytes": checkpoint.count_bytes(args.folder),
        "curve": run.curve,
    }
    record(args.results, "training", figures)


def evaluate_checkpoint(args: argparse.Namespace) -> None:
    """Score the checkpoint on unseen operands."""
    encoder = training.load_encoder(args.folder)
    figures = evaluation.evaluate_checkpoint(args.folder, encoder, args.seed)
    record(args.results, "evaluation", figures)
    print(json.dumps(figures, indent=1))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the checkpoint folder")
    parser.add_argument("--seed", type=int, default=training.Plan.seed)
    parser.add_argument("--threads", type=int, default=training.Plan.threads)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go")
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("corpus", help="print training examples")
    show.add_argument("--show", type=int, default=5, metavar="N")
    show.set_defaults(run=show_corpus)
    train = commands.add_parser("train", help="train and write the checkpoint")
    train.add_argument("--steps", type=int, default=training.Plan.n_steps)
    state = Path(tempfile.gettempdir()) / "localcascade_train_tiny.pt"
    train.add_argument("--state", type=Path, default=state, help="where the run is saved")
    train.set_defaults(run=train_checkpoint)
    evaluate = commands.add_parser("evaluate", help="score the checkpoint with transformers")
    evaluate.set_defaults(run=evaluate_checkpoint)
    return parser.parse_args()


def main() -> None:
    """Run the chosen command."""
    args = parse_arguments()
    args.run(args)


if __name__ == "__main__":
    main()
