"""Runs the packed graph in Triton, and calls Triton for predictions."""
