"""The command `python app.py import`: its output."""

import argparse

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.jobs.cpu_share import modest
from lifecycle.jobs.import_classifier import import_version
from storage.database import Database


def import_model(settings: Settings, options: argparse.Namespace) -> None:
    """Import a classifier that is fine-tuned already, and deploy it or put it through the gates."""
    labels = [label.strip() for label in options.labels.split(",")] if options.labels else []
    database = Database(settings.database)
    try:
        with modest(settings.job_cpu_share):
            found = import_version(settings, database, options.source, labels)
    finally:
        database.close()
    message = f"Version {found.version} {found.outcome}."
    if found.rejected:
        raise PipelineError(message)
    print(message)
