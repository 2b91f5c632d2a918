"""Starts, monitors and stops the Triton process."""
