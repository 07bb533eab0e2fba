"""Checkpoint in, GGUF out. Knows nothing of the runner and is usable on its own."""
