"""A reference -> Checkpoint: one module a source."""
