"""Checkpoint + ModelSpec -> findings. Pure functions, but for `instantiate`, which runs transformers."""
