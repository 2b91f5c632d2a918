"""Client for the gRPC port of the sentiment pipeline."""

from sentiment_client.serving.client.client import (
    AsyncClient,
    Client,
    InvalidTextError,
    KeyRefusedError,
    Predictions,
    TritonTimeoutError,
    TritonUnavailableError,
)

__all__ = [
    "AsyncClient",
    "Client",
    "InvalidTextError",
    "KeyRefusedError",
    "Predictions",
    "TritonTimeoutError",
    "TritonUnavailableError",
]
