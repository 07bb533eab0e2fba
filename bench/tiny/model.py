"""A compact Nemotron-H in torch for training short sequences fast on a CPU.

Parameter names are those of transformers' `NemotronHForCausalLM`, so weights move over unchanged.
The Mamba-2 layers use the quadratic single-chunk form, which is the quickest below a few hundred
tokens, and there is no cache: this module trains and scores, transformers and llama.cpp generate.

Shapes: B sequences, T tokens, D hidden, H heads, P head width, G groups, N state, E experts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = {"M": "linear_attention", "*": "full_attention", "E": "moe"}
PATTERN = "M*EM*ME"
VOCABULARY_TOKENS = 640
SPECIAL_TOKENS = (
    "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip


def configure() -> dict[str, Any]:
    """The arguments of transformers' `NemotronHConfig` for the tiny model."""
    return {
        "vocab_size": VOCABULARY_TOKENS,
        "hidden_size": 224,
        "layers_block_type": [KINDS[letter] for letter in PATTERN],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 128,
        "n_groups": 2,
        "conv_kernel": 4,
        "use_conv_bias": True,
        # transformers clamps dt from below at time_step_min, llama.cpp does not: make it harmless.
        "time_step_min": 1e-9,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 288,
        "moe_shared_expert_intermediate_size": 288,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
        "mlp_hidden_act": "relu2",
        "intermediate_size": 288,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "unk_token_id": SPECIAL_TOKENS.index("<unk>"),
        "bos_token_id": SPECIAL_TOKENS.index("<s>"),
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
        "dtype": "bfloat16",
    }


def normalize_rms(x: Tensor, weight: Tensor, eps: float, n_groups: int = 1) -> Tensor:
    """RMS norm in float32 over the last axis, or over each of `n_groups` slices of it."""
    grouped = x.float().unflatten(-1, (n_groups, -1))
    scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    return (grouped * scale).flatten(-2) * weight


class Norm(nn.Module):
    """RMS norm; with a gate it is Mamba's grouped, gate-first norm."""

    def __init__(self, width: int, eps: float, n_groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.n_groups = eps, n_groups

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width), float32."""
        gated = x if gate is None else x.float() * F.silu(gate.float())
        return normalize_rms(gated, self.weight, self.eps, self.n_groups)


def decay_mask(log_decay: Tensor) -> Tensor:
    """Causal products of decays: (B, H, T) -> (B, H, T, T), exp(sum of log_decay over s+1..t)."""
    total = log_decay.cumsum(-1)
    gaps = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.ones(gaps.shape[-2:], dtype=torch.bool, device=gaps.device).triu(1)
    return gaps.masked_fill(future, -torch.inf).exp()


class Mamba(nn.Module):
    """Mamba-2 in the quadratic form Y = (decay * C B^T) (dt X) + D X."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads, self.head_dim = cfg["mamba_num_heads"], cfg["mamba_head_dim"]
        self.n_groups, self.n_state = cfg["n_groups"], cfg["ssm_state_size"]
        self.inner = self.n_heads * self.head_dim
        self.conv_dim = self.inner + 2 * self.n_groups * self.n_state
        hidden, taps = cfg["hidden_size"], cfg["conv_kernel"]
        self.in_proj = nn.Linear(hidden, self.inner + self.conv_dim + self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, taps, groups=self.conv_dim, padding=taps - 1
        )
        self.A_log = nn.Parameter(torch.arange(1, self.n_heads + 1).float().log())
        self.D = nn.Parameter(torch.ones(self.n_heads))
        dt = torch.exp(torch.empty(self.n_heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.norm = Norm(self.inner, cfg["layer_norm_epsilon"], self.n_groups)
        self.out_proj = nn.Linear(self.inner, hidden, bias=False)

    def convolve(self, x: Tensor) -> Tensor:
        """Depthwise causal convolution and SiLU: (B, T, conv_dim) -> the same."""
        mixed = F.conv1d(x.mT, self.conv1d.weight, self.conv1d.bias, padding=self.conv1d.padding,
                         groups=self.conv_dim)  # fmt: skip
        return F.silu(mixed[..., : x.shape[1]].mT)

    def scan(self, x: Tensor, b: Tensor, c: Tensor, dt: Tensor) -> Tensor:
        """x (B, H, T, P), b and c (B, G, T, N), dt (B, H, T) -> (B, H, T, P)."""
        decay = decay_mask(-dt * self.A_log.exp()[:, None])
        scores = (c @ b.mT).repeat_interleave(self.n_heads // self.n_groups, dim=1)
        mixed = (scores * decay).to(scores.dtype) @ (x * dt.unsqueeze(-1)).to(scores.dtype)
        return mixed + x * self.D[:, None, None]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        sizes = [self.inner, self.conv_dim, self.n_heads]
        gate, mixed, dt = self.in_proj(hidden).split(sizes, -1)
        state = self.n_groups * self.n_state
        x, b, c = self.convolve(mixed).split([self.inner, state, state], -1)
        x = x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        b, c = (part.unflatten(-1, (self.n_groups, -1)).transpose(1, 2) for part in (b, c))
        y = self.scan(x, b, c, F.softplus(dt.float() + self.dt_bias).mT)
        return self.out_proj(self.norm(y.transpose(1, 2).flatten(-2), gate))


class Attention(nn.Module):
    """Causal grouped-query attention without positions."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.head_dim = cfg["hidden_size"], cfg["head_dim"]
        self.group = cfg["num_attention_heads"] // cfg["num_key_value_heads"]
        q_width, kv_width = (
            cfg[key] * self.head_dim for key in ("num_attention_heads", "num_key_value_heads")
        )
        self.q_proj = nn.Linear(hidden, q_width, bias=False)
        self.k_proj = nn.Linear(hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); padding is on the right, so causality hides it."""
        q, k, v = (
            proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (part.repeat_interleave(self.group, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class Perceptron(nn.Module):
    """The shared expert: down(relu(up x)^2)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, D)."""
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Router(nn.Module):
    """Sigmoid router; the correction bias steers the choice but not the weights."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cfg["n_routed_experts"], cfg["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg["n_routed_experts"]))
        self.top_k, self.scale = cfg["num_experts_per_tok"], cfg["routed_scaling_factor"]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, D) -> logits (n, E), weights (n, k) and expert numbers (n, k), in float32."""
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(x.float(), self.weight)
        scores = logits.sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        return logits, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scale, chosen


def measure_imbalance(logits: Tensor, load: Tensor) -> Tensor:
    """Auxiliary loss, 1 when even: load times mean probability, plus a pull of the logits to zero.

    The pull keeps the sigmoids in their steep part. Without it all scores shrank together until the
    correction bias alone decided, and whole batches jumped from one expert to another.
    """
    scores = logits.sigmoid()
    probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
    share = load / load.sum()
    return len(load) * (share * probability).sum() + 0.1 * logits.square().mean()


class Experts(nn.Module):
    """Routed experts, one matrix product each over the tokens sorted by expert.

    Each expert's rows are padded to a multiple of `ROWS`: the CPU kernels are compiled per shape,
    and without that every batch would bring sixteen new shapes.
    """

    ROWS = 64

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        n_experts, width, hidden = (
            cfg["n_routed_experts"],
            cfg["moe_intermediate_size"],
            cfg["hidden_size"],
        )
        self.up_proj = nn.Parameter(torch.empty(n_experts, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(n_experts, hidden, width))

    def place(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """chosen (n, k) -> row of each choice (n * k,), padded rows per expert (E,), load (E,)."""
        flat = chosen.flatten()
        load = flat.bincount(minlength=len(self.up_proj))
        padded = (load + self.ROWS - 1) // self.ROWS * self.ROWS
        shift = (padded.cumsum(0) - padded) - (load.cumsum(0) - load)
        rank = torch.empty_like(flat)
        rank[flat.argsort(stable=True)] = torch.arange(len(flat))
        return rank + shift[flat], padded, load

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, D), weights and chosen (n, k) -> output (n, D) and load (E,) in tokens."""
        row, padded, load = self.place(chosen)
        copies = x.repeat_interleave(chosen.shape[1], dim=0)
        parts = (
            x.new_zeros(int(padded.sum()), x.shape[1])
            .index_copy(0, row, copies)
            .split(padded.tolist())
        )
        up, down = self.up_proj.to(x.dtype).unbind(), self.down_proj.to(x.dtype).unbind()
        outs = [
            F.relu(part @ u.T).square() @ d.T for part, u, d in zip(parts, up, down, strict=True)
        ]
        per_choice = torch.cat(outs)[row].view(*chosen.shape, -1)
        return (per_choice.float() * weights.unsqueeze(-1)).sum(1), load


class MixtureOfExperts(nn.Module):
    """Router, routed experts and the shared expert."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.gate = Router(cfg)
        self.experts = Experts(cfg)
        self.shared_experts = Perceptron(
            cfg["hidden_size"], cfg["moe_shared_expert_intermediate_size"]
        )
        self.load = torch.zeros(cfg["n_routed_experts"], dtype=torch.long)
        self.imbalance = torch.zeros(())

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (B, T, D), mask (B, T) of real tokens -> (B, T, D)."""
        x = hidden[mask]
        matmul_dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        logits, weights, chosen = self.gate(x)
        mixed, self.load = self.experts(x.to(matmul_dtype), weights, chosen)
        self.imbalance = measure_imbalance(logits, self.load)
        return torch.zeros_like(hidden).index_put((mask,), mixed) + self.shared_experts(hidden)


MIXERS: dict[str, type[nn.Module]] = {"M": Mamba, "*": Attention, "E": MixtureOfExperts}


class Block(nn.Module):
    """Pre-norm residual block around one mixer."""

    def __init__(self, letter: str, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.norm = Norm(cfg["hidden_size"], cfg["layer_norm_epsilon"])
        self.mixer = MIXERS[letter](cfg)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        normed = self.norm(hidden)
        routed = isinstance(self.mixer, MixtureOfExperts)
        return hidden + (self.mixer(normed, mask) if routed else self.mixer(normed))


class Backbone(nn.Module):
    """Embeddings, blocks and the final norm."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(cfg["vocab_size"], cfg["hidden_size"])
        self.layers = nn.ModuleList([Block(letter, cfg) for letter in PATTERN])
        self.norm_f = Norm(cfg["hidden_size"], cfg["layer_norm_epsilon"])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, D)."""
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.norm_f(hidden)


class TinyModel(nn.Module):
    """The whole model; `state_dict` has transformers' in-memory names."""

    def __init__(self) -> None:
        super().__init__()
        cfg = configure()
        self.model = Backbone(cfg)
        self.lm_head = nn.Linear(cfg["hidden_size"], cfg["vocab_size"], bias=False)
        self.apply(initialize)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) token ids and mask of real tokens -> logits (B, T, vocabulary)."""
        return self.lm_head(self.model(tokens, mask))

    def mixtures(self) -> list[MixtureOfExperts]:
        """The mixture-of-experts layers in order."""
        return [m for m in self.modules() if isinstance(m, MixtureOfExperts)]


def initialize(module: nn.Module) -> None:
    """Draw the initial weights; what writes to the residual stream starts smaller."""
    std = 0.04
    small = std / math.sqrt(2 * len(PATTERN))
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, Router):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, Experts):
        nn.init.normal_(module.up_proj, std=std)
        nn.init.normal_(module.down_proj, std=small)
    for name, child in module.named_children():
        if name in ("out_proj", "o_proj", "down_proj"):
            nn.init.normal_(child.weight, std=small)


@torch.no_grad()
def balance_load(mixture: MixtureOfExperts, rate: float) -> None:
    """Nudge the correction bias towards even load (DeepSeek-V3, auxiliary-loss-free balancing)."""
    load = mixture.load.float()
    mixture.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
