"""The real pipeline under half load for a long time, with a promotion every minute: `python -m tests.e2e.soak`."""
