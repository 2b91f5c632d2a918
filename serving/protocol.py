"""Names that the backend in Triton and those who ask it must agree on."""

from typing import NamedTuple

MODEL_NAME = "sentiment"
"""Triton's name of the model; MLflow's name of the registered model too."""

CHALLENGER_NAME = "sentiment_challenger"
"""Triton's name of the version that is being tried beside the one that serves; a model of its own, so that whoever asks
Triton for `sentiment` gets the version that serves, and nothing of it is touched when the other comes or goes."""

MAX_BATCH_SIZE = 64
"""Most texts in one Triton request, and in one batch of the dynamic batcher."""

TICKET = "ticket"
"""The parameter in a load's configuration that has the backend wait; see `serving.switch`."""

TIME_HAS_PASSED = "the time allowed has passed"
"""What the backend says of a request that it did not compute because of Triton's parameter `timeout`."""

NOBODY_WAITS = "nobody waits for the answer"
"""The same, because the client cancelled it, left, or set a gRPC deadline that has passed."""


class Phases(NamedTuple):
    """Where the time of a call went in the engine. They follow one another; what is left is transport."""

    tokenize_s: float
    queue_s: float
    """From then until a core took the first of its texts."""
    graph_s: float
    """From then until the last of its texts was run, its packing among it."""
