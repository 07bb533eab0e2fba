"""llama.cpp in a process of its own, and the client that everyone else uses."""
