"""Compares packed with padded serving for each family of encoders: `python -m benchmarks.families`.

All encoders have the size of the packaged one (6 layers of 384 units) and random weights, which are as fast as trained
ones. They run in float32 in ONNX Runtime, on texts of the benchmark's set `reviews`. The output is Markdown: texts per
second, the largest difference of a probability from that of `transformers`, and the largest between a text alone and
beside others in a row. Families and ways are measured in one run, the ways in turns.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.machine import describe_machine
from benchmarks.texts import REVIEWS, text_set
from common.proxies import prepare_proxies
from export.graph import export_graph
from export.parity import reference_probabilities
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.stage import load_tokenizer
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.variants import FLOAT32, FLOAT_GRAPH, ONNXRUNTIME, Variant
from trainer.architectures import PACKED_FAMILIES, why_unpacked
from trainer.base_model import silence_loading
from trainer.base_tokenizer import packaged_directory

_TEXTS = 256
_TEXTS_ALONE = 64
_ROUNDS = 3
_MAX_LENGTH = 512
_WEIGHT_SCALE = 5.0
"""Factor of the initial weights, which are so small that each text would get nearly the same probabilities."""
_SIZE = {"num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size": 384, "intermediate_size": 1536}
_OPTIONS: dict[str, dict[str, object]] = {
    "distilbert": {"n_layers": 6, "n_heads": 12, "dim": 384, "hidden_dim": 1536},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 256,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
}
"""Options beside the size; those of DeBERTa are DeBERTa-v3's."""


def main() -> None:
    """Measure the families named on the command line, or all, and print a row of the table for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("family", nargs="*", default=PACKED_FAMILIES, help="value of model_type (default: all)")
    families: Sequence[str] = parser.parse_args().family
    prepare_proxies(os.environ)
    silence_loading()
    encoder = packaged_directory()
    texts = text_set(REVIEWS, load_tokenizer(encoder / TOKENIZER, _MAX_LENGTH))[:_TEXTS]
    machine = describe_machine()
    print(f"{machine['cores']} cores of {machine['processor']}, float32, {len(texts)} reviews, texts/s.\n")
    print(
        "| family | difference from `transformers` | between neighbours | packed | one text per row | `transformers`, "
        "padded | packed ÷ one per row | packed ÷ `transformers` |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for family in families:
        with tempfile.TemporaryDirectory() as directory:
            print(_measure(family, encoder, texts, Path(directory)), flush=True)


def _measure(family: str, encoder: Path, texts: Sequence[str], directory: Path) -> str:
    """Return a row of the table."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    torch.manual_seed(0)
    torch.set_num_threads(usable_cores())
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=_MAX_LENGTH + 2,
        **_SIZE | _OPTIONS.get(family, {}),
    )
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_WEIGHT_SCALE)
    export_graph(model, 1.0, directory / FLOAT_GRAPH)
    (directory / TOKENIZER).write_bytes((encoder / TOKENIZER).read_bytes())
    bundle = Bundle(
        version=1,
        labels=("Negative", "Positive"),
        max_length=_MAX_LENGTH,
        padding_token=tokenizer.pad_token_id,
        base_model=family,
        data_fingerprint="",
        mlflow_run="",
        metrics={},
        proofs=(),
        packed=not why_unpacked(config.to_dict()),
    )

    def engine(packed: bool) -> Engine:
        replace(bundle, packed=packed).save(directory)
        return Engine(directory, Variant(ONNXRUNTIME, FLOAT32), usable_cores())

    with engine(bundle.packed) as packed, engine(False) as unpacked:
        reference = reference_probabilities(model, tokenizer, texts, _MAX_LENGTH, 1.0)
        together = packed.classify(texts).values
        alone = np.concatenate([packed.classify([text]).values for text in texts[:_TEXTS_ALONE]])
        packed_s, unpacked_s, padded_s = _seconds(
            lambda: packed.classify(texts),
            lambda: unpacked.classify(texts),
            lambda: reference_probabilities(model, tokenizer, texts, _MAX_LENGTH, 1.0),
        )
    difference, spread = np.abs(together - reference).max(), np.abs(together[:_TEXTS_ALONE] - alone).max()
    speeds = " | ".join(f"{len(texts) / seconds:,.0f}" for seconds in (packed_s, unpacked_s, padded_s))
    ratios = " | ".join(f"{seconds / packed_s:.2f}" for seconds in (unpacked_s, padded_s))
    return f"| `{family}` | {difference:.0e} | {spread:.0e} | {speeds} | {ratios} |"


def _seconds(*ways: Callable[[], object]) -> list[float]:
    """Return the median time of each way over rounds in which all take turns."""
    rounds: list[list[float]] = [[] for _ in ways]
    for _ in range(_ROUNDS):
        for times, way in zip(rounds, ways, strict=True):
            started = time.perf_counter()
            way()
            times.append(time.perf_counter() - started)
    return [median(times) for times in rounds]


if __name__ == "__main__":
    main()
