"""Faults caused on purpose to the real pipeline under load: `python -m tests.e2e.chaos`."""
