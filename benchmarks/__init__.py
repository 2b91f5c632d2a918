"""Benchmarks of the engine and the servers against common alternatives: `python -m benchmarks`."""
