"""Fuzzers: damaged and hostile inputs of every kind that the tool reads, each within bounds of seconds and memory (`run.py`)."""
