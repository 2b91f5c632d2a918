"""Measures the engine and the servers on this machine, each beside what users run today: `python -m benchmarks`."""
