"""Makes a real run on a device and compares it with its prediction. Needs torch."""
