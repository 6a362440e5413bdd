"""ggml's machine for any graph: tensors without data, the scheduler over devices, the allocator of compute buffers."""
