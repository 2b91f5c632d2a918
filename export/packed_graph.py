"""The packed classifier: several texts share a row without attending to each other.

Packing without cross-contamination: Krell et al., "Efficient Sequence Packing without
Cross-contamination", 2021 (arXiv:2107.02027). The classifier makes the attention mask from segment
ids, and positions restart with each text. Relative positions need nothing more, because the
distances within a text are the same anywhere in a row. What a family computes from positions alone
comes from tables, because runtimes that compute in bfloat16 would round logarithms and angles.

The heads read only each text's first token. So the last layer computes everything after its
attention only for first tokens. For texts of 26 tokens this saves three quarters of a layer's work.
Each first token continues as a row of its own, and a head, which reads the first token of each row,
needs no change.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.architectures import first_position

# Added to a score before softmax. e^-10000 is 0 in every precision, and fp16 can represent -10000.
_MASKED = -10_000.0


class PackedClassifier(nn.Module):
    """A sequence classifier from `transformers` of a family that can be packed, which reads packed rows."""

    buckets: Tensor
    """See `_make_tables`."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        """Wrap `model`; its logits are divided by `temperature` before the softmax."""
        super().__init__()
        # Any: the modules of transformers are untyped.
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.temperature = temperature
        self.family = model.config.model_type
        self.first_position = first_position(model.config.to_dict())
        self.has_token_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self.averages = getattr(model.config, "classifier_pooling", "cls") == "mean"
        """True if the head reads the mean of a text's tokens instead of its first token (ModernBERT)."""
        for name, table in self._make_tables().items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, first_tokens: Tensor) -> Tensor:
        """Return the probabilities, FP32 [texts, labels].

        Args:
            input_ids: INT64 [rows, length], texts one after the other, padding after the last.
            position_ids: INT64 [rows, length], from 0 in each text.
            segment_ids: INT64 [rows, length], the same number for the tokens of one text, another
                for its neighbours in the row, 0 for padding.
            first_tokens: INT64 [texts], where each text begins, as an index into rows * length.
        """
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids + self.first_position,
            "attention_mask": self._attention_mask(position_ids, segment_ids),
        }
        if self.has_token_types:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        with self._adapted(segment_ids, first_tokens):
            if self.averages:
                hidden = self.model.base_model(**inputs).last_hidden_state
                logits = self.model.classifier(self.model.head(_means(hidden, segment_ids, first_tokens)))
            else:
                logits = self.model(**inputs).logits
        return torch.softmax(logits / self.temperature, dim=-1)

    def _attention_mask(self, position_ids: Tensor, segment_ids: Tensor) -> Tensor | dict[str, Tensor]:
        """Return which tokens attend to which, [rows, 1, length, length], in the form that the family expects."""
        # Padding attends to padding, so no softmax row is empty.
        same_text = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        match self.family:
            case "deberta-v2":
                return same_text
            case "modernbert":
                distances = (position_ids[:, None, :, None] - position_ids[:, None, None, :]).abs()
                nearby = same_text & (distances <= self.model.config.sliding_window)
                return {"full_attention": _added(same_text), "sliding_attention": _added(nearby)}
            case _:
                return _added(same_text)

    @torch.no_grad()
    def _make_tables(self) -> dict[str, Tensor]:
        """Return what the family computes from positions alone, by name.

        `buckets`, INT64 [2 * farthest + 1], has a number for each distance from -farthest to farthest (MPNet, DeBERTa).
        Others, FP32 [positions, units of a head], have the cosine or sine of each position (ModernBERT).
        """
        base = self.model.base_model
        farthest = self.model.config.max_position_embeddings
        match self.family:
            case "mpnet":
                return {"buckets": base.encoder.relative_position_bucket(torch.arange(-farthest, farthest + 1))}
            case "deberta-v2" if base.encoder.relative_attention:
                # [query, key]; the first row has all distances down to -farthest, the first column up to farthest.
                of_pairs = base.encoder.get_rel_pos(torch.zeros(1, farthest + 1, 1))[0]
                return {"buckets": torch.cat([of_pairs[0, 1:].flip(0), of_pairs[:, 0]])}
            case "modernbert":
                positions = torch.arange(farthest)[None]
                tables: dict[str, Tensor] = {}
                for layer_type in base.rotary_emb.layer_types:
                    cosines, sines = base.rotary_emb(torch.zeros(1), positions, layer_type)
                    tables |= {f"{layer_type}_cosines": cosines[0], f"{layer_type}_sines": sines[0]}
                return tables
            case _:
                return {}

    def _reading_tables(self) -> tuple[nn.Module, str, Callable[..., Any]] | None:
        """Return a function that reads the tables, and the module and name of the method that it replaces."""
        base = self.model.base_model

        def bucket(distances: Tensor, **_: Any) -> Tensor:
            farthest = len(self.buckets) // 2
            return self.buckets[distances.clamp(-farthest, farthest) + farthest]

        def buckets_of_pairs(hidden: Tensor, *_: Any) -> Tensor:
            positions = torch.arange(hidden.shape[1])
            return bucket(positions[:, None] - positions)[None]

        def rotations(_: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, ...]:
            return tuple(getattr(self, f"{layer_type}_{name}")[position_ids] for name in ("cosines", "sines"))

        match self.family:
            case "mpnet":
                return base.encoder, "relative_position_bucket", bucket
            case "deberta-v2" if base.encoder.relative_attention:
                return base.encoder, "get_rel_pos", buckets_of_pairs
            case "modernbert":
                return base.rotary_emb, "forward", rotations
            case _:
                return None

    def _after_last_attention(self) -> tuple[nn.Module, int]:
        """The first module after which tokens no longer influence each other, and which of its calls that is."""
        base = self.model.base_model
        match self.family:
            case "distilbert":
                return base.transformer.layer[-1].sa_layer_norm, 1
            case "mpnet":
                return base.encoder.layer[-1].attention.LayerNorm, 1
            case "albert":  # its layers share their weights: all layers of a group are one module
                layers, groups = self.model.config.num_hidden_layers, self.model.config.num_hidden_groups
                calls = sum(int(layer / (layers / groups)) == groups - 1 for layer in range(layers))
                return base.encoder.albert_layer_groups[-1].albert_layers[-1].attention.LayerNorm, calls
            case "modernbert":  # the attention's result is added outside of any module; only the last norm follows
                return base.final_norm, 1
            case _:
                return base.encoder.layer[-1].attention.output, 1

    @contextmanager
    def _adapted(self, segment_ids: Tensor, first_tokens: Tensor) -> Iterator[None]:
        """During the block, the model's own code computes with packed rows.

        After the last attention, each first token continues as a row of its own. Tables replace what depends on
        positions alone. DeBERTa's embeddings, which get the attention mask too, get one that they can read.
        """

        def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if next(count) < calls:
                return None
            return tuple(hidden.reshape(-1, hidden.shape[-1])[first_tokens][:, None] for hidden in inputs)

        def mask_padding(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            return inputs, named | {"mask": segment_ids != 0}

        hooks = []
        if not self.averages:
            module, calls = self._after_last_attention()
            count = itertools.count(1)
            hooks.append(module.register_forward_pre_hook(choose))
        if self.family == "deberta-v2":
            embeddings = self.model.base_model.embeddings
            hooks.append(embeddings.register_forward_pre_hook(mask_padding, with_kwargs=True))
        if replaced := self._reading_tables():
            setattr(*replaced)  # on the object, so that deleting it shows the method of the class again
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if replaced:
                delattr(*replaced[:2])


def _added(allowed: Tensor) -> Tensor:
    """Return what is added to the scores so that only `allowed` pairs of tokens attend to each other."""
    return torch.where(allowed, 0.0, _MASKED)


def _means(hidden: Tensor, segment_ids: Tensor, first_tokens: Tensor) -> Tensor:
    """Return the mean over the tokens of each text, [rows, length, hidden] to [texts, hidden]."""
    rows, length = segment_ids.shape
    row_of_token = torch.arange(rows)[:, None].expand(rows, length).reshape(-1)
    segment_of_token = segment_ids.reshape(-1)
    in_text = (row_of_token == row_of_token[first_tokens][:, None]) & (
        segment_of_token == segment_of_token[first_tokens][:, None]
    )
    weights = in_text.to(hidden.dtype)
    return (weights @ hidden.reshape(rows * length, -1)) / weights.sum(dim=1, keepdim=True)
