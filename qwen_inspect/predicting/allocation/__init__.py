"""A run's requests on a device, placed as PyTorch's caching allocator places them."""
