"""The engine over HTTP, in the OpenAI format: bodies in, chunks out."""
