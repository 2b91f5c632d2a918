"""Turns a trained model into a verified version of the Triton model repository."""
