"""How fast a plan would generate, estimated from how much memory each token has to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localcascade.fit.placement import Device, DeviceUse

GPU_BYTES_PER_S = 400e9
"""Of a GPU that is not in the table."""
HOST_BYTES_PER_S = 50e9
"""Of main memory: two channels of DDR5, as they turn out and not as they are labelled."""
EFFICIENCY = 0.6
"""Share of the bandwidth that generation reaches; starting and waiting for kernels is the rest."""
STEP_S = 20e-6
"""Time that a layer takes however small it is."""

BANDWIDTHS_BYTES_PER_S: Mapping[str, float] = {
    "H200": 4800e9, "H100": 3350e9, "A100": 1555e9, "RTX 5090": 1792e9, "RTX 5080": 960e9,
    "RTX 5070 Ti": 896e9, "RTX 5070": 672e9, "RTX 5060 Ti": 448e9, "RTX 4090": 1008e9,
    "RTX 4080": 717e9, "RTX 4070 Ti SUPER": 672e9, "RTX 4070": 504e9, "RTX 4060 Ti": 288e9,
    "RTX 4060": 272e9, "RTX 3090": 936e9, "RTX 3080": 760e9, "RTX 3060": 360e9, "L4": 300e9,
    "T4": 320e9, "RX 7900 XTX": 960e9, "RX 7900 XT": 800e9, "RX 7800 XT": 624e9,
    "M4 Max": 546e9, "M4 Pro": 273e9, "M4": 120e9, "M3 Max": 400e9, "M3 Pro": 150e9,
    "M3": 100e9, "M2 Ultra": 800e9, "M2 Max": 400e9, "M2 Pro": 200e9, "M2": 100e9,
    "M1 Ultra": 800e9, "M1 Max": 400e9, "M1 Pro": 200e9, "M1": 68e9,
}  # fmt: skip
"""Part of a device's description -> bytes a second, as their makers say. The first that matches
counts, so longer names stand before shorter ones."""


def estimate_speed(uses: Sequence[DeviceUse], n_layers: int) -> float:
    """Estimate how many tokens a second one conversation gets.

    Reading is taken to be all that takes time, and the devices to work one after the other.

    Args:
        uses: Of a placement.
        n_layers: Of the model.

    Returns:
        Tokens a second, rough: a machine's real figure may well be half or double.
    """
    reading_s = sum(use.read_bytes / (EFFICIENCY * find_bandwidth(use.device)) for use in uses)
    return 1 / (reading_s + STEP_S * n_layers)


def find_bandwidth(device: Device) -> float:
    """Find how fast a device reads its memory, in bytes a second; a default for unknown ones."""
    for name, bandwidth in BANDWIDTHS_BYTES_PER_S.items():
        if device.kind != "cpu" and name in device.description:
            return bandwidth
    return HOST_BYTES_PER_S if device.kind == "cpu" else GPU_BYTES_PER_S
