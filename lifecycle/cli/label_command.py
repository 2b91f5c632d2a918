"""The command `label`: a person labels random live texts in the terminal, or takes them along as a file."""

import argparse
import os
import sys
import termios
import textwrap
import tty
from collections.abc import Sequence
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from common.source_names import is_trusted, of_console
from lifecycle.cli.feedback_commands import known_labels
from lifecycle.cli.printing import print_json
from lifecycle.monitoring.labelling import LEAST_TEXTS, MOST_AT_ONCE, begin, conclude, texts_to_label
from serving.model_repo.texts import FORMULA_STARTS
from storage import label_draws
from storage.database import Database
from storage.feedback import LabelledText, add_feedback, text_hash
from storage.feedback_sources import FullError, Quota, QuotaError
from tables.csv_writing import csv_header, csv_lines

_SOURCE = of_console("command")
_SKIP, _QUIT = "s", "q"
_INTERRUPT, _END = "\x03", "\x04"
"""What Ctrl-C and Ctrl-D send to a program that reads single keys."""
_WIDTH = 100


def label(settings: Settings, options: argparse.Namespace) -> None:
    """Ask for labels, a key each, until they decide; or write the texts as JSON or to a CSV file."""
    if not 1 <= options.limit <= MOST_AT_ONCE:
        raise PipelineError(f"--limit is {options.limit}; choose 1 to {MOST_AT_ONCE}.")
    labels = known_labels(settings)
    database = Database(settings.database)
    if options.new:
        begin(settings, database)
    if not (options.json or options.out):
        _ask(settings, database, labels)
        return
    batch = texts_to_label(settings, database, _SOURCE, options.limit)
    if options.json:
        print_json(batch.figures())
    elif not batch.texts:
        print(_nothing_left(batch.standing))
    else:
        os.umask(options.umask)  # the file is the user's
        _write_to_label(options.out, batch.texts)
        print(
            f"Wrote {len(batch.texts):,} texts to {options.out}. Fill in the labels, then run "
            f"`python app.py feedback {options.out}`."
        )


def _ask(settings: Settings, database: Database, labels: Sequence[str]) -> None:
    if not is_trusted(_SOURCE, settings.trusted_sources):
        raise PipelineError(f"Labels of {_SOURCE} would not count. Add it to SENTIMENT_TRUSTED_SOURCES.")
    keys = {str(number): name for number, name in enumerate(labels, start=1)}
    choices = [*(f"{key} {name}" for key, name in keys.items()), f"{_SKIP} skip", f"{_QUIT} quit"]
    print("Predictions are hidden, because people who see them agree with them too often.")
    while True:
        batch = texts_to_label(settings, database, _SOURCE, 1)
        if not batch.texts:
            print(_nothing_left(batch.standing))
            return
        (text,) = batch.texts
        print(f"\n{textwrap.fill(_printable(text), _WIDTH)}\n[{', '.join(choices)}] ", end="", flush=True)
        key = _read_key(single=len(labels) < 10)
        while key not in (*keys, _SKIP, _QUIT):
            print(f"\nPress one of {', '.join((*keys, _SKIP, _QUIT))}: ", end="", flush=True)
            key = _read_key(single=len(labels) < 10)
        print(keys.get(key, "skipped" if key == _SKIP else ""))
        if key == _QUIT:
            return
        if key == _SKIP:
            label_draws.skip(database, text_hash(text))
        else:
            _keep(settings, database, LabelledText(text, keys[key]))
        print(f"{conclude(settings, database)}.")


def _keep(settings: Settings, database: Database, row: LabelledText) -> None:
    try:
        add_feedback(database, [row], _SOURCE, quota=Quota.from_settings(settings))
    except (FullError, QuotaError) as error:
        raise PipelineError(str(error)) from error


def _read_key(single: bool) -> str:
    """Read a key of the terminal without Enter, or a line from anything else; the end of input quits."""
    if not (single and sys.stdin.isatty()):
        line = sys.stdin.readline()
        return line.strip().lower() if line else _QUIT
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        key = os.read(sys.stdin.fileno(), 1).decode(errors="replace").lower()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return _QUIT if key in ("", _INTERRUPT, _END) else key


def _printable(text: str) -> str:
    """Return a text without control characters, with which strangers could write over the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _nothing_left(standing: object) -> str:
    if standing is None:
        return (
            f"There are too few live texts of the deployed version in the sample: {LEAST_TEXTS} are needed. "
            "SENTIMENT_SAMPLE_PER_MINUTE and SENTIMENT_SAMPLE_TEXTS turn the sample on."
        )
    return f"No text is waiting for a label. Accuracy on live texts: {standing}."


def _write_to_label(path: Path, texts: Sequence[str]) -> None:
    """Write a file that can be imported as feedback once a person has filled in the labels."""
    if path.exists():
        raise PipelineError(f"{path} already exists, and may contain labels. Choose another file name.")
    # Strangers wrote the texts. After a space, which the import strips, no spreadsheet reads one as a formula.
    rows = [(f" {text}" if text.startswith(FORMULA_STARTS) else text, None) for text in texts]
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the BOM tells spreadsheets that it is UTF-8
        file.write(csv_header(["text", "label"]))
        file.writelines(csv_lines(rows))
