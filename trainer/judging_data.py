"""Finds the data by which a classifier that was trained elsewhere is judged. Checks import it, so it needs no torch."""

import os
from collections.abc import Sequence

from common.errors import PipelineError
from common.settings import Settings
from tables.labels import label_form, nearest
from trainer.dataset import Dataset, DatasetError, LabelledTexts, check_data, fingerprint, read_labelled_texts
from trainer.kept_data import kept_data


def judging_data(settings: Settings, source: str, labels: Sequence[str]) -> Dataset:
    """Return the data by which the classifier `source` with these `labels` is judged; its parts may be empty.

    They are those of the data files; without a training file, those of the validation file; without both, the copy of
    the deployed version's data, if the classifier has their labels, in whatever spelling.

    Raises:
        DatasetError: the files cannot be used.
        PipelineError: they have a label that the classifier lacks.
    """
    nothing = LabelledTexts([], [])
    if _is_wanted(settings, "train_data"):
        found = check_data(settings)
        if found.dataset is None:
            raise DatasetError(found.problems)
        _check_labels(settings, source, labels, found.dataset.labels)
        return found.dataset
    if _is_wanted(settings, "val_data"):
        rows = read_labelled_texts(settings.val_data, tuple(labels), settings)
        known = fingerprint(nothing, rows.texts)
        return Dataset(nothing, rows.texts, tuple(labels), known, rows.notes, {"val": rows.counts})
    kept = kept_data(settings)
    if kept is not None and set(map(label_form, kept.labels)) <= set(map(label_form, labels)):
        return kept
    return Dataset(nothing, nothing, tuple(labels), fingerprint(nothing, nothing), [])


def _is_wanted(settings: Settings, name: str) -> bool:
    """Return whether a data file is there, or the settings name it, so that it must be."""
    return name in settings.model_fields_set or os.path.lexists(getattr(settings, name))


def _check_labels(settings: Settings, source: str, labels: Sequence[str], data_labels: Sequence[str]) -> None:
    known = set(map(label_form, labels))
    if unknown := [label for label in data_labels if label_form(label) not in known]:
        raise PipelineError(
            f"{source} has the labels {', '.join(labels)}, and {settings.train_data} has others: "
            f"{', '.join(unknown)}{nearest(unknown[0], labels)}. If they are the same under other names, name one for "
            f"each output, in their order: `--labels {','.join(data_labels)}`. Otherwise set SENTIMENT_TRAIN_DATA and "
            "SENTIMENT_VAL_DATA to data with the classifier's labels, or move the files away."
        )
