"""The store, format 1: plain Zarr v3, direct shard writer, memory-mapped reader."""
