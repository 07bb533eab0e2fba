"""The memory plan: what a model takes, what of it goes where, what would fit. Pure arithmetic."""

from localcascade.fit.memory import (
    KV_TYPES,
    ContextMemory,
    ContextOptions,
    measure_context,
    non_weight_bytes,
)
from localcascade.fit.placement import Device, DeviceUse, Machine, Placement
from localcascade.fit.plan import DEFAULT_N_CTX, plan
from localcascade.fit.proposal import (
    CHECKPOINT_BUDGETS_BYTES,
    Plan,
    Wishes,
    check_fit,
    describe_plan,
)
from localcascade.fit.shape import (
    ModelShape,
    Weight,
    make_config_shape,
    make_recipe_shape,
    make_spec_shape,
    read_file_shape,
)

__all__ = [
    "CHECKPOINT_BUDGETS_BYTES",
    "DEFAULT_N_CTX",
    "KV_TYPES",
    "ContextMemory",
    "ContextOptions",
    "Device",
    "DeviceUse",
    "Machine",
    "ModelShape",
    "Placement",
    "Plan",
    "Weight",
    "Wishes",
    "check_fit",
    "describe_plan",
    "make_config_shape",
    "make_recipe_shape",
    "make_spec_shape",
    "measure_context",
    "non_weight_bytes",
    "plan",
    "read_file_shape",
]
