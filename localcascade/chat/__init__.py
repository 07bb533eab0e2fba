"""Conversations: their tree, their text as it streams, and what is said about a turn."""
