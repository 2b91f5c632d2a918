"""Names shared by the backend in Triton and its clients."""

from typing import NamedTuple

MODEL_NAME = "sentiment"
"""The model's name in Triton, and the registered model's name in MLflow."""

CHALLENGER_NAME = "sentiment_challenger"
"""Triton's model name for the candidate (canary or shadow) beside the deployed version. It is a separate model, so that
`sentiment` is always the deployed version and is not affected when the candidate is loaded or unloaded."""

MAX_BATCH_SIZE = 64
"""Maximum texts in one Triton request, and in one batch of the dynamic batcher."""

TICKET = "ticket"
"""Parameter in the configuration of a load that makes the backend wait; see `serving.model_repo.switch`."""

BULK = "bulk"
"""Parameter of a Triton request: true if its texts are part of a large job. Requests without it go first."""

CALL = "call"
"""Parameter of a Triton request: the call's name, by which a later request can abandon it."""

ABANDONED = "abandoned"
"""Parameter of a Triton request that abandons a call: the call's name. The text of this request is not classified."""

TIME_HAS_PASSED = "the time allowed has passed"
"""The backend's error message for a request dropped because of Triton's parameter `timeout`."""

NOBODY_WAITS = "nobody waits for the answer"
"""The backend's error message for a request abandoned (`ABANDONED`), cancelled, or past its gRPC deadline."""


class Phases(NamedTuple):
    """Durations of a call's consecutive phases in the engine; the rest of the call's time is transport."""

    tokenize_s: float
    queue_s: float
    """Time from tokenization until a core took the first text."""
    graph_s: float
    """Time from then until the last text was run, including packing."""
