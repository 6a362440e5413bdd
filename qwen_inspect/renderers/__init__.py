"""Report -> text in each output format; nothing here prints."""
