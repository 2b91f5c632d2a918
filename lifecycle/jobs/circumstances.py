"""What decides about a retraining besides feedback: settings and data files. If they change, it may be tried again."""

import hashlib
import json
from pathlib import Path

from common.settings import Settings
from storage.tables import Figures, Job

CIRCUMSTANCES = "circumstances"
"""Key in the result of a retraining."""
_SETTINGS = {
    *("base_model", "max_length", "epochs", "batch_size", "learning_rate", "seed", "runtime", "precision"),
    *("text_column", "label_column", "label_names", "max_rejected", "train_data", "val_data"),
    *("min_accuracy", "min_macro_f1", "min_feedback", "feedback_window_days", "trusted_sources", "max_source_share"),
}


def circumstances(settings: Settings) -> Figures:
    """Return a hash of the settings, and one of the size and time of the data files."""
    chosen = settings.model_dump(mode="json", include=_SETTINGS)
    return {"settings": _hash(chosen), "files": _hash([_state(settings.train_data), _state(settings.val_data)])}


def other_settings(settings: Settings, job: Job) -> bool:
    """Return whether a retraining that has ended is known to have had other settings."""
    then = job.result.get(CIRCUMSTANCES)
    return then is not None and then["settings"] != circumstances(settings)["settings"]


def other_circumstances(settings: Settings, job: Job) -> bool:
    """Return whether a retraining that has ended is known to have had other settings, or other data files."""
    then = job.result.get(CIRCUMSTANCES)
    return then is not None and then != circumstances(settings)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
