"""Predicts a run's memory: from a trace or by formula, replayed through a model of the caching allocator."""
