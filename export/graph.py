"""Writes a classifier's ONNX graph: of packed rows where its family allows it, and of padded rows otherwise."""

import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import PipelineError
from common.settings import Settings
from export.packed_graph import PackedClassifier
from trainer.architectures import OTHER_FAMILY, check_architecture, why_unpacked
from trainer.base_model import check_base_model, load_base_model

OPSET = 20
INPUT_NAMES = ["input_ids", "position_ids", "segment_ids", "first_tokens"]
OUTPUT_NAME = "probabilities"

log = logging.getLogger(__name__)


class GraphError(PipelineError):
    """There is no graph that agrees with the model. The message lacks the fix, which depends on the model's origin."""


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
        PipelineError: the model has a decoder.
        GraphError: the model cannot be exported.
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


def check_exportable(settings: Settings) -> None:
    """Try to write the graph of the base model before its training, which can take hours; without one it cannot serve.

    Families that can be packed are tested, so they are left out.

    Raises:
        PipelineError: the base model cannot be loaded or exported.
    """
    config = check_base_model(settings)
    if config is None or not why_unpacked(config.to_dict()):
        return
    log.info("Testing before the training whether %s can be written as an ONNX graph.", settings.base_model)
    model = load_base_model(settings, ("Negative", "Positive")).model
    try:
        with TemporaryDirectory() as directory:
            export_graph(model, 1.0, Path(directory) / "model.onnx")
    except GraphError as error:
        raise PipelineError(
            f"The base model {settings.base_model!r} (SENTIMENT_BASE_MODEL) cannot be served, so it is not trained. "
            f"{error} Choose an encoder {OTHER_FAMILY}."
        ) from error


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
        GraphError: the model cannot be exported.
    """
    # They warn about missing torchvision, which is not needed, and about what they do not optimise.
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # On standard error, torch.export prints the whole graph of a model that it cannot export.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
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
        reason: BaseException = error
        while reason.__cause__ is not None:  # the exporter's own errors only name its step
            reason = reason.__cause__
        first = str(reason).strip().partition("\n")[0].rstrip(". ")
        raise GraphError(f"A model of the family {family!r} cannot be written as an ONNX graph: {first}.") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None  # None only without dynamo
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
