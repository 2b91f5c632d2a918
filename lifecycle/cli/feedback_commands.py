"""The feedback commands: import a file, list sources, put a source into quarantine, release or withdraw it."""

import argparse
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from common.source_names import of_import
from lifecycle.cli.printing import print_json, print_table
from lifecycle.monitoring.labelling import conclude
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import events, feedback_sources, withdrawal
from storage.database import Database
from storage.events import EventKind
from storage.feedback import LabelledText, add_feedback
from storage.feedback_sources import FullError, Quota, QuotaError
from tables.errors import TableError
from tables.labelled import ColumnChoice, open_labelled

_REASON = "by command"
_ACTIONS = ("sources", "quarantine", "release", "withdraw")


def feedback(settings: Settings, options: argparse.Namespace) -> None:
    """Run the action of `python app.py feedback`, or import the file that is given instead."""
    if options.action == "sources":
        _list_sources(settings, options.json)
    elif options.action == "withdraw":
        _withdraw(settings, options)
    elif options.action in ("quarantine", "release"):
        source = _needed_source(options)
        change = feedback_sources.quarantine if options.action == "quarantine" else feedback_sources.release
        change(Database(settings.database), source, _REASON)
        print(
            f"The feedback of {source} {'is in' if options.action == 'quarantine' else 'was released from'} quarantine."
        )
    else:
        import_file(settings, Path(options.action))


def import_file(settings: Settings, file: Path) -> None:
    """Import a file of feedback. Rows that cannot be used are left out and listed; the others are stored together."""
    from tables.labels import nearest
    from trainer.dataset import read_labelled_texts

    if not file.exists():
        hint = nearest(str(file), _ACTIONS) or "."
        raise PipelineError(f"{file}: no such file, and no action of `python app.py feedback` either{hint}")
    labels = known_labels(settings)
    if _is_to_label(file):
        settings = settings.model_copy(update={"text_column": None, "label_column": None})
    found = read_labelled_texts(file, labels, settings)
    rows = [LabelledText(text, label) for text, label in zip(found.texts.texts, found.texts.labels, strict=True)]
    notes = "".join(f"\n  {note}{'' if note.endswith('?') else '.'}" for note in found.notes)
    if not rows:
        raise PipelineError(f"{file}: no row can be imported.{notes}")
    database = Database(settings.database)
    quota = Quota.from_settings(settings)
    source = of_import(file.name)
    try:
        add_feedback(database, rows, source, quota=quota)
    except (FullError, QuotaError) as error:
        raise PipelineError(str(error)) from error
    counted = f"{len(rows):,} rows of feedback were" if len(rows) > 1 else "One row of feedback was"
    message = f"{counted} imported from {file.name}."
    figures = {"rows": len(rows), "source": source, "rejected": found.counts.rejected}
    with database.transaction() as session:
        events.record(session, EventKind.FEEDBACK_IMPORTED, message, figures)
    print(f"{message}{notes}")
    if (found_by_labels := conclude(settings, database)) is not None:
        print(f"Accuracy on live texts: {found_by_labels}.")


def _list_sources(settings: Settings, as_json: bool) -> None:
    found = feedback_sources.list_sources(Database(settings.database), settings.trusted_sources)
    if as_json:
        print_json(found)
        return
    rows = [
        [
            item["source"],
            f"{item['rows']:,}",
            f"{item['bytes'] / 2**20:.1f}",
            "yes" if item["trusted"] else "no",
            item["reason"] if item["quarantined"] else "",
        ]
        for item in found
    ]
    print_table(["source", "rows", "MiB", "trusted", "quarantine"], rows)


def _withdraw(settings: Settings, options: argparse.Namespace) -> None:
    database = Database(settings.database)
    if options.id is not None:
        count = withdrawal.withdraw_row(database, options.id, options.erase, _REASON)
    else:
        count = withdrawal.withdraw_source(database, _needed_source(options), options.erase, _REASON)
    erased = f" and {'their texts' if count != 1 else 'its text'} erased" if options.erase else ""
    rows = f"{count:,} rows of feedback were" if count != 1 else "1 row of feedback was"
    print(f"{rows} withdrawn{erased}; no model learns from {'them' if count != 1 else 'it'} again.")


def _needed_source(options: argparse.Namespace) -> str:
    if not options.source:
        raise PipelineError(
            f"`python app.py feedback {options.action}` needs a source, such as key:website; "
            "`python app.py feedback sources` lists them."
        )
    return str(options.source)


def known_labels(settings: Settings) -> tuple[str, ...]:
    """Return the labels of the deployed version.

    Raises:
        PipelineError: no version is deployed, or its description cannot be read.
    """
    repository = ModelRepository(settings.model_repository)
    return Bundle.load(repository.version_directory(repository.require_deployed())).labels


def _is_to_label(file: Path) -> bool:
    """Return whether a file has only the columns text and label, as `label --out` writes it for any data files."""
    try:
        with open_labelled(file, ColumnChoice("text", "label")) as opened:
            return {opened.text_column, opened.label_column} == set(filter(str.strip, opened.columns))
    except TableError:
        return False
