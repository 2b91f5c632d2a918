"""The gates on real graphs in real Tritons: what is as good passes, and what is not falls at the right one."""

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export.graph import INPUT_NAMES
from lifecycle.gates.evaluation_data import EvaluationData
from lifecycle.gates.run_gates import MOST_DIFFERING, MOST_FLIPS, run_gates, slices
from serving.backend.cpu import arithmetic
from serving.backend.engine import Engine
from serving.model_repo.bundle import Bundle, Proof
from serving.model_repo.variants import FLOAT_GRAPH
from storage.versions import GateVerdict
from tests.conftest import LABELS, REFERENCE, SENTENCES, make_bundle
from tests.lifecycle.conftest import Served, make_served, publish
from trainer.dataset import LabelledTexts

pytestmark = pytest.mark.full

TEXTS_OF_A_LABEL = 200


def sentences() -> list[str]:
    draw = random.Random(0)
    words = " ".join(SENTENCES).split()
    return sorted({" ".join(draw.choices(words, k=draw.randint(2, 20))) for _ in range(4 * TEXTS_OF_A_LABEL)})


def divided(encoder: Path, directory: Path) -> Path:
    """The encoder with its head moved so that it gives either label to half of the sentences.

    What an untrained one answers depends on its tokenizer's ids, which differ from one training of it to the next.
    """
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    with torch.no_grad():
        logits = model(**tokenizer(sentences(), padding=True, return_tensors="pt")).logits
        model.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def prove(bundle: Path) -> Path:
    """Say that float32 in ONNX Runtime has been tried."""
    proof = Proof(
        runtime=REFERENCE.runtime,
        precision=REFERENCE.precision,
        arithmetic=arithmetic(),
        texts=1,
        mixes=1,
        label_agreement=1.0,
        confident_agreement=1.0,
        largest_difference=0.0,
        largest_spread=0.0,
        accuracy=1.0,
        macro_f1=1.0,
        tokens_per_s=1.0,
    )
    replace(Bundle.load(bundle), proofs=(proof,)).save(bundle)
    return bundle


@pytest.fixture(scope="module")
def champion(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("champion")
    return prove(make_bundle(divided(bert_encoder, directory / "encoder"), directory / "1"))


@pytest.fixture(scope="module")
def data(champion: Path) -> EvaluationData:
    """Texts with the champion's own answers as their right labels, but for few, so that it is good, not perfect."""
    with Engine(champion, REFERENCE, 2) as engine:
        answers = engine.classify(sentences()).values.argmax(axis=1)
    found: list[list[tuple[str, int]]] = [[], []]
    for text, answer in zip(sentences(), answers, strict=True):
        found[answer].append((text, answer))
    told = sorted(pair for of_a_label in found for pair in of_a_label[:TEXTS_OF_A_LABEL])
    texts = [text for text, _ in told]
    labels = [LABELS[answer if position % 40 else 1 - answer] for position, (_, answer) in enumerate(told)]
    cut = len(texts) // 2
    return EvaluationData(LABELS, LabelledTexts(texts[:cut], labels[:cut]), LabelledTexts(texts[cut:], labels[cut:]))


def failed_gates(verdicts: Sequence[GateVerdict]) -> list[str]:
    return [verdict.gate for verdict in verdicts if not verdict.passed]


def candidate(directory: Path, champion: Path, bundle: Path) -> Served:
    """A repository where `champion` is version 1 and `bundle` version 2."""
    served = make_served(directory, champion, versions=1)
    publish(served, bundle, 2)
    return served


def opposite(champion: Path, directory: Path) -> Path:
    """The same graph, whose answers mean the other label."""
    shutil.copytree(champion, directory)
    replace(Bundle.load(directory), labels=LABELS[::-1]).save(directory)
    return directory


def slowed(champion: Path, directory: Path) -> Path:
    """The same model with work added to its graph that changes no answer."""
    shutil.copytree(champion, directory)
    model = onnx.load(str(directory / FLOAT_GRAPH))
    graph = model.graph
    (output,) = graph.output
    last = next(node for node in graph.node if output.name in node.output)
    last.output[list(last.output).index(output.name)] = "answers"
    size = 704
    matrix = (np.random.default_rng(0).random((size, size), dtype=np.float32) - 0.5) / size
    graph.initializer.append(numpy_helper.from_array(matrix, "wasted"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype=np.float32), "nothing"))
    graph.node.append(helper.make_node("Cast", [INPUT_NAMES[0]], ["ids"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("ReduceMin", ["ids"], ["least"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["wasted", "least"], ["product_0"]))
    for step in range(2):
        graph.node.append(helper.make_node("MatMul", ["wasted", f"product_{step}"], [f"product_{step + 1}"]))
    graph.node.append(helper.make_node("ReduceMax", ["product_2"], ["most"], keepdims=0))
    graph.node.append(helper.make_node("Mul", ["most", "nothing"], ["zero"]))
    graph.node.append(helper.make_node("Add", ["answers", "zero"], [output.name]))
    onnx.save(model, str(directory / FLOAT_GRAPH))
    return directory


def test_the_same_model_passes_every_gate(tmp_path: Path, champion: Path, data: EvaluationData) -> None:
    served = candidate(tmp_path, champion, champion)
    verdicts = run_gates(served.settings, served.repository, data, 1, 2, tmp_path / "trial")
    assert failed_gates(verdicts) == []
    assert [verdict.gate for verdict in verdicts] == [
        "trial",
        "parity",
        "thresholds",
        "comparison",
        "slices",
        "flips",
        "behaviour",
        "budget",
    ]
    comparison = verdicts[3].figures["accuracy"]
    # Not 0: what shares a text's run differs, and one that lies between the labels may fall on either side.
    assert abs(comparison["difference"]) <= 0.01
    low, high = comparison["interval"]
    assert low <= 0 <= high


def test_a_worse_model_is_rejected_for_its_answers(tmp_path: Path, champion: Path, data: EvaluationData) -> None:
    served = candidate(tmp_path, champion, opposite(champion, tmp_path / "opposite"))
    verdicts = run_gates(served.settings, served.repository, data, 1, 2, tmp_path / "trial")
    failed = failed_gates(verdicts)
    assert {"thresholds", "comparison", "slices", "flips"} <= set(failed)
    assert not {"trial", "parity", "budget"} & set(failed)
    tried = verdicts[0].figures
    assert (tried["champion"], tried["validation texts"]) == (1, len(data.val.texts))
    assert tried["differ"] > 0.9 * len(data.val.texts)
    assert len(tried["examples"]) == MOST_DIFFERING
    assert all(item["text"] in data.val.texts for item in tried["examples"])
    assert all(item["champion"] != item["candidate"] for item in tried["examples"])
    (flips,) = [verdict.figures for verdict in verdicts if verdict.gate == "flips"]
    assert flips["share"] > 0.8
    assert len(flips["examples"]) == MOST_FLIPS
    assert all(item["champion"] == item["right"] != item["candidate"] for item in flips["examples"])


def test_a_slow_model_is_rejected_for_its_time_alone(tmp_path: Path, champion: Path, data: EvaluationData) -> None:
    served = candidate(tmp_path, champion, slowed(champion, tmp_path / "slowed"))
    verdicts = run_gates(served.settings, served.repository, data, 1, 2, tmp_path / "trial")
    assert failed_gates(verdicts) == ["budget"]
    assert verdicts[-1].figures["ms for a lone text"]["ratio"] > 2
    assert "Over the budget" in verdicts[-1].message
    # It is as slow with another encoder, which is only told.
    bundle = served.repository.version_directory(2)
    replace(Bundle.load(bundle), base_model="a larger one").save(bundle)
    verdicts = run_gates(served.settings, served.repository, data, 1, 2, tmp_path / "trial")
    assert failed_gates(verdicts) == []
    assert re.search(r"random became a larger one \(.* ms for a lone text, .* times; ", verdicts[-1].message)


def test_a_version_that_does_not_load_is_rejected_by_the_trial(
    tmp_path: Path, champion: Path, data: EvaluationData
) -> None:
    served = candidate(tmp_path, champion, champion)
    (served.repository.version_directory(2) / FLOAT_GRAPH).write_bytes(b"no graph")
    (verdict,) = run_gates(served.settings, served.repository, data, 1, 2, tmp_path / "trial")
    assert (verdict.gate, verdict.passed) == ("trial", False)
    assert "does not serve version 2" in verdict.message


def test_slices_are_parts_that_matter(data: EvaluationData) -> None:
    found = slices(data)
    assert set(found) == {"validation file", "feedback", "short texts", "long texts"}
    assert (found["validation file"] ^ found["feedback"]).all()
    words = np.array([len(text.split()) for text in data.texts])
    assert words[found["short texts"]].max() < words[found["long texts"]].min()
