"""The command `data`: checks the data files, makes sample data if there are none, and prints a report."""

import argparse
import json
import logging

from common.settings import Settings
from serving.model_repo.repository import ModelRepository
from trainer.base_tokenizer import load_base_tokenizer
from trainer.data_report import data_report
from trainer.dataset import DataCheck, DatasetError, check_data
from trainer.sample_data import write_sample_data
from trainer.suspects import last_suspects

log = logging.getLogger(__name__)


def data(settings: Settings, options: argparse.Namespace) -> None:
    """Print the report on the data files, for people or as JSON.

    Raises:
        PipelineError: the data cannot be used. The report is printed all the same.
    """
    found = _check(settings)
    report = data_report(found, load_base_tokenizer(settings) if found.dataset else None, last_suspects(settings))
    if told := json.dumps(report.as_json(), indent=2, ensure_ascii=False) if options.json else report.as_text():
        print(told)
    _finish(found)


def checked_fingerprint(settings: Settings) -> str:
    """Check the data files, make sample data if there are none, and return the fingerprint of the data.

    Raises:
        PipelineError: the data cannot be used.
    """
    found = _check(settings)
    if found.dataset is not None:
        found.dataset.log_notes()
    return _finish(found)


def _check(settings: Settings) -> DataCheck:
    named = settings.model_fields_set & {"train_data", "val_data"}
    is_empty = not named and not settings.train_data.exists() and not settings.val_data.exists()
    # A version that is deployed already was made from other data, or imported.
    if is_empty and not ModelRepository(settings.model_repository).has_record:
        counts = write_sample_data(settings.train_data, settings.val_data, settings.seed)
        log.info(
            "No data files found; made sample data (film and product reviews, MIT licence): %s texts in %s, %s in %s.",
            f"{sum(counts.train.values()):,}",
            settings.train_data,
            f"{sum(counts.val.values()):,}",
            settings.val_data,
        )
    return check_data(settings)


def _finish(found: DataCheck) -> str:
    if found.dataset is None:
        raise DatasetError(found.problems)
    log.info(
        "Data check passed: %s training texts, %s validation texts, labels %s.",
        f"{len(found.dataset.train.texts):,}",
        f"{len(found.dataset.val.texts):,}",
        ", ".join(found.dataset.labels),
    )
    return found.dataset.fingerprint
