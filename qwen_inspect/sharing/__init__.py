"""A model shared by several devices: its plans, and each rank's bytes."""
