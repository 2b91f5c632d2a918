"""Names that the backend in Triton and those who ask it must agree on."""

MODEL_NAME = "sentiment"
"""Triton's name of the model; MLflow's name of the registered model too."""

MAX_BATCH_SIZE = 64
"""Most texts in one Triton request, and in one batch of the dynamic batcher."""
