"""Makes the packed ONNX graph: several texts share a row without attending to each other.

Packing without cross-contamination: Krell et al., "Efficient Sequence Packing without
Cross-contamination", 2021 (arXiv:2107.02027). The graph makes the attention mask from segment
ids, and positions restart with each text. The head reads only each text's first token. So the last
layer computes everything after its attention only for first tokens. For texts of 26 tokens this
saves three quarters of a layer's work.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.architectures import check_architecture

OPSET = 20
INPUT_NAMES = ["input_ids", "position_ids", "segment_ids", "first_tokens"]
OUTPUT_NAME = "probabilities"

# Added to a score before softmax. e^-10000 is 0 in every precision, and fp16 can represent -10000.
_MASKED = -10_000.0


class PackedClassifier(nn.Module):
    """A sequence classifier from `transformers` that reads packed rows."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        """Wrap `model`; its logits are divided by `temperature` before the softmax."""
        super().__init__()
        check_architecture(model.config.model_type)
        # Any: the modules of transformers are untyped.
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.temperature = temperature
        # RoBERTa's positions start after its padding index.
        self.first_position = model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0

    def forward(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, first_tokens: Tensor) -> Tensor:
        """Return the probabilities, FP32 [texts, labels].

        Args:
            input_ids: INT64 [rows, length], texts one after the other, padding after the last.
            position_ids: INT64 [rows, length], from 0 in each text.
            segment_ids: INT64 [rows, length], the same number for the tokens of one text, another
                for its neighbours in the row, 0 for padding.
            first_tokens: INT64 [texts], where each text begins, as an index into rows * length.
        """
        # Padding attends to padding, so no softmax row is empty.
        same_text = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        token_types = (
            {} if self.model.config.model_type == "distilbert" else {"token_type_ids": torch.zeros_like(input_ids)}
        )
        with _given_only(first_tokens, self._after_last_attention()):
            (first_hidden,) = self.model.base_model(
                input_ids=input_ids,
                attention_mask=torch.where(same_text, 0.0, _MASKED),
                position_ids=position_ids + self.first_position,
                **token_types,
            ).last_hidden_state
        return torch.softmax(self._logits(first_hidden) / self.temperature, dim=-1)

    def _after_last_attention(self) -> nn.Module:
        """The first module of the last layer after which tokens no longer influence each other."""
        base = self.model.base_model
        if self.model.config.model_type == "distilbert":
            module: nn.Module = base.transformer.layer[-1].sa_layer_norm
        else:
            module = base.encoder.layer[-1].attention.output
        return module

    def _logits(self, first_hidden: Tensor) -> Tensor:
        """Apply the model's head to the texts' first tokens, [texts, hidden] to [texts, labels]."""
        logits: Tensor
        match self.model.config.model_type:
            case "bert":
                logits = self.model.classifier(self.model.bert.pooler(first_hidden[:, None]))
            case "roberta":
                logits = self.model.classifier(first_hidden[:, None])
            case _:
                logits = self.model.classifier(torch.relu(self.model.pre_classifier(first_hidden)))
        return logits


@contextmanager
def _given_only(tokens: Tensor, module: nn.Module) -> Iterator[None]:
    """During the block, `module` gets only some tokens of its inputs.

    Each input [rows, length, hidden] becomes [1, tokens, hidden]; `tokens` are indices into rows * length.
    """

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(hidden.reshape(-1, hidden.shape[-1])[tokens][None] for hidden in inputs)

    hook = module.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def export_packed_graph(model: PreTrainedModel, temperature: float, path: Path) -> None:
    """Write `model` to one self-contained ONNX file, and check the file with `onnx`.

    Raises:
        PipelineError: the architecture is not supported.
    """
    packed = PackedClassifier(model, temperature)
    rows, length, texts = torch.export.Dim("rows"), torch.export.Dim("length"), torch.export.Dim("texts")
    # Three tensors, because torch.export treats one tensor that is passed twice as one input.
    tokens = [torch.zeros((3, 32), dtype=torch.long) for _ in range(3)]
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it warns about missing torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.export itself
            program = torch.onnx.export(
                packed,
                (*tokens, torch.arange(5)),
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUT_NAMES,
                output_names=[OUTPUT_NAME],
                dynamic_shapes=[{0: rows, 1: length}] * 3 + [{0: texts}],
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None  # None only without dynamo
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
