"""A carefully tuned alternative server: LitServe with padded batches of 32 and the model in OpenVINO.

Usage: `litserve_server.py MODEL PORT CORES PRECISION`. The tuning: a precision (`bf16` if the processor supports it,
else `f32`), one worker with one unpinned thread per core, and at most 5 ms to fill a batch.
"""

import sys
from typing import Any

import litserve
import numpy as np
import openvino
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.005


class Sentiment(litserve.LitAPI):  # type: ignore[misc]
    """Classifies texts in batches, each padded to its longest text."""

    def __init__(self, model: str, precision: str) -> None:
        """Serve the model in the directory `model` with the OpenVINO precision `precision`."""
        super().__init__(max_batch_size=BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/predict/live")
        self._directory = model
        self._precision = precision

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model; LitServe calls this in each worker."""
        model = AutoModelForSequenceClassification.from_pretrained(self._directory)
        self._labels = model.config.id2label
        self._tokenizer = Tokenizer.from_file(f"{self._directory}/tokenizer.json")
        self._tokenizer.enable_padding(pad_id=model.config.pad_token_id)
        self._tokenizer.enable_truncation(model.config.max_position_embeddings)
        tokens = torch.ones((2, 8), dtype=torch.long)
        inputs = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": tokens * 0}
        graph = openvino.convert_model(model, example_input=inputs)
        options = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        self._request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def decode_request(self, request: dict[str, str]) -> str:
        """Return the text of a request."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[Any]:
        """Tokenize the texts of a batch."""
        return list(self._tokenizer.encode_batch_fast(inputs))

    def predict(self, x: list[Any]) -> np.ndarray[Any, Any]:
        """Return the probabilities, [texts, labels]."""
        input_ids = np.array([encoding.ids for encoding in x])
        attention_mask = np.array([encoding.attention_mask for encoding in x])
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": np.zeros_like(input_ids)}
        logits = np.array(self._request.infer(feed)[0])
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def unbatch(self, output: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Split the probabilities into one row per text."""
        return list(output)

    def encode_response(self, output: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Return the body of the response."""
        best = int(output.argmax())
        return {"predictions": {"label": {"0": self._labels[best]}, "score": {"0": round(float(output[best]), 4)}}}


if __name__ == "__main__":
    model, port, cores, precision = sys.argv[1:]
    server = litserve.LitServer(Sentiment(model, precision), accelerator="cpu", workers_per_device=int(cores))
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
