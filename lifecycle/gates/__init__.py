"""The gates: tests that a candidate must pass before it is promoted."""
