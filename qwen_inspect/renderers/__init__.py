"""Report -> text; never prints."""
