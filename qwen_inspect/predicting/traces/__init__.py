"""A run as its requests for memory: kept, cut into segments, and composed into runs of other lengths and depths."""
