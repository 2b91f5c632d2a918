"""What is measured, a section a module; each adds its measurements to the run's results."""
