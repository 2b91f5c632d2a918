"""What to label next: the sampled texts from which the next model would learn most.

A text counts by how uncertain the model is of it (the entropy of its answer), times how typical it is of what has
drifted (the probability to be a live text, by the classifier of `drift.py`), as J.-C. Su et al. weigh texts in "Active
Adversarial Domain Adaptation", WACV 2020. They are drawn by these weights and not taken from the top, as A. Kirsch et
al. found as good as far more costly ways in "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning",
TMLR 2023 (power acquisition: the logarithm of the weight with Gumbel noise). Here the top was worse than chance: four
of five of the most uncertain tweets were positive, and from these alone a model learnt that tweets are. The noise is
the text's own, from its hash, so that the same texts are suggested tomorrow, and the first ones of a list are the list
of fewer.

What is nearly the same as one before it is passed over, by the sets of their character n-grams (A. Broder, "On the
resemblance and containment of documents", SEQUENCES 1997).

Only texts from which a model would learn: those that are held out, by their hash, are to be judged by, and a figure on
uncertain texts alone would be too low. For those, label what comes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from scipy.special import entr
from scipy.stats import gumbel_r
from sklearn.feature_extraction.text import HashingVectorizer

from errors import PipelineError
from lifecycle.drift import live_likeness
from lifecycle.live_drift import known_texts
from lifecycle.live_quality import LEAST_TEXTS
from lifecycle.suggesting import MOST_SUGGESTIONS
from serving.repository import ModelRepository
from serving.texts import text_fault
from settings import Settings
from storage.database import Database
from storage.feedback import is_held_out, text_hash, told_among
from storage.sampled_predictions import MOST_CHARACTERS, newest_sample
from storage.tables import Figures, SampledPrediction
from trainer.dataset import Dataset, load_dataset

MOST_SAMPLED = 5_000
"""Texts of the sample, the newest, that are looked at."""
MOST_ALIKE = 0.7
"""Of two suggestions, by the cosine of their n-grams: what is more alike is the same but for a name or a number."""
_COMPARED_CHARACTERS = 500
"""Of a text, so that long ones take no more time and memory."""
_NGRAMS = (3, 5)
_FEATURES = 2**18
_LEAST_WEIGHT = 1e-9

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """A text that should have a label."""

    text: str
    label: str
    """What the model said."""
    score: float
    """The probability that it gave."""
    version: int
    at: datetime
    """When it was asked."""
    uncertainty: float
    """Entropy of the answer: 0 where the model was sure, 1 where all labels were as likely."""
    drift: float | None
    """The probability, 0 to 1, to be a live text and not one that the model knows; none where that is not known."""

    def figures(self) -> Figures:
        """For the API and the command."""
        return {
            "text": self.text,
            "label": self.label,
            "score": round(self.score, 4),
            "version": self.version,
            "at": self.at.isoformat(timespec="seconds"),
            "uncertainty": round(self.uncertainty, 4),
            "drift": None if self.drift is None else round(self.drift, 4),
        }


@dataclass(frozen=True)
class Suggestions:
    """What to label next, in the order in which they were drawn, and of how many texts they are."""

    texts: list[Suggestion]
    considered: int
    """Texts of the sample that have no label yet, and would be learnt from."""

    def figures(self) -> Figures:
        """For the API and the command."""
        return {"considered": self.considered, "suggestions": [item.figures() for item in self.texts]}


def suggest(settings: Settings, database: Database, limit: int = MOST_SUGGESTIONS) -> Suggestions:
    """Choose up to `limit` texts of the sample.

    They are of the version that serves, where there are enough of it, or else of all that are in the sample.
    """
    deployed = ModelRepository(settings.model_repository).deployed()
    sample = newest_sample(database, MOST_SAMPLED, version=deployed)
    if len(sample) < LEAST_TEXTS:
        sample = newest_sample(database, MOST_SAMPLED)
    dataset = _dataset(settings)
    rows = _worth_labelling(database, dataset, sample)
    if not rows:
        return Suggestions([], 0)
    texts = [_compared(row) for row in rows]
    uncertainty = uncertainty_of([row.probabilities for row in rows])
    likeness = None if dataset is None else live_likeness(known_texts(dataset), texts)
    chosen = choose(texts, weigh(uncertainty, likeness), limit)
    found = [
        Suggestion(
            rows[place].text or "",
            rows[place].label,
            max(rows[place].probabilities),
            rows[place].version,
            rows[place].at,
            float(uncertainty[place]),
            None if likeness is None else float(likeness[place]),
        )
        for place in chosen
    ]
    return Suggestions(found, len(rows))


def uncertainty_of(probabilities: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """The entropy of each answer [texts], 0 to 1, whatever the number of its labels."""
    return np.array([entr(np.asarray(row)).sum() / np.log(max(2, len(row))) for row in probabilities])


def weigh(uncertainty: npt.NDArray[np.float64], likeness: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    """How much each text counts [texts], from what is known of it."""
    return uncertainty if likeness is None else uncertainty * likeness


def choose(texts: Sequence[str], weights: npt.NDArray[np.float64], limit: int) -> list[int]:
    """The positions of up to `limit` texts, drawn by their weights, of which no two are nearly the same."""
    features = HashingVectorizer(
        analyzer="char_wb", ngram_range=_NGRAMS, n_features=_FEATURES, binary=True, alternate_sign=False
    ).transform(texts)
    ranks = np.log(np.maximum(weights, _LEAST_WEIGHT)) + gumbel_r.ppf([_share(text) for text in texts])
    likest = np.zeros(len(texts))
    chosen: list[int] = []
    for place in np.argsort(-ranks):
        if len(chosen) == limit:
            break
        if likest[place] <= MOST_ALIKE:
            chosen.append(int(place))
            likest = np.maximum(likest, (features @ features[place].T).toarray().ravel())
    return chosen


def _share(text: str) -> float:
    """A number between 0 and 1 of the text's own: by other digits of its hash than say whether it is held out."""
    return (int(text_hash(text)[-12:], 16) + 0.5) / 16**12


def _dataset(settings: Settings) -> Dataset | None:
    try:
        return load_dataset(settings.train_data, settings.val_data)
    except PipelineError as error:
        # As on a host with a gateway alone: what is uncertain is known all the same.
        log.warning("What is typical of the drift is not known, for the data cannot be read: %s", error)
        return None


def _worth_labelling(
    database: Database, dataset: Dataset | None, sample: Sequence[SampledPrediction]
) -> list[SampledPrediction]:
    """The newest row of each text that would be learnt from and has no label, neither told nor in the files."""
    rows = {
        row.text_hash: row
        for row in sample
        # Of a longer text, only the beginning is there.
        if row.text is not None and row.characters <= MOST_CHARACTERS and not is_held_out(row.text_hash)
    }
    known = told_among(database, rows)
    if dataset is not None:
        known |= {text_hash(text) for text in (*dataset.train.texts, *dataset.val.texts)}
    return [
        row
        for hash_, row in rows.items()
        if hash_ not in known and row.text and "\0" not in row.text and text_fault(row.text) is None
    ]


def _compared(row: SampledPrediction) -> str:
    return (row.text or "")[:_COMPARED_CHARACTERS]
