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
from trainer.dataset import DataCheck, Dataset, DatasetError, check_data
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
    found = _read(settings)
    problems = found.problems
    unfit = events.data_unfit(database)
    kept = kept_facts(settings)
    if not problems and found.is_held_out and kept is not None and not kept.is_held_out:
        # Held-out texts are texts that the deployed version was trained on, and would make it look better.
        problems = [
            f"{settings.val_data}: no such file, and version {kept.version} was made with it. Restore it, or run "
            "`python app.py retrain` to go on with a tenth of the training file in its place"
        ]
    if found.dataset is not None and not problems:
        if kept is None or kept.fingerprint != found.dataset.fingerprint:  # otherwise the training has told them
            found.dataset.log_notes()
        if unfit:
            _note_fit(database, job, found.dataset, kept)
        return CurrentData(found.dataset, [])
    copy = kept_data(settings)
    if kept is None or copy is None or _are_foreign(settings, kept.labels):
        raise DatasetError(problems)
    _note_unfit(database, job, problems, kept.version, unfit)
    return CurrentData(copy, problems)


def _are_foreign(settings: Settings, labels: tuple[str, ...]) -> bool:
    """Return whether the deployed version has none of these labels: it was imported, and the copy is another one's."""
    repository = ModelRepository(settings.model_repository)
    with suppress(PipelineError):  # a damaged version is reported where it is loaded
        if deployed := repository.deployed():
            return set(labels).isdisjoint(Bundle.load(repository.version_directory(deployed)).labels)
    return False


def _read(settings: Settings) -> DataCheck:
    try:
        return check_data(settings)
    except PipelineError as error:  # a check needs no list of rejected rows
        log.warning("%s", error)
        return check_data(settings, write_list=False)


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
