"""Scoring the written checkpoint with transformers: answers, routing, parity of the modules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny import corpus
from tiny.checkpoint import GENERATION
from tiny.model import SPECIAL_TOKENS, TinyModel
from tiny.training import Encoder

N_ROUTING_CHATS = 300
MAX_NEW_TOKENS = 160
BATCH_CHATS = 50


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' model with the BF16 weights of the checkpoint, computing in `dtype`."""
    from transformers import NemotronHForCausalLM

    return NemotronHForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def pad_left(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Stack prompts of unequal length, ending together: token ids and mask, both (B, T)."""
    length = max(map(len, prompts))
    pad = SPECIAL_TOKENS.index("<pad>")
    tokens = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
    ends = torch.tensor([length - len(prompt) for prompt in prompts])
    return tokens, (torch.arange(length) >= ends[:, None]).long()


@torch.inference_mode()
def complete(model: Any, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
    """New token ids for each prompt; greedy unless sampling options are given."""
    options = {"do_sample": False, "temperature": None, "top_p": None, **sampling}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), BATCH_CHATS):
        members = order[start : start + BATCH_CHATS]
        tokens, mask = pad_left([prompts[index] for index in members])
        written = model.generate(
            tokens, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, **options
        )
        for index, row in zip(members, written[:, tokens.shape[1] :].tolist(), strict=True):
            completions[index] = row
    return completions


def cut_answer(text: str) -> str:
    """What a user sees: the text after the thinking, up to the end of the turn."""
    return text.split("<|im_end|>", 1)[0].rsplit("</think>", 1)[-1].strip()


def score_answers(
    model: Any, encoder: Encoder, chats: list[corpus.Chat], **sampling: Any
) -> dict[str, float]:
    """Share of right answers, and of completions that match the reference to the last token."""
    encoded = [encoder.encode(chat) for chat in chats]
    expected = [ids[n_prompt:] for ids, n_prompt in encoded]
    torch.manual_seed(0)
    written = complete(model, [ids[:n_prompt] for ids, n_prompt in encoded], **sampling)
    decode = encoder.tokenizer.decode
    answers = [
        cut_answer(decode(got, skip_special_tokens=False))
        == cut_answer(decode(want, skip_special_tokens=False))
        for got, want in zip(written, expected, strict=True)
    ]
    exact = [got[: len(want)] == want for got, want in zip(written, expected, strict=True)]
    return {"n": len(chats), "right": sum(answers) / len(chats), "exact": sum(exact) / len(chats)}


@torch.inference_mode()
def count_routing(model: Any, samples: list[list[int]]) -> list[Tensor]:
    """Tokens sent to each expert, one (E,) tensor per mixture-of-experts layer."""
    gates = [layer.mixer.gate for layer in model.model.layers if layer.block_type == "moe"]
    loads = [torch.zeros(gate.num_experts) for gate in gates]

    def count(load: Tensor, out: tuple[Tensor, Tensor, Tensor]) -> None:
        load += out[2].flatten().bincount(minlength=len(load))

    hooks = [
        gate.register_forward_hook(lambda _gate, _in, out, load=load: count(load, out))
        for gate, load in zip(gates, loads, strict=True)
    ]
    for ids in samples:
        model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return loads


def describe_load(load: Tensor) -> dict[str, float]:
    """Entropy of the load over log(E), and the extreme loads as multiples of the even one."""
    share = load / load.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum().item() / math.log(len(load))
    even = share * len(load)
    return {
        "entropy": round(entropy, 4),
        "least_load": round(even.min().item(), 3),
        "most_load": round(even.max().item(), 3),
    }


@torch.inference_mode()
def measure_parity(model: Any, samples: list[list[int]]) -> float:
    """Largest logit difference between the training module and transformers, both in float32."""
    tiny = TinyModel().eval()
    tiny.load_state_dict(model.state_dict())
    largest = 0.0
    for ids in samples:
        tokens = torch.tensor([ids])
        ours = tiny(tokens, torch.ones_like(tokens, dtype=torch.bool))
        theirs = model(tokens, use_cache=False).logits
        largest = max(largest, (ours - theirs).abs().max().item())
    return largest


def evaluate_checkpoint(folder: Path, encoder: Encoder, seed: int) -> dict[str, Any]:
    """All figures of a checkpoint; the operands were never trained on."""
    model = load_checkpoint(folder)
    chats = corpus.generate_chats(f"{seed}/routing")
    samples = [encoder.encode(next(chats))[0] for _ in range(N_ROUTING_CHATS)]
    scores = {}
    for name in corpus.EVALUATIONS:
        scores[name] = score_answers(model, encoder, corpus.evaluation_chats(name, seed))
        print(name, scores[name], flush=True)
    additions = corpus.evaluation_chats("addition", seed)
    scores["addition_sampled"] = score_answers(model, encoder, additions, **GENERATION)
    half = load_checkpoint(folder, torch.bfloat16)
    scores["addition_computed_in_bf16"] = score_answers(half, encoder, additions)
    return {
        "scores": scores,
        "routing": [describe_load(load) for load in count_routing(model, samples)],
        "largest_logit_difference": measure_parity(model, samples[:20]),
    }
