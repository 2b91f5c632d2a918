"""The prediction for one text, as clients get it and as it is stored."""

from typing import NamedTuple


class Prediction(NamedTuple):
    """The prediction for one text. It is a tuple because one is created for each text of each request."""

    label: str
    score: float
    """Calibrated probability of the label, 0 to 1, rounded to 4 decimals as in responses."""
    version: int
    """The model version that made the prediction."""
    truncated: bool
    """True if the text was longer than the model reads, and was truncated."""
    probabilities: bytes
    """Probabilities of all labels, in the format of `Classification`; only sampled predictions need them."""
