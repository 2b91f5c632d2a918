"""Writes a classifier's ONNX graph: of packed rows where its family allows it, and of padded rows otherwise."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import PipelineError
from export.packed_graph import PackedClassifier
from trainer.architectures import check_architecture, why_unpacked

OPSET = 20
INPUT_NAMES = ["input_ids", "position_ids", "segment_ids", "first_tokens"]
OUTPUT_NAME = "probabilities"


class PaddedClassifier(nn.Module):
    """A sequence classifier of any family, which reads one text per row, from inputs like those of packed rows."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        """Wrap `model`; its logits are divided by `temperature` before the softmax."""
        super().__init__()
        # Any: the modules of transformers are untyped.
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.temperature = temperature

    def forward(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, first_tokens: Tensor) -> Tensor:
        """Return the probabilities, FP32 [texts, labels].

        Args:
            input_ids: INT64 [rows, length], one text, then padding.
            position_ids: INT64 [rows, length], not used.
            segment_ids: INT64 [rows, length], 0 for padding.
            first_tokens: INT64 [texts], the first tokens of the wanted rows, as indices into rows * length.
        """
        del position_ids  # the model finds them itself
        logits = self.model(input_ids=input_ids, attention_mask=(segment_ids != 0).long()).logits
        probabilities: Tensor = torch.softmax(logits / self.temperature, dim=-1)
        return probabilities[first_tokens // input_ids.shape[1]]


def export_graph(model: PreTrainedModel, temperature: float, path: Path) -> None:
    """Write `model` to one self-contained ONNX file, and check the file with `onnx`.

    Raises:
        PipelineError: the model cannot be exported.
    """
    config = model.config.to_dict()
    check_architecture(config)
    is_packed = not why_unpacked(config)
    classifier = PackedClassifier(model, temperature) if is_packed else PaddedClassifier(model, temperature)
    rows, length, texts = torch.export.Dim("rows"), torch.export.Dim("length"), torch.export.Dim("texts")
    # Three tensors, because torch.export treats one tensor that is passed twice as one input.
    tokens = [torch.zeros((3, 32), dtype=torch.long) for _ in range(3)]
    write_graph(
        classifier,
        dict(zip(INPUT_NAMES, (*tokens, torch.arange(5)), strict=True)),
        [{0: rows, 1: length}] * 3 + [{0: texts}],
        OUTPUT_NAME,
        path,
        config["model_type"],
    )


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_shapes: Any,
    output: str,
    path: Path,
    family: str,
) -> None:
    """Write `module` with example `inputs`, in their order, to an ONNX file; `family` names its encoder in errors.

    `dynamic_shapes` has for each input the dimensions that vary.

    Raises:
        PipelineError: the model cannot be exported.
    """
    # They warn about missing torchvision, which is not needed, and about what they do not optimise.
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.export itself
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise PipelineError(
            f"A model of the family {family!r} cannot be written as an ONNX graph: "
            f"{str(error).strip().partition(chr(10))[0]} Set SENTIMENT_BASE_MODEL to another encoder and train again."
        ) from error
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    assert program is not None  # None only without dynamo
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
