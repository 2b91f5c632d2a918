"""Reads and checks the training and validation files. Rows that cannot be used are rejected; the rest is the data."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import PipelineError
from common.label_names import parse_label_names
from common.once import log_once
from common.settings import Settings
from common.wording import counted
from serving.model_repo.bundle import RowCounts
from tables.labelled import LabelledRow
from tables.labels import Labels, nearest, shown
from trainer.classes import HELD_OUT_ROWS, MAX_LABELS, MIN_TRAIN_ROWS, leave_out_small_classes
from trainer.file_changes import read_unchanged
from trainer.held_out import held_out
from trainer.rejected import DATA_LIST, FEEDBACK_LIST, RejectedRows, list_path, rejected_rows
from trainer.rows import MISSING_LABEL, UNKNOWN_LABEL, FileRows
from trainer.sample_data import is_sample

_TOLD_LABELS = 5
_HELD_OUT = "There is no validation file"
"""Beginning of a note about what is usual."""

log = logging.getLogger(__name__)


class DatasetError(PipelineError):
    """The data files cannot be used for training; `problems` has one line per reason."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems and list them in the message."""
        super().__init__("The data files have problems:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels, two lists of the same length in the order of the file."""

    texts: list[str]
    labels: list[str]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Return each text with its label."""
        return zip(self.texts, self.labels, strict=True)

    def at(self, places: Iterable[int]) -> "LabelledTexts":
        """Return the texts at some places, in the order of the places."""
        chosen = list(places)
        return LabelledTexts([self.texts[place] for place in chosen], [self.labels[place] for place in chosen])


@dataclass(frozen=True)
class Dataset:
    """Checked data: no text occurs twice, and both parts have the same labels."""

    train: LabelledTexts
    val: LabelledTexts
    labels: tuple[str, ...]
    """All labels, sorted."""
    fingerprint: str
    """SHA-256 of both parts, independent of the order of rows and the format of the files."""
    notes: list[str]
    """What was assumed, unified, left out and rejected, in words."""
    counts: dict[str, RowCounts] = field(default_factory=dict)
    """Rows of the files `train` and `val`; without a validation file, the texts `held_out` of `train`."""
    is_held_out: bool = False
    """True if there is no validation file: `val` is then a part of the training file."""

    def log_notes(self) -> None:
        """Log each note once, as a warning; what is usual, as information."""
        for note in self.notes:
            log_once(log, logging.INFO if note.startswith(_HELD_OUT) else logging.WARNING, f"{note}.")


@dataclass(frozen=True)
class FileFacts:
    """What was found in one data file."""

    path: Path
    counts: RowCounts
    labels: dict[str, int]
    """Number of texts by label: in the training file without the texts that are used for validation."""
    encoding: str
    delimiter: str


@dataclass(frozen=True)
class DataCheck:
    """The result of reading the data files, whether they can be used or not."""

    train: FileFacts
    val: FileFacts
    is_held_out: bool
    """True if there is no validation file: `val` is then a part of the training file."""
    overlap: int
    """Number of training texts that are also in the validation file, and were removed from training."""
    notes: list[str]
    problems: list[str]
    rejected_list: Path
    dataset: Dataset | None
    """The data; None if there are problems."""


def load_dataset(settings: Settings, write_list: bool = True) -> Dataset:
    """Read and check the data files of the settings, and list the rejected rows in the state directory.

    With `write_list` false, the list stays as it is.

    Raises:
        DatasetError: the data cannot be used. It lists the problems of both files.
        PipelineError: the list of rejected rows cannot be written.
    """
    found = check_data(settings, write_list)
    if found.dataset is None:
        raise DatasetError(found.problems)
    return found.dataset


def check_data(settings: Settings, write_list: bool = True) -> DataCheck:
    """Read the data files of the settings, and return what was found, including all problems.

    Rows are rejected that have a fault, that contradict others, or whose label has too few texts. A text that repeats
    another with the same label is used once. A training text that is also a validation text is removed from training,
    or it would inflate the validation results. If `SENTIMENT_VAL_DATA` is unset and the file is absent, a tenth of the
    training file is held out. A file that changes while it is read is read again; if it always does, it is a problem.

    Raises:
        PipelineError: the list of rejected rows cannot be written.
    """
    path = list_path(settings, DATA_LIST)

    def read() -> DataCheck:
        with rejected_rows(path if write_list else None) as rejected:
            return _check(settings, rejected, path)

    found, changing = read_unchanged((settings.train_data, settings.val_data), read)
    if not changing:
        return found
    told = "was changed each time while it was read. Write it under another name, and rename it when it is complete"
    return replace(found, problems=[f"{file} {told}" for file in changing], dataset=None)


@dataclass(frozen=True)
class ImportedTexts:
    """The usable rows of a file of feedback."""

    texts: LabelledTexts
    counts: RowCounts
    rejected_list: Path
    """The CSV file that lists the rejected rows."""
    notes: list[str]
    """What was assumed, unified and rejected, in words."""


def read_labelled_texts(path: Path, labels: tuple[str, ...], settings: Settings) -> ImportedTexts:
    """Read one file by the rules of the data files; a label that is not among `labels` is a reason to reject a row.

    A row without a label is rejected, but does not count as a fault of the file: in a list of texts to label, people
    leave rows open.

    Raises:
        DatasetError: the file cannot be read, or too many rows are rejected.
        PipelineError: the list of rejected rows cannot be written.
    """
    numbers = Labels(parse_label_names(settings.label_names), known=labels)
    known = frozenset(labels)
    unknown: Counter[str] = Counter()

    def fault(row: LabelledRow) -> str:
        if numbers.known(row.label) in known:
            return ""
        unknown[row.label] += 1
        return f"{UNKNOWN_LABEL}: {shown(row.label)} is not among the model's labels{nearest(row.label, labels)}"

    target = list_path(settings, FEEDBACK_LIST)
    with rejected_rows(target) as rejected:
        file = FileRows(path, numbers, rejected)
        file.read(settings, fault)
    told = [_told_label(path, label, rows, labels) for label, rows in unknown.most_common(_TOLD_LABELS)]
    if problem := file.problem or _too_many_rejected(settings, file, target, besides=MISSING_LABEL):
        raise DatasetError([problem, *told])
    notes = [*file.notes, *numbers.notes(file.by_label()), *_rejections(file, target), *told]
    return ImportedTexts(_labelled_texts(file.texts, file, numbers), file.counts(), target, notes)


def _told_label(path: Path, label: str, rows: int, labels: Sequence[str]) -> str:
    """Return what is wrong with a label of feedback; without a similar one, name the labels of the model."""
    hint = nearest(label, labels) or f", which are {', '.join(map(shown, labels[:_TOLD_LABELS]))}"
    return f"{path}: {shown(label)} ({counted(rows, 'row')}) is not among the model's labels{hint}"


def _check(settings: Settings, rejected: RejectedRows, path: Path) -> DataCheck:
    numbers = Labels(parse_label_names(settings.label_names))
    train = FileRows(settings.train_data, numbers, rejected)
    val = FileRows(settings.val_data, numbers, rejected)
    # A validation file that the settings name must be there: a misspelt path must not hold other texts out.
    is_held_out = "val_data" not in settings.model_fields_set and not os.path.lexists(settings.val_data)
    files = [train] if is_held_out else [train, val]
    if os.path.realpath(train.path) == os.path.realpath(val.path):  # `resolve` fails on circular links
        train.problem = (
            f"{train.path} is both the training and the validation file. Name another file in SENTIMENT_VAL_DATA, or "
            "unset it and remove that file: then a tenth of the training file is held out"
        )
    elif not is_held_out and is_sample(val.path) and not is_sample(train.path):
        val.problem = (
            f"{val.path} is the validation file of the sample data, but {train.path} contains other texts. Delete it, "
            "and a tenth of your texts is held out, or put your own in its place"
        )
    else:
        for file in files:
            file.read(settings)
    notes = [note for file in files for note in file.notes]
    overlap = _remove_overlap(train, val, notes)
    problems = [problem for file in files if (problem := file.problem or _too_many_rejected(settings, file, path))]
    if len(numbers) > MAX_LABELS and not any(file.problem for file in files):
        paths = " and ".join(str(file.path) for file in files)
        problems = [
            f"{paths}: {len(numbers):,} different labels. Does the label column contain texts? "
            "Set SENTIMENT_LABEL_COLUMN to another column."
        ]
    if not problems:
        problems = leave_out_small_classes(train, None if is_held_out else val, numbers, notes)
        problems += [problem for file in files if (problem := _too_many_rejected(settings, file, path))]
    source = train if is_held_out else val
    val_texts = val.texts
    if is_held_out and not problems:
        val_texts = _hold_out(train)
        notes.append(
            f"{_HELD_OUT} ({val.path}): held out {counted(len(val_texts), 'text')} of {train.path}, "
            f"about a tenth of each label and at least {HELD_OUT_ROWS} if there are enough, chosen by the text's hash"
        )
    learned, judged = _labelled_texts(train.texts, train, numbers), _labelled_texts(val_texts, source, numbers)
    used = {*learned.labels, *judged.labels}
    found = [number for number in range(len(numbers)) if numbers.name(number) in used]
    notes += numbers.notes(found)
    if problems:
        # Codes in one file and names in the other are a usual reason, so each file is looked at by itself too.
        proposals = map(numbers.proposal, (found, train.by_label(), val.by_label()))
        problems += dict.fromkeys(filter(None, proposals))
    notes += [note for file in files for note in _rejections(file, path)]
    learned_rows = train.counts()
    judged_rows = RowCounts(len(val_texts), len(val_texts), 0, {}) if is_held_out else val.counts()
    counts = {"train": learned_rows, "held_out" if is_held_out else "val": judged_rows}
    dataset = None
    if not problems:
        labels = tuple(sorted(set(judged.labels)))
        dataset = Dataset(learned, judged, labels, fingerprint(learned, judged), notes, counts, is_held_out)
    return DataCheck(
        FileFacts(train.path, learned_rows, _by_label(learned), train.encoding, train.delimiter),
        FileFacts(source.path, judged_rows, _by_label(judged), source.encoding, source.delimiter),
        is_held_out,
        overlap,
        notes,
        problems,
        path,
        dataset,
    )


def _hold_out(train: FileRows) -> dict[str, int]:
    """Remove the texts that are held out from the training file; return them, each with its index there."""
    chosen = held_out(train.texts, train.labels, HELD_OUT_ROWS, MIN_TRAIN_ROWS)
    return {text: train.texts.pop(text) for text in [text for text in train.texts if text in chosen]}


def _remove_overlap(train: FileRows, val: FileRows, notes: list[str]) -> int:
    """Remove texts of the validation file from the training file; return their number."""
    shared = [text for text in train.texts if text in val.texts]
    if shared:
        place = f"{train.place(shared[0])} is {val.place(shared[0])} there"
        notes.append(
            f"{train.path}: removed {counted(len(shared), 'text')} from training, because the text is also in "
            f"{val.path} (first: {place})"
        )
    for text in shared:
        del train.texts[text]
    return len(shared)


def _too_many_rejected(settings: Settings, file: FileRows, path: Path, besides: str = "") -> str:
    """Return the problem that a file has too many rejected rows, besides those for one reason; empty if it has not."""
    counts = file.counts()
    rejected = sum(counts.rejected.values()) - counts.rejected.get(besides, 0)
    rows = counts.rows - counts.rejected.get(besides, 0)
    if rejected <= settings.max_rejected * rows:
        return ""
    return (
        f"{file.path}: {rejected:,} of {counted(rows, 'row')} cannot be used ({_reasons(counts)}), more than the "
        f"share SENTIMENT_MAX_REJECTED={settings.max_rejected:g} allows. {path} lists them. Repair the rows, or raise "
        "SENTIMENT_MAX_REJECTED."
    )


def _rejections(file: FileRows, path: Path) -> list[str]:
    counts = file.counts()
    notes = []
    if counts.repetitions:
        notes.append(
            f"{file.path}: left out {counted(counts.repetitions, 'row')} with the text and label of another row"
        )
    if counts.rejected:
        rejected = f"{sum(counts.rejected.values()):,} of {counted(counts.rows, 'row')}"
        notes.append(f"{file.path}: rejected {rejected} ({_reasons(counts)}). {path} lists them")
    return notes


def _reasons(counts: RowCounts) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in counts.rejected.items())


def _labelled_texts(texts: dict[str, int], file: FileRows, numbers: Labels) -> LabelledTexts:
    names = [numbers.name(number) for number in range(len(numbers))]
    return LabelledTexts(list(texts), [names[file.labels[index]] for index in texts.values()])


def _by_label(texts: LabelledTexts) -> dict[str, int]:
    return dict(sorted(Counter(texts.labels).items()))


def fingerprint(*parts: LabelledTexts) -> str:
    """SHA-256 of labelled texts, part by part, independent of the order within a part."""
    digest = hashlib.sha256()
    for part in parts:
        # Texts contain no NUL, so different rows differ here. Sorted digests need less memory than sorted texts.
        digests = sorted(
            hashlib.sha256(f"{label}\0{text}".encode()).digest()
            for text, label in zip(part.texts, part.labels, strict=True)
        )
        digest.update(hashlib.sha256(b"".join(digests)).digest())
    return digest.hexdigest()
