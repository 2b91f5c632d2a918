"""`training.json`: facts about the model in `./model`, stored beside its weights."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from common.stored_json import read_object
from serving.model_repo.bundle import RowCounts
from trainer.architectures import OTHER_FAMILY

FILE_NAME = "training.json"


@dataclass(frozen=True)
class TrainingRecord:
    """How a model was trained. The export needs it besides the weights and the tokenizer."""

    version: int
    """Version of the registered model in MLflow, and in Triton."""
    run_id: str
    """Id of the MLflow run."""
    base_model: str
    labels: tuple[str, ...]
    max_length: int
    """Maximum tokens per text."""
    temperature: float
    """The logits are divided by it to calibrate the scores."""
    data_fingerprint: str
    metrics: dict[str, float]
    training_key: str = ""
    """`training_key` of the data and settings; empty in a record of an older release."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Metrics of the baseline on the validation texts; empty in a record of an older release."""
    data: dict[str, RowCounts] = field(default_factory=dict)
    """Rows of the files `train` and `val`. Records of older releases do not have this field."""
    quick: bool = False
    """True for a quick first version (`first_version`), which the full training is to replace."""
    imported: bool = False
    """True for a classifier that was fine-tuned elsewhere."""
    updates: int = 0
    """Updates since the last full training (`trainer.update`); 0 if this is one."""

    @property
    def again(self) -> str:
        """Say how this model is made again, as a sentence."""
        return f"Import it again: `python app.py import {self.base_model}`." if self.imported else "Train again."

    @property
    def another(self) -> str:
        """Say how a model that can be served is made in place of this one, as a sentence."""
        if self.imported:
            return f"Import a classifier {OTHER_FAMILY}."
        return "Set SENTIMENT_BASE_MODEL to another encoder and train again."

    def is_of(self, settings: Settings, fingerprint: str, *, quick: bool = False) -> bool:
        """Return whether a training on the data with this fingerprint, with these settings, would repeat this one."""
        keys = ("", training_key(settings, fingerprint, quick=quick))
        return self.quick == quick and self.data_fingerprint == fingerprint and self.training_key in keys

    def save(self, model_dir: Path) -> None:
        """Write the record to `model_dir`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (model_dir / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, model_dir: Path) -> "TrainingRecord":
        """Read the record from `model_dir`, which another release may have written.

        Raises:
            PipelineError: there is no trained model, or its record is damaged.
        """
        path = model_dir / FILE_NAME
        try:
            return read_object(cls, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise PipelineError(f"{model_dir} contains no trained model. Run `python app.py train` first.") from error
        except (ValueError, RecursionError) as error:
            raise PipelineError(f"{path} is damaged ({error}). Run `python app.py train` again.") from error


def training_key(settings: Settings, fingerprint: str, *, quick: bool = False) -> str:
    """Return a hash of the data and settings of a training. The same key would produce the same model."""
    how = settings.model_dump(
        mode="json", include={"base_model", "max_length", "epochs", "batch_size", "learning_rate", "seed"}
    )
    if quick:
        how["quick"] = True
    return hashlib.sha256(json.dumps([fingerprint, how], sort_keys=True).encode()).hexdigest()
