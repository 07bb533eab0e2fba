"""The screens of the chat, each with its stylesheet beside it."""
