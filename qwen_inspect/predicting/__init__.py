"""What a run takes of a device: traced or by formula, replayed through the allocator's model."""
