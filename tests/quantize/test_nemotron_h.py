"""The family's table at the size of the real model."""

from __future__ import annotations

import math
from pathlib import Path

from localcascade.catalog import load_catalog
from quantize.families.nemotron_h import describe_nemotron_h
from quantize.families.spec import Config, ModelSpec
from quantize.recipe import fitting_types

NEMOTRON_CASCADE_2 = {
    "architectures": ["NemotronHForCausalLM"],
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "attention_bias": False,
    "conv_kernel": 4,
    "head_dim": 128,
    "hidden_size": 2688,
    "intermediate_size": 1856,
    "layer_norm_epsilon": 1e-5,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 64,
    "max_position_embeddings": 262144,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_key_value_heads": 2,
    "routed_scaling_factor": 2.5,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}


def describe() -> ModelSpec:
    names = frozenset(["backbone.embeddings.weight"])
    return describe_nemotron_h(Config(Path("config.json"), NEMOTRON_CASCADE_2), names)


def test_weights_add_up_to_the_published_model() -> None:
    published = load_catalog().entries["nemotron-cascade-2"]
    model = describe()
    # The router's correction bias is a buffer to transformers, not a parameter.
    parameters = [t for t in model.tensors if not t.name.endswith("exp_probs_b.bias")]
    assert sum(math.prod(t.shape) for t in parameters) == published.parameters.total
    n_sources = sum(len(t.sources) for t in model.tensors)
    assert n_sources == 3 + 23 * 9 + 23 * (5 + 2 * 128) + 6 * 5
    experts = sum(math.prod(t.shape) for t in model.tensors if "_exps." in t.name)
    assert experts == 29_374_808_064  # 93 % of all


def test_shapes_of_the_real_layers() -> None:
    shapes = {tensor.name: tensor.shape for tensor in describe().tensors}
    assert shapes["blk.0.ssm_in.weight"] == (10304, 2688)
    assert shapes["blk.0.ssm_norm.weight"] == (8, 512)
    assert shapes["blk.1.ffn_up_exps.weight"] == (128, 1856, 2688)
    assert shapes["blk.1.ffn_down_exps.weight"] == (128, 2688, 1856)
    assert shapes["blk.5.attn_k.weight"] == (256, 2688)
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (131072, 2688)


def test_metadata_marks_the_kind_of_every_layer() -> None:
    values = {key.removeprefix("nemotron_h_moe."): value for key, value, _ in describe().metadata}
    pattern = NEMOTRON_CASCADE_2["hybrid_override_pattern"]
    kinds = ["*" if kv else "E" if ff else "M" for kv, ff in zip(
        values["attention.head_count_kv"], values["feed_forward_length"], strict=True)]  # fmt: skip
    assert "".join(kinds) == pattern
    assert set(values["attention.head_count_kv"]) == {0, 2}


def test_no_superblock_type_fits_the_real_widths() -> None:
    superblock = {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq2_s", "iq3_s", "iq4_xs", "tq2_0"}
    for width in (2688, 1856):
        assert not superblock & set(fitting_types(width))
        assert {"q8_0", "q4_0", "iq4_nl", "mxfp4", "q2_0", "nvfp4"} <= set(fitting_types(width))
