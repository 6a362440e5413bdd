"""The nodes of each architecture's graph, from a file's keys and tensors."""
