"""Local runner for NVIDIA Nemotron-Cascade-2 and its relatives."""

__version__ = "0.1.0"
