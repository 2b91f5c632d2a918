"""Leaves labels out that have too few texts to be learned or judged."""

from common.wording import counted
from tables.labels import Labels, nearest, shown
from trainer.rows import SMALL_CLASS, FileRows

MIN_TRAIN_ROWS = 7
"""Minimum training texts per label. A smaller class is memorised, not learned: few batches of 32 contain any of it."""

MIN_VAL_ROWS = 3
"""Minimum validation texts per label. With fewer, one text changes the label's recall by half."""

HELD_OUT_ROWS = 5
"""Minimum texts per label that are held out for validation if the training file has enough."""

_TOLD_LABELS = 10
MAX_LABELS = 1000
"""Maximum number of labels. A file with more has texts in its label column."""


def leave_out_small_classes(train: FileRows, val: FileRows | None, numbers: Labels, notes: list[str]) -> list[str]:
    """Reject the rows of each label that has too few texts in a file, and add a note for it; return problems instead.

    Without a validation file, a label needs the training and the validation texts in the training file.

    Returns:
        the problem that only one label would be left, if so. Then no row is rejected.
    """
    learned, judged = train.by_label(), val.by_label() if val else {}
    found = sorted({*learned, *judged}, key=numbers.name)
    places = f"{train.path}" + (f" and {val.path}" if val else "")
    if val:
        needed = f"at least {MIN_TRAIN_ROWS} texts in {train.path} and {MIN_VAL_ROWS} in {val.path}"
        large = [n for n in found if learned.get(n, 0) >= MIN_TRAIN_ROWS and judged.get(n, 0) >= MIN_VAL_ROWS]
    else:
        needed = f"at least {MIN_TRAIN_ROWS + MIN_VAL_ROWS} texts, {MIN_VAL_ROWS} of them for validation"
        large = [n for n in found if learned[n] >= MIN_TRAIN_ROWS + MIN_VAL_ROWS]
    sizes = {
        number: f"{shown(numbers.name(number))} has {counted(learned.get(number, 0), 'text')}"
        + (f" in {train.path} and {judged.get(number, 0):,} in {val.path}" if val else f" in {train.path}")
        for number in found
    }
    if len(large) < 2:
        told = "; ".join(list(sizes.values())[:_TOLD_LABELS]) or "there is none"
        if len(sizes) > _TOLD_LABELS:
            told += f"; and {len(sizes) - _TOLD_LABELS:,} more. Does the label column contain texts?"
            told += " Set SENTIMENT_LABEL_COLUMN to another column"
        return [f"{places}: two labels are needed, each with {needed}. {told}"]
    names = [numbers.name(number) for number in large]
    for number in sorted(set(found) - set(large)):
        hint = nearest(numbers.name(number), names) if val and not (number in learned and number in judged) else ""
        notes.append(f"The label {sizes[number]}, and is left out: a label needs {needed}{hint}")
        for file in (train, val):
            if file is not None:
                for text in [text for text, index in file.texts.items() if file.labels[index] == number]:
                    file.reject_text(text, f"{SMALL_CLASS}: {sizes[number]}")
    return []
