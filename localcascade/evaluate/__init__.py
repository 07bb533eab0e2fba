"""How good a model is: its distance from another one, measured."""
