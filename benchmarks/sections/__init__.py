"""The sections of a benchmark run, one per module; each adds its measurements to the run's results."""
