"""The quick first version: a bounded training of the packaged encoder, so that there is an answer within minutes."""

import logging
import random
from dataclasses import replace

from common.errors import PipelineError
from common.settings import PACKAGED, Settings
from trainer.base_tokenizer import packaged_directory
from trainer.dataset import Dataset

TRAINING_S = 75.0
"""Seconds of training."""

LEAST_STEPS = 120
"""Minimum number of training steps, however few fit in this time on a slow or busy machine. After 160 to 190 steps on
the sample data, accuracy was 0.82 to 0.84 on the validation texts."""

BATCH_SIZE = 16
"""Texts per step. Smaller batches take more steps, and learn more from the same number of texts."""

MOST_TRAIN_TEXTS, MOST_SELECTION_TEXTS, MOST_VAL_TEXTS = 100_000, 300, 500
"""Texts that a quick version is made of, whose predictions are calibrated by, and that it is judged by."""

log = logging.getLogger(__name__)


def quick(settings: Settings) -> Settings:
    """Return the settings of the first version's training: what is set for another encoder does not fit this one."""
    defaults = {name: Settings.model_fields[name].default for name in ("epochs", "learning_rate")}
    return settings.model_copy(update={"base_model": PACKAGED, "batch_size": BATCH_SIZE, **defaults})


def sampled(dataset: Dataset) -> Dataset:
    """Return a random sample of large data with their fingerprint, so that a quick version is soon made of any data."""
    train, val = (
        part.at(sorted(random.Random(0).sample(range(len(part.texts)), most))) if len(part.texts) > most else part
        for part, most in ((dataset.train, MOST_TRAIN_TEXTS), (dataset.val, MOST_VAL_TEXTS))
    )
    return replace(dataset, train=train, val=val)


def fetch_encoder() -> bool:
    """Fetch the packaged encoder if it is missing. Return whether it is there; if not, the log has the reason."""
    try:
        packaged_directory()
    except PipelineError as error:
        log.warning("There is no quick first version, because the packaged encoder cannot be fetched: %s", error)
        return False
    return True
