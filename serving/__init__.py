"""Runs the packed graph in Triton, and asks Triton for predictions."""
