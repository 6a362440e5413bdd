"""A run really made on a device, held against its prediction. Needs torch."""
