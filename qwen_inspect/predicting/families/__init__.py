"""Runs of any configuration of a known family, without torch: from its trace in a few layers."""
