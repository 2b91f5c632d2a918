"""The code of a version in MLflow, which `mlflow.pyfunc` runs without this repository: tokenizer and ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from tokenizers import Tokenizer

_TOKENS_PER_RUN = 8_192


class SentimentModel(PythonModel):
    """Classifies texts as the deployed version does: the same graph in float32, the same labels and calibration."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the files of the bundle, which are artifacts of the same names."""
        files = context.artifacts
        facts = json.loads(Path(files["bundle.json"]).read_text(encoding="utf-8"))
        self._labels: list[str] = facts["labels"]
        self._padding: int = facts["padding_token"]
        self._tokenizer = Tokenizer.from_file(files["tokenizer.json"])
        self._tokenizer.encode_special_tokens = True  # `[SEP]` in a text is text
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(facts["max_length"])
        self._session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the column `text`: return `label`, `score`, and a column for each label's probability.

        Raises:
            MlflowException: a row has no text; MLflow's server answers with status 400.
        """
        del context, params
        texts = model_input["text"]
        if faulty := [row for row in texts.items() if not isinstance(row[1], str) or not row[1].strip()]:
            row, found = faulty[0]
            raise MlflowException.invalid_parameter_value(
                f"Column text, row {row!r}: there is no text, but {found!r}. Such rows, {len(faulty):,} of "
                f"{len(texts):,}, cannot be classified. Remove them: "
                'frame = frame[frame["text"].fillna("").str.strip() != ""]'
            )
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        probabilities = np.empty((len(tokens), len(self._labels)), dtype=np.float32)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]), reverse=True)
        while order:
            count = max(1, _TOKENS_PER_RUN // len(tokens[order[0]]))
            run, order = order[:count], order[count:]
            probabilities[run] = self._run([tokens[index] for index in run])
        best = probabilities.argmax(axis=1)
        return pd.DataFrame(
            {f"probability_{label}": probabilities[:, index] for index, label in enumerate(self._labels)}
            | {"label": [self._labels[index] for index in best], "score": probabilities.max(axis=1, initial=0.0)},
            index=model_input.index,
        )[["label", "score", *(f"probability_{label}" for label in self._labels)]]

    def _run(self, tokens: list[list[int]]) -> npt.NDArray[np.float32]:
        """Return the probabilities, FP32 [texts, labels], of texts in a row each."""
        rows, length = len(tokens), len(tokens[0])  # the first is the longest
        lengths = np.array([[len(ids)] for ids in tokens])
        positions = np.tile(np.arange(length, dtype=np.int64), (rows, 1))
        ids = np.full((rows, length), self._padding, dtype=np.int64)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
        (found,) = self._session.run(
            None,
            {
                "input_ids": ids,
                "position_ids": np.where(positions < lengths, positions, 0),
                "segment_ids": (positions < lengths).astype(np.int64),
                "first_tokens": np.arange(rows, dtype=np.int64) * length,
            },
        )
        return np.asarray(found, dtype=np.float32)


set_model(SentimentModel())
