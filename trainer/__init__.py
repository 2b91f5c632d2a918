"""Reads and checks the data, fine-tunes the encoder, evaluates it, records it in MLflow."""
