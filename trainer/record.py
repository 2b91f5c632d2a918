"""`training.json`: what is known of the model in `./model`, kept beside its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import PipelineError

FILE_NAME = "training.json"


@dataclass(frozen=True)
class TrainingRecord:
    """How a model came to be; what the export needs beside the weights and the tokenizer."""

    version: int
    """MLflow's version of the registered model; Triton's version too."""
    run_id: str
    """MLflow's run."""
    base_model: str
    labels: tuple[str, ...]
    max_length: int
    """In tokens."""
    temperature: float
    """Divides the logits, so that scores are calibrated."""
    data_fingerprint: str
    metrics: dict[str, float]

    def save(self, model_dir: Path) -> None:
        """Write it beside the weights in `model_dir`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (model_dir / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, model_dir: Path) -> "TrainingRecord":
        """Read it from `model_dir`.

        Raises:
            PipelineError: there is no trained model, or its record is damaged.
        """
        path = model_dir / FILE_NAME
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "labels": tuple(fields["labels"])})
        except FileNotFoundError as error:
            raise PipelineError(f"{model_dir} holds no trained model; run `python app.py train` first.") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PipelineError(f"{path} is damaged ({error}); run `python app.py train` again.") from error
