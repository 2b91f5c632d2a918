"""Triton's entry into the backend: reads requests, asks the engine once, writes responses."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.engine import Engine, Probabilities
from serving.processor import usable_cores
from serving.runtime import choose_runtime


class TritonPythonModel:
    """One instance of one version of the model, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version and run every shape once; the version is ready when this returns."""
        config = json.loads(args["model_config"])
        instances = sum(group["count"] for group in config["instance_group"])
        self._engine = Engine(
            Path(args["model_repository"]) / args["model_version"],
            choose_runtime(os.environ.get("SENTIMENT_RUNTIME", "auto")),
            threads=max(1, usable_cores() // instances),
        )
        self._engine.warm_up()
        self._labels = np.array([label.encode() for label in self._engine.bundle.labels], dtype=object)
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']} version {args['model_version']}: "
            f"{self._engine.runtime.name}, {self._engine.runtime.precision}"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Classify the texts of all requests together; a bad text fails its own request alone."""
        texts: list[str] = []
        # Each request's own part of `texts`, or what is wrong with it.
        parts: list[slice | str] = []
        for request in requests:
            items = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()
            try:
                decoded = [_decode(position, item) for position, item in enumerate(items)]
            except ValueError as error:
                parts.append(str(error))
            else:
                parts.append(slice(len(texts), len(texts) + len(decoded)))
                texts.extend(decoded)
        answer = self._engine.classify(texts)
        return [self._refusal(part) if isinstance(part, str) else self._response(answer, part) for part in parts]

    def _response(self, answer: Probabilities, part: slice) -> Any:
        probabilities = answer.values[part]
        best = probabilities.argmax(axis=1)[:, None]
        outputs = [
            pb_utils.Tensor("LABEL", self._labels[best]),
            pb_utils.Tensor("SCORE", np.take_along_axis(probabilities, best, axis=1)),
            pb_utils.Tensor("PROBABILITIES", probabilities),
            pb_utils.Tensor("TRUNCATED", answer.truncated[part][:, None]),
        ]
        return pb_utils.InferenceResponse(outputs)

    @staticmethod
    def _refusal(reason: str) -> Any:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG))


def _decode(position: int, item: bytes) -> str:
    try:
        text = item.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"TEXT[{position}] is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise ValueError(f"TEXT[{position}] is empty; a text needs at least one character that is not a blank")
    return text
