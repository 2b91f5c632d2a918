"""The data of a check: the data files, or the copy that is kept of the deployed version's data while they are unfit."""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import events
from storage.database import Database
from storage.events import EventKind
from storage.tables import Event, Figures, Job
from trainer.dataset import Dataset, DatasetError, check_data
from trainer.judging_data import judging_data
from trainer.kept_data import KeptFacts, kept_data, kept_facts

_NUMBERS = re.compile(r"\([^()]*\)|\d[\d.,]*")
"""Counts, and the lists of counts in parentheses."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurrentData:
    """Data to evaluate the deployed version on."""

    dataset: Dataset
    problems: list[str]
    """Why the data files cannot be used, so that `dataset` is the copy; empty if they can."""


def current_data(settings: Settings, database: Database, job: Job) -> CurrentData:
    """Read the data files; if they cannot be used, return the copy. Record an event when either begins.

    Raises:
        DatasetError: the data files cannot be used, and there is no copy.
    """
    deployed = _deployed(settings)
    dataset, problems = _read(settings, deployed)
    unfit = events.data_unfit(database)
    kept = kept_facts(settings)
    if dataset is not None and dataset.is_held_out and kept is not None and not kept.is_held_out:
        # Held-out texts are texts that the deployed version was trained on, and would make it look better.
        problems = [
            f"{settings.val_data}: no such file, and version {kept.version} was made with it. Restore it, or run "
            "`python app.py retrain` to go on with a tenth of the training file in its place"
        ]
    if dataset is not None and not problems:
        if kept is None or kept.fingerprint != dataset.fingerprint:  # otherwise the training has told them
            dataset.log_notes()
        if unfit:
            _note_fit(database, job, dataset, kept)
        return CurrentData(dataset, [])
    copy = kept_data(settings)
    # A version that was imported may have other labels than the one whose data were kept.
    are_foreign = kept is not None and deployed is not None and set(kept.labels).isdisjoint(deployed.labels)
    if kept is None or copy is None or are_foreign:
        raise DatasetError(problems)
    _note_unfit(database, job, problems, kept.version, unfit)
    return CurrentData(copy, problems)


def _deployed(settings: Settings) -> Bundle | None:
    repository = ModelRepository(settings.model_repository)
    with suppress(PipelineError):  # a damaged version is reported where it is loaded
        if deployed := repository.deployed():
            return Bundle.load(repository.version_directory(deployed))
    return None


def _read(settings: Settings, deployed: Bundle | None) -> tuple[Dataset | None, list[str]]:
    """Return the data of the files, or else what is wrong with them. An imported version needs no training file."""
    if deployed is not None and deployed.imported:
        try:
            dataset = judging_data(settings, deployed.base_model, deployed.labels)
        except DatasetError as error:
            return None, error.problems
        except PipelineError as error:  # the files have other labels
            return None, [str(error)]
        return (dataset, []) if dataset.val.texts else (None, ["there are no texts with labels"])
    try:
        found = check_data(settings)
    except PipelineError as error:  # a check needs no list of rejected rows
        log.warning("%s", error)
        found = check_data(settings, write_list=False)
    return found.dataset, found.problems


def _note_unfit(database: Database, job: Job, problems: list[str], version: int, last: Event | None) -> None:
    """Log the problems, and record them unless the `last` event about unfit data tells the same with other numbers."""
    lines = "\n".join(f"  {problem}" for problem in problems)
    message = (
        f"The data files cannot be used; checks go on with the data of version {version}.\n{lines}\n"
        "There will be no retraining until the files are repaired; the deployed version keeps serving."
    )
    log.warning("%s", message)
    if last is not None and _NUMBERS.sub("", last.message) == _NUMBERS.sub("", message):
        return
    with database.transaction() as session:
        events.record(session, EventKind.DATA_UNFIT, message, version=version, job_id=job.id)


def _note_fit(database: Database, job: Job, dataset: Dataset, kept: KeptFacts | None) -> None:
    """Record that the data files can be used again."""
    texts = {"train": len(dataset.train.texts), "val": len(dataset.val.texts)}
    told = f"{texts['train']:,} training texts and {texts['val']:,} validation texts"
    if kept is not None and kept.fingerprint == dataset.fingerprint:
        told += f", the data of version {kept.version}"
    elif kept is not None:
        told += f". Version {kept.version} has {kept.texts['train']:,} and {kept.texts['val']:,}, so there are other "
        told += "texts to learn from: if it is stale, a check requests a retraining, and `python app.py retrain` "
        told += "starts one at once"
    message = f"The data files can be used again: {told}."
    log.info("%s", message)
    figures: Figures = {"training texts": texts["train"], "validation texts": texts["val"]}
    with database.transaction() as session:
        events.record(session, EventKind.DATA_FIT, message, figures, job_id=job.id)
