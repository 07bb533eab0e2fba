"""The training loop of the tiny model: batches by length, Muon and AdamW, load balancing."""

from __future__ import annotations

import ctypes
import ctypes.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tiny import corpus
from tiny.model import SPECIAL_TOKENS, TinyModel, balance_load


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result of a training run."""

    seed: int = 1
    """Seed of the weights and of the corpus."""
    n_steps: int = 3500
    """Optimizer steps."""
    batch_tokens: int = 5120
    """Tokens of a batch, padding included."""
    length_step_tokens: int = 32
    """Sequences are padded to a multiple of this, which keeps the shapes few."""
    muon_rate: float = 0.02
    """Peak learning rate of the matrices."""
    adam_rate: float = 0.003
    """Peak learning rate of everything else."""
    weight_decay: float = 0.02
    """Decoupled weight decay of the matrices."""
    warmup_steps: int = 100
    """Linear warm-up."""
    decay_share: float = 0.5
    """Last share of the steps, in which the rate falls linearly to zero."""
    prompt_weight: float = 0.1
    """Weight of prompt tokens in the loss; completion tokens weigh 1."""
    imbalance_weight: float = 0.01
    """Weight of the auxiliary loss of each router."""
    balance_rate: float = 1e-3
    """Step of the router's correction bias."""
    balance_share: float = 0.8
    """First share of the steps, in which the correction bias moves."""
    threads: int = 2
    """Torch threads."""


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences of one length."""

    tokens: Tensor
    """(B, T) token ids."""
    mask: Tensor
    """(B, T) true on real tokens."""
    answer: Tensor
    """(B, T) true on completion tokens."""


@dataclass(frozen=True)
class Encoder:
    """Turns chats into token ids."""

    template: jinja2.Template
    tokenizer: Tokenizer

    def encode(self, chat: corpus.Chat) -> tuple[list[int], int]:
        """Token ids of prompt and completion, and how many of them are the prompt."""
        prompt, completion = corpus.render_chat(self.template, chat)
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids + self.tokenizer.encode(completion, add_special_tokens=False).ids, len(ids)


def load_encoder(folder: Path) -> Encoder:
    """Read the template and the tokenizer of a checkpoint folder."""
    template = corpus.load_template(folder / "chat_template.jinja")
    return Encoder(template, Tokenizer.from_file(str(folder / "tokenizer.json")))


def stack_batch(samples: list[tuple[list[int], int]], length: int) -> Batch:
    """Pad samples (ids, prompt length) on the right to (B, length)."""
    tokens = torch.full((len(samples), length), SPECIAL_TOKENS.index("<pad>"))
    for row, (ids, _) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
    position = torch.arange(length)
    mask = position < torch.tensor([len(ids) for ids, _ in samples])[:, None]
    return Batch(tokens, mask, mask & (position >= torch.tensor([n for _, n in samples])[:, None]))


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def form_batches(chats: Iterable[corpus.Chat], encoder: Encoder, plan: Plan) -> Iterator[Batch]:
    """Collect chats by rounded length; a bucket is a batch as soon as it is full."""
    buckets: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    for chat in chats:
        sample = encoder.encode(chat)
        length = round_up(len(sample[0]), plan.length_step_tokens)
        buckets[length].append(sample)
        if len(buckets[length]) == plan.batch_tokens // length:
            yield stack_batch(buckets.pop(length), length)


# ---- optimizers ----------------------------------------------------------------------------


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration towards U V^T for matrices (..., m, n) (Jordan et al., Muon)."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized; stacked experts are orthogonalized one by one."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix once."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(momentum, group["momentum"]))
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                    update, alpha=-group["lr"] * scale
                )


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains it: projections and experts, not embeddings, router or conv."""
    return p.ndim >= 2 and "_proj" in name


def make_optimizers(model: TinyModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if is_hidden_matrix(name, p)]
    rest = [p for name, p in named if not is_hidden_matrix(name, p)]
    adam = torch.optim.AdamW(rest, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, plan.muon_rate, plan.weight_decay), adam]


def scale_rate(step: int, plan: Plan) -> float:
    """Warm-up, plateau, then a linear fall to zero; a factor of the peak rates."""
    fall = (plan.n_steps - step) / (plan.decay_share * plan.n_steps)
    return min(1.0, (step + 1) / plan.warmup_steps, fall)


# ---- the loop ------------------------------------------------------------------------------


def compute_loss(model: TinyModel, batch: Batch, plan: Plan) -> Tensor:
    """Weighted next-token cross entropy; BF16 matrix products, float32 elsewhere."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch.tokens, batch.mask)
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    weights = batch.answer[:, 1:] + plan.prompt_weight * (batch.mask & ~batch.answer)[:, 1:]
    imbalance = torch.stack([mixture.imbalance for mixture in model.mixtures()]).sum()
    return (losses * weights.flatten()).sum() / weights.sum() + plan.imbalance_weight * imbalance


@torch.no_grad()
def score_exact(
    model: TinyModel, chats: list[corpus.Chat], encoder: Encoder, batch_chats: int = 50
) -> float:
    """Share of chats whose completion is the arg max everywhere: what greedy decoding writes."""
    samples = sorted((encoder.encode(chat) for chat in chats), key=lambda sample: len(sample[0]))
    right = 0
    for start in range(0, len(samples), batch_chats):
        chunk = samples[start : start + batch_chats]
        batch = stack_batch(chunk, len(chunk[-1][0]))
        wrong = (
            model(batch.tokens, batch.mask)[:, :-1].argmax(-1) != batch.tokens[:, 1:]
        ) & batch.answer[:, 1:]
        right += int((~wrong.any(1)).sum())
    return right / len(chats)


def keep_heap() -> None:
    """Ask glibc to keep freed memory: fresh pages for every activation cost a sixth of the time."""
    name = ctypes.util.find_library("c")
    libc = ctypes.CDLL(name) if name else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)


@dataclass
class Run:
    """A training run in progress, which can be saved and taken up again."""

    plan: Plan
    model: TinyModel
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    n_tokens: int = 0
    """Real tokens seen, padding not counted."""
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    """Loss and scores along the way."""

    def save(self, path: Path) -> None:
        """Write the whole state; the file is replaced at once."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": (self.step, self.n_tokens, self.seconds, self.curve),
        }
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def restore(self, path: Path) -> None:
        """Take up a saved state."""
        state: dict[str, Any] = torch.load(path)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.n_tokens, self.seconds, self.curve = state["counters"]

    def advance(self, batch: Batch) -> float:
        """One optimizer step; returns the loss."""
        factor = scale_rate(self.step, self.plan)
        for optimizer, peak in zip(
            self.optimizers, (self.plan.muon_rate, self.plan.adam_rate), strict=True
        ):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.zero_grad()
        loss = compute_loss(self.model, batch, self.plan)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.step < self.plan.balance_share * self.plan.n_steps:
            for mixture in self.model.mixtures():
                balance_load(mixture, self.plan.balance_rate)
        self.step += 1
        self.n_tokens += int(batch.mask.sum())
        return loss.item()


def start_run(plan: Plan, state: Path) -> Run:
    """A fresh run, or the saved one."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    model = TinyModel()
    run = Run(plan, model, make_optimizers(model, plan))
    if state.exists():
        run.restore(state)
    return run


def train(
    run: Run,
    encoder: Encoder,
    state: Path,
    report: Callable[[Run, float], None],
    save_every_s: float = 180.0,
) -> None:
    """Train to the end of the plan, saving the state every few minutes.

    A resumed run draws other chats than one that was never stopped: its corpus seed holds the step.
    """
    chats = corpus.generate_chats(f"{run.plan.seed}/{run.step}")
    batches = form_batches(chats, encoder, run.plan)
    saved_at = started_at = time.monotonic()
    before_s = run.seconds
    while run.step < run.plan.n_steps:
        loss = run.advance(next(batches))
        run.seconds = before_s + time.monotonic() - started_at
        report(run, loss)
        if time.monotonic() - saved_at > save_every_s or run.step == run.plan.n_steps:
            run.save(state)
            saved_at = time.monotonic()
