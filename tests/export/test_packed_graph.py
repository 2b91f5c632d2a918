"""The graph answers as torch does, for each family of encoders, whatever shares the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from common.errors import PipelineError
from export.graph import export_graph
from export.parity import check_parity, reference_probabilities
from serving.backend.engine import Engine
from serving.backend.runtime import float_variants
from serving.backend.stage import load_tokenizer
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.variants import FLOAT32, OPENVINO
from tests.conftest import LABELS, MAX_LENGTH, REFERENCE, SENTENCES, make_bundle, make_encoder
from trainer.architectures import PACKED_FAMILIES
from trainer.batches import TokenizedTexts
from trainer.dataset import LabelledTexts

# Every length from one word to more than the model reads.
TEXTS = SENTENCES * 5 + [" ".join(SENTENCES[:4] * repeat)[: 40 * repeat] for repeat in range(1, 40)]

NAMES = [
    "[PAD] good",
    "good [SEP] terrible [CLS]",
    "I love <pad> this product! </s> terrible <s>",
    "[MASK] <mask> the plot",
    "<pad>",
    "[PAD]" * 30,
]
"""Texts with the names of special tokens."""


TEMPERATURE = 1.5
"""Divides the logits."""

VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in PACKED_FAMILIES},
    "albert, two groups of layers": ("albert", {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}),
    "modernbert, mean of the tokens": ("modernbert", {"classifier_pooling": "mean"}),
    # What cannot be packed.
    "deberta-v2, convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "megatron-bert": ("megatron-bert", {}),
    "roberta-prelayernorm": ("roberta-prelayernorm", {"pad_token_id": 0, "max_position_embeddings": 513}),
}
UNPACKED = ("deberta-v2, convolution", "megatron-bert", "roberta-prelayernorm")


UNIGRAM = ("camembert", "xlm-roberta")
"""Their tokenizers read `<pad>` in a text as the padding, whose position torch does not count."""
FAST = ("bert", "mpnet", "albert", "deberta-v2", "modernbert", "roberta-prelayernorm")
"""One of each kind of graph; the others are in the full tier."""


@pytest.mark.parametrize(
    "variation", [pytest.param(name, marks=() if name in FAST else pytest.mark.full) for name in VARIATIONS]
)
def test_same_answers_as_torch_in_every_mix(variation: str, tmp_path: Path) -> None:
    family, options = VARIATIONS[variation]
    encoder = make_encoder(family, tmp_path / "encoder", **options)
    bundle = make_bundle(encoder, tmp_path / "bundle", temperature=TEMPERATURE)
    assert Bundle.load(bundle).packed == (variation not in UNPACKED)
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    reference = reference_probabilities(model, tokenizer, TEXTS, MAX_LENGTH, TEMPERATURE)
    assert np.ptp(reference[:, 0]) > 0.1, "the random encoder must tell texts apart, or agreement shows nothing"
    alone = np.concatenate(
        [reference_probabilities(model, tokenizer, [text], MAX_LENGTH, TEMPERATURE) for text in TEXTS]
    )
    assert np.abs(alone - reference).max() < 1e-4, "torch itself must give the same predictions with padding"

    with Engine(bundle, REFERENCE, cores=2) as engine:
        parity = check_parity(lambda texts: engine.classify(texts).values, TEXTS, reference, FLOAT32)
        names = engine.classify(NAMES).values

    assert parity.label_agreement == 1.0
    assert parity.largest_difference < 1e-4
    assert parity.largest_spread < 1e-4
    if variation not in (*UNPACKED, *UNIGRAM):
        assert np.abs(names - reference_probabilities(model, tokenizer, NAMES, MAX_LENGTH, TEMPERATURE)).max() < 1e-4


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_names_of_special_tokens_in_a_text_are_text_in_training_proof_and_serving(
    architecture: str, tmp_path: Path
) -> None:
    encoder = make_encoder(architecture, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    first, *_, last = tokenizer("good")["input_ids"]
    learnt = TokenizedTexts(LabelledTexts(NAMES, ["Positive"] * len(NAMES)), LABELS, tokenizer, MAX_LENGTH)
    served = load_tokenizer(encoder / TOKENIZER, MAX_LENGTH)
    for place, text in enumerate(NAMES):
        ids = served.encode(text).ids
        assert (ids[0], ids[-1]) == (first, last)
        assert not {first, last, tokenizer.pad_token_id} & set(ids[1:-1]), text
        assert ids == learnt[place]["input_ids"]


def test_openvino_runs_the_same_graph(bert_encoder: Path, bert_bundle: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder)
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    reference = reference_probabilities(model, tokenizer, TEXTS, MAX_LENGTH, temperature=1.0)
    (variant,) = [variant for variant in float_variants() if variant.runtime == OPENVINO]
    with Engine(bert_bundle, variant, cores=2) as engine:
        answers = engine.classify(TEXTS).values
    # bfloat16 keeps 8 bits of a number.
    assert np.abs(answers - reference).max() < 0.1
    assert np.corrcoef(answers[:, 0], reference[:, 0])[0, 1] > 0.99


def test_a_model_with_a_decoder_is_refused_by_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bart", d_model=32, encoder_layers=1, decoder_layers=1)
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(PipelineError, match=r"'bart' have an encoder and a decoder.*bert, distilbert, roberta"):
        export_graph(model, 1.0, tmp_path / "model.onnx")


def test_text_over_the_maximum_is_cut_and_told(bert_bundle: Path) -> None:
    with Engine(bert_bundle, REFERENCE, cores=1) as engine:
        answer = engine.classify(["good", "good " * 1000])
        longer = engine.classify(["good " * 2000])
    assert answer.truncated.tolist() == [False, True]
    assert np.allclose(answer.values[1], longer.values[0], atol=1e-5)
