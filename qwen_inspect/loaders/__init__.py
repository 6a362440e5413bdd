"""Reads a model reference into a Checkpoint; one module per source."""
