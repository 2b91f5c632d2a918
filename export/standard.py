"""Writes the trained model as a plain ONNX directory, which `optimum` and a `transformers` pipeline load."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import PipelineError
from common.settings import Settings
from export.export import load_trained
from export.graph import GraphError, write_graph
from trainer.record import TrainingRecord

GRAPH = "model.onnx"
"""Name of the graph for which `optimum` looks."""
LARGEST_DIFFERENCE = 0.001
"""Largest accepted difference of a probability from torch's."""
_SENTENCES = ["I love this product!", "This is terrible.", "The battery lasts all day, and the screen is bright."]

log = logging.getLogger(__name__)


class _Classifier(nn.Module):
    """A sequence classifier with calibrated logits, whose inputs are those of its tokenizer, in their order."""

    def __init__(self, model: PreTrainedModel, names: list[str], temperature: float) -> None:
        super().__init__()
        # Any: the modules of transformers are untyped.
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.names = names
        self.temperature = temperature

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits / self.temperature


def export_standard(settings: Settings, directory: Path) -> None:
    """Write the model in the model directory to `directory`: graph, configuration with the labels, and tokenizer.

    The logits are divided by the model's temperature, so that the scores are those that the pipeline serves.

    Raises:
        PipelineError: there is no trained model, `directory` is not empty, or the graph does not agree with torch.
        OSError: the disk refuses it.
    """
    record = TrainingRecord.load(settings.model_dir)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PipelineError(f"{directory} exists already and is not an empty directory. Name another one.")
    model, tokenizer = load_trained(settings.model_dir, record)
    tokenizer.model_max_length = record.max_length
    inputs = dict(tokenizer(_SENTENCES, padding=True, return_tensors="pt"))
    classifier = _Classifier(model, list(inputs), record.temperature)
    part = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    part.mkdir(parents=True)
    try:
        _write(classifier, tokenizer, inputs, part)
        if directory.exists():
            directory.rmdir()
        part.rename(directory)
    except GraphError as error:
        raise PipelineError(f"{error} {record.another}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    log.info("Wrote version %d to %s, for optimum and transformers.", record.version, directory)


def _write(
    classifier: _Classifier, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor], directory: Path
) -> None:
    """Write the files, and compare the graph with torch."""
    config = classifier.model.config
    texts, length = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length")
    shapes = (({0: texts, 1: length},) * len(inputs),)  # of one variadic argument
    write_graph(classifier, inputs, shapes, "logits", directory / GRAPH, config.model_type)
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _name_tokenizer(directory / "tokenizer_config.json", list(inputs))
    session = onnxruntime.InferenceSession(str(directory / GRAPH), providers=["CPUExecutionProvider"])
    for sentence in _SENTENCES:
        one = dict(tokenizer(sentence, return_tensors="pt"))
        with torch.inference_mode():
            wanted = classifier(*one.values()).softmax(dim=-1).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in one.items()})
        difference = float(np.abs(torch.from_numpy(found).softmax(dim=-1).numpy() - wanted).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise GraphError(
                f"Nothing is written, because the graph differs from the model by {difference:.3g} in a probability, "
                f"and at most {LARGEST_DIFFERENCE:g} are allowed."
            )


def _name_tokenizer(path: Path, inputs: list[str]) -> None:
    """Describe the tokenizer so that `transformers` 4, which optimum needs, reads it like 5: from `tokenizer.json`."""
    options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    options |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    if isinstance(options.get("extra_special_tokens"), list):
        options["additional_special_tokens"] = options.pop("extra_special_tokens")
    path.write_text(json.dumps(options, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
