"""Compares models: configurations, facts, tensors, and the file listings of two hubs."""
